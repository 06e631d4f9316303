"""What the release service decided, oldest first, in one file: for people and for `GET /api/releases`.

It decides nothing: what robots run is in the signed repository, what became of a version in its MLflow tags.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipelines.release import durable
from pipelines.release.repository import Repository
from serving.errors import OperatorError

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One decision."""

    issued_at: str  # RFC 3339, UTC
    channel: str
    version: str
    status: str  # released, refused
    release_id: str = ""  # empty where a version is refused that has no digest
    sequence: int | None = None  # of the channel; None when refused
    reason: str = ""


class History:
    """The file `history.json` of a release folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        """All decisions, oldest first.

        Raises:
            OperatorError: the file is damaged.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Entry])
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as problem:
            raise OperatorError(f"{self._path} is damaged ({problem}): move it away, releasing goes on") from None

    def add(self, entry: Entry) -> None:
        """Adds a decision unless it is there already: a sequence once, the same refusal once in a row.

        Raises:
            OperatorError: the file is damaged.
            OSError: the disk is full or the folder not writable.
        """
        entries = self.entries()
        of_channel = [known for known in entries if known.channel == entry.channel]
        if entry.sequence is not None:
            known = any(one.sequence == entry.sequence for one in of_channel)
        else:
            last = of_channel[-1] if of_channel else None
            known = last is not None and (last.version, last.reason) == (entry.version, entry.reason)
        if not known:
            durable.write(self._path, msgspec.json.format(msgspec.json.encode([*entries, entry]), indent=1))


def listing(history: History, repository: Repository) -> Iterator[dict[str, Any]]:
    """Decisions, newest first, each with the passports of its engines; `current` marks what a ring runs now.

    Raises:
        OperatorError: the history or a signed file is damaged.
    """
    running = {channel.channel: channel.sequence for channel in repository.channels()}
    for entry in reversed(history.entries()):
        paths = repository.passports(entry.release_id) if entry.status == "released" else {}
        yield {
            **msgspec.to_builtins(entry),
            "current": entry.sequence is not None and running.get(entry.channel) == entry.sequence,
            "passports": {target: msgspec.to_builtins(repository.passport(path)) for target, path in paths.items()},
        }
