"""Brings the signed repository to what the aliases in MLflow ask for, and tells MLflow what became of it.

Level-triggered: each `reconcile` compares what is wanted with what is published and begins, resumes or ends an attempt,
so it does not matter how it was woken. An attempt moves through the states of journal.py, and every move is on the disk
before the next step (steps.py) begins: a service that was killed goes on from there.
"""

import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.params import GateParams
from pipelines.release import gates, telling
from pipelines.release.aliases import Aliases
from pipelines.release.builds import Builds
from pipelines.release.candidate import Refused
from pipelines.release.database import Database
from pipelines.release.journal import UNDER_WAY, UNSIGNED, Attempt, Journal, State, Waiting
from pipelines.release.overrides import Overrides
from pipelines.release.registry import Registry, Version
from pipelines.release.repository import Repository
from pipelines.release.rollout_service import Rollouts
from pipelines.release.staging import Staging
from pipelines.release.steps import Asked, Steps, passed, serves
from serving.contracts.releases import Channel
from serving.errors import RejectedError

log = logging.getLogger(__name__)


class Step(enum.Enum):
    """What a channel needs to be what its alias asks for."""

    NOTHING = "nothing"
    RESUME = "resume"  # an attempt is under way
    TELL = "tell"  # it is published; MLflow does not say so
    BEGIN = "begin"


def decide(
    version: Version,
    channel: Channel | None,
    published: Sequence[str],
    targets: Sequence[str],
    last: Attempt | None,
    limits: str,
    change: int,
) -> Step:
    """The missing step of one channel.

    Args:
        version: what the alias is set on.
        channel: what the ring runs; None before its first release.
        published: targets that the version's release was built for.
        targets: targets to serve.
        last: the newest attempt to release this version there.
        limits: gates and overrides in force, as text.
        change: number of the alias's change that brought it to this version.
    """
    if last and last.state in UNDER_WAY:
        return Step.RESUME
    anew = last is None or last.change_id != change
    withdrawn = channel is not None and version.release_id in channel.withdrawn
    if (withdrawn or (last and last.state is State.WITHDRAWN)) and not anew:
        return Step.NOTHING
    wanted = {*targets, *published}
    if channel and channel.release_id == version.release_id and wanted <= set(channel.passports):
        return Step.NOTHING if version.status in telling.TOLD else Step.TELL
    if last and last.state is State.REFUSED and last.limits == limits and version.status and not anew:
        return Step.NOTHING
    return Step.BEGIN


@dataclass(frozen=True)
class Wanted:
    """What this service is for."""

    channels: Sequence[str]
    targets: Sequence[str]
    limits: Callable[[], GateParams]  # read anew each time: people edit params.yaml


class Records(NamedTuple):
    """What the service keeps in its folder beside the repository."""

    journal: Journal
    aliases: Aliases
    staging: Staging
    overrides: Overrides

    @classmethod
    def of(cls, folder: Path, database: Database) -> "Records":
        return cls(Journal(database), Aliases(database), Staging(folder, database), Overrides(folder))


