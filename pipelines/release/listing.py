"""What the release service did, for people: `GET /api/releases` and `jetloop release status`."""

from collections.abc import Iterator
from typing import Any

import msgspec

from pipelines.release.journal import Journal, State
from pipelines.release.repository import Repository

_ON_ROBOTS = (State.SIGNED, State.RELEASED, State.WITHDRAWN)


def listing(journal: Journal, repository: Repository) -> Iterator[dict[str, Any]]:
    """Attempts, newest first, each with its states and the passports of its engines; `current` marks what a ring runs.

    Raises:
        OperatorError: the database or a signed file is damaged.
    """
    running = {channel.channel: channel.release_id for channel in repository.channels()}
    for attempt in reversed(journal.attempts()):
        published = attempt.state in _ON_ROBOTS
        current = published and running.get(attempt.channel) == attempt.release_id
        if current:
            del running[attempt.channel]  # an older attempt released the same
        moves = journal.moves(attempt)
        signed_at = next((move.at for move in moves if move.state == State.SIGNED), attempt.changed_at)
        paths = repository.passports(attempt.release_id) if published else {}
        yield {
            "issued_at": signed_at,
            "channel": attempt.channel,
            "version": attempt.version,
            "status": "released" if attempt.state is State.SIGNED else attempt.state.value,
            "release_id": attempt.release_id,
            "sequence": attempt.sequence,
            "reason": attempt.reason,
            "current": current,
            "states": [msgspec.to_builtins(move) for move in moves],
            "passports": {target: msgspec.to_builtins(repository.passport(path)) for target, path in paths.items()},
        }