class Service:
    """One reconciler of one folder; call it from one thread."""

    def __init__(
        self,
        registry: Registry,
        repository: Repository,
        records: Records,
        wanted: Wanted,
        ring: Callable[[Channel], None],
        builds: Builds | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._journal, self._aliases, self._overrides = records.journal, records.aliases, records.overrides
        self._wanted = wanted
        self._rollouts = rollouts
        self._steps = Steps(registry, repository, records.journal, records.staging, ring, builds, rollouts)
        self._said: dict[str, str] = {}  # channel -> what the log said last of waiting

    def reconcile(self) -> bool:
        """Looks at every channel once. With nothing to do that is one request each.

        Returns:
            Whether anything was done.

        Raises:
            OperatorError: MLflow cannot be asked or told; the next call goes on where this one stopped.
            OSError: the disk is full or not writable; what is published still stands.
        """
        rolled = [self._rollouts.advance(channel) for channel in self._wanted.channels] if self._rollouts else []
        told = self._tell_ended()
        steps = [self._reconcile(channel) for channel in self._wanted.channels]
        return any([told, *rolled, *steps])

    def _reconcile(self, name: str) -> bool:
        heard = self._aliases.heard_so_far()
        version = self._registry.promoted(name)
        change = self._aliases.look(name, version.number if version else "", heard)
        left = self._leave_others(name, version)
        if version is None:
            self._say(name, f"no version of {self._registry.model} has this alias; waiting for a person to set it")
            return left
        channel = self._repository.channel(name)
        left = self._note_withdrawn(channel) or left
        self._tell_rollout(name, version)
        limits = self._wanted.limits()
        overrides = self._overrides.of(self._registry.model, version.number, version.onnx_sha256)
        targets = gates.targets_for(self._wanted.targets, version.tags)
        text = gates.as_text(limits, targets, overrides)
        last = self._leave_outdated(self._journal.last(name, version.number), text)
        published = list(self._repository.passports(version.release_id)) if version.release_id else []
        step = decide(version, channel, published, targets, last, text, change)
        asked = Asked(version, limits, overrides)
        if step is Step.BEGIN or (step is Step.TELL and not self._retell(name, version)):
            log.info("%s: version %s is promoted, judging it", name, version.number)
            self._said.pop(name, None)
            ends = (version.number, version.release_id, version.onnx_sha256)
            self._advance(self._journal.begin(name, *ends, targets, text, change), asked)
        elif step is Step.RESUME and last:
            self._advance(last, asked)
        return step is not Step.NOTHING or left

    def _advance(self, attempt: Attempt, asked: Asked) -> None:
        """Moves an attempt on until it is at its end, or has to wait."""
        try:
            while attempt.state in UNDER_WAY:
                attempt = self._steps.take(attempt, asked)
        except Waiting as waiting:
            if self._say(attempt.channel, f"version {attempt.version} {waiting}"):
                telling.under_way(self._registry, asked.version, attempt.state, str(waiting))
        except RejectedError as refusal:
            log.warning("%s: version %s is refused: %s", attempt.channel, attempt.version, refusal)
            judged = refusal.gates if isinstance(refusal, Refused) else []
            used = gates.used(judged, asked.overrides)
            self._journal.move(attempt, State.REFUSED, str(refusal), gates=judged, overrides=used)
            self._tell_ended()

    # What is no longer asked for, and what MLflow was not told of

    def _leave_others(self, name: str, version: Version | None) -> bool:
        """Ends an attempt of another version, which a killed service or an outage left; published ones are finished."""
        left = self._journal.under_way(name)
        if left is None or (version and (left.version, left.release_id) == (version.number, version.release_id)):
            return False
        left = self._steps.adopt(left)
        if left.state in UNSIGNED:
            gone = f"went on to version {version.number}" if version else "was taken away"
            self._journal.move(left, State.SUPERSEDED, f"the alias `{name}` {gone} before it was released")
            self._tell_ended()
            return True
        found, running = self._registry.version(left.version), self._repository.channel(name)
        if found and running and serves(running, left):
            telling.released(self._registry, found, running, *passed(self._repository, running))
        self._journal.move(left, State.RELEASED)
        return True

    def _leave_outdated(self, last: Attempt | None, limits: str) -> Attempt | None:
        """Ends an attempt that was begun under other gates and is not published: it begins anew."""
        last = self._steps.adopt(last) if last else None
        if last is None or last.state not in UNSIGNED or last.limits == limits:
            return last
        left = self._journal.move(last, State.SUPERSEDED, "the gates, the targets or a decision on them changed")
        self._journal.told(left)  # what follows at once says more
        return left

    def _note_withdrawn(self, channel: Channel | None) -> bool:
        """Takes down what the signed channel file says is withdrawn."""
        found = [
            attempt
            for release_id in (channel.withdrawn if channel else [])
            for attempt in self._journal.withdraw(release_id, self._why_withdrawn(channel, release_id))
        ]
        return bool(found) and self._tell_ended()

    def _why_withdrawn(self, channel: Channel | None, release_id: str) -> str:
        known = self._rollouts.why_withdrawn(channel.channel, release_id) if self._rollouts and channel else ""
        return known or "no robot runs it any more"

    def _tell_rollout(self, name: str, version: Version) -> None:
        """How far the rollout of a version has come, as a tag."""
        wanted = self._rollouts.tags(name, version.release_id) if self._rollouts else {}
        if news := {tag: text for tag, text in wanted.items() if version.tags.get(tag) != text}:
            self._registry.tag(version, news)

    def _retell(self, name: str, version: Version) -> bool:
        """Tells MLflow again of what a ring runs, as its tags do not say so; False where nobody released it here."""
        running = self._repository.channel(name)
        if running is None or self._journal.released(name, version.release_id) is None:
            return False
        telling.released(self._registry, version, running, *passed(self._repository, running))
        return True

    def _tell_ended(self) -> bool:
        """Tells MLflow of all that was refused, superseded or withdrawn and that it does not know of."""
        untold = self._journal.untold()
        for attempt in untold:
            version = self._registry.version(attempt.version)
            if version is None:
                log.warning(
                    "version %s is gone from MLflow: nobody is told that it is %s", attempt.version, attempt.state
                )
            else:
                telling.ended(self._registry, version, attempt, self._repository.channel(attempt.channel))
            self._journal.told(attempt)
        return bool(untold)

    def _say(self, name: str, what: str) -> bool:
        """Logs why a channel waits, once; whether it was new."""
        new = self._said.get(name) != what
        if new:
            log.info("%s: %s", name, what)
        self._said[name] = what
        return new
