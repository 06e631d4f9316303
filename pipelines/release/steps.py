"""The steps of an attempt, one a state: gate, compile, verify, sign, tell. Each takes it to the next state, or raises.

A step may be cut off anywhere and taken again. What is signed is decided by the repository alone, whose one rename
makes a publication visible: an attempt that was killed between that rename and its own note of it finds its release in
the channel, and signs nothing twice.
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from pipelines.params import GateParams
from pipelines.release import candidate, gates, telling
from pipelines.release.builds import Builds, WaitingForBuild
from pipelines.release.candidate import Judged, Material, Refused
from pipelines.release.comparison import Champion
from pipelines.release.journal import Attempt, Journal, State, Waiting, utc_now
from pipelines.release.registry import Registry, Version
from pipelines.release.repository import Repository
from pipelines.release.rollout_service import Rollouts
from pipelines.release.staging import Staged, Staging
from serving.contracts.builds import ORDER_FILE
from serving.contracts.releases import Channel, GateResult, Override, file_path
from serving.errors import RejectedError

log = logging.getLogger(__name__)

CHAMPION = "champion"  # the ring of the fleet, which a new version is compared with


class Asked(NamedTuple):
    """What is asked of an attempt at this moment."""

    version: Version
    limits: GateParams
    overrides: list[Override]


class Steps:
    """What takes the attempts of one release folder from state to state."""

    def __init__(
        self,
        registry: Registry,
        repository: Repository,
        journal: Journal,
        staging: Staging,
        ring: Callable[[Channel], None],
        builds: Builds | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._journal = journal
        self._staging = staging
        self._ring = ring
        self._builds = builds
        self._rollouts = rollouts
        self._fetched: tuple[str, Material] | None = None  # release id and what its run exported
        self._of = {
            State.PENDING: self._gate,
            State.GATED: self._compile,
            State.COMPILED: self._verify,
            State.VERIFIED: self._sign,
            State.SIGNED: self._tell_released,
        }

    def take(self, attempt: Attempt, asked: Asked) -> Attempt:
        """Takes the step of the attempt's state, which is one of UNDER_WAY.

        Raises:
            Refused: a gate fails.
            RejectedError: what the version's run holds is missing, altered or malformed.
            Waiting: an engine is built elsewhere and is not here yet.
            OperatorError: MLflow cannot be asked or told, the database or a builder does not work.
            OSError: the disk is full.
        """
        return self._of[attempt.state](attempt, asked)

    def adopt(self, attempt: Attempt) -> Attempt:
        """Notes that a verified attempt is published: the service was killed just after its publication."""
        channel = self._repository.channel(attempt.channel)
        if attempt.state is State.VERIFIED and channel and serves(channel, attempt):
            return self._journal.move(attempt, State.SIGNED, sequence=channel.sequence)
        return attempt

    def _gate(self, attempt: Attempt, asked: Asked) -> Attempt:
        version = asked.version
        withdrawn = self._why_withdrawn(attempt)
        if withdrawn is not None:
            raise Refused(f"it was withdrawn ({withdrawn}) and is not released again: train a new version")
        if version.release_id and not self._lacking(attempt):
            return self._journal.move(attempt, State.VERIFIED, "it was released before")
        telling.under_way(self._registry, version, attempt.state)
        metrics = self._registry.metrics(version)
        judged = candidate.judge(metrics, version, self._champion(version), asked.limits)
        return self._pass(attempt, State.GATED, judged, asked)

    def _compile(self, attempt: Attempt, asked: Asked) -> Attempt:
        self._engines(attempt, asked)
        return self._journal.move(attempt, State.COMPILED)

    def _verify(self, attempt: Attempt, asked: Asked) -> Attempt:
        judged = candidate.judge_engines(self._engines(attempt, asked), asked.limits)
        return self._pass(attempt, State.VERIFIED, [*attempt.gates, *judged], asked)

    def _sign(self, attempt: Attempt, asked: Asked) -> Attempt:
        adopted = self.adopt(attempt)
        if adopted.state is State.SIGNED:
            return adopted
        if self._rollouts and (held := self._rollouts.held(attempt.channel, attempt.release_id)):
            raise Waiting(f"waits: {held}")
        files: Mapping[str, bytes] = {}
        if self._lacking(attempt):
            engines, material = self._engines(attempt, asked), self._material(asked.version)
            metrics = self._registry.metrics(asked.version)
            judged = Judged(attempt.gates, attempt.overrides, asked.limits, attempt.begun_at, metrics)
            files = candidate.release_files(self._registry.model, asked.version, engines, material, judged)
        channel = self._publish(attempt, files)
        return self._journal.move(attempt, State.SIGNED, sequence=channel.sequence)

    def _tell_released(self, attempt: Attempt, asked: Asked) -> Attempt:
        channel = self._repository.channel(attempt.channel)
        if channel and serves(channel, attempt):
            telling.released(self._registry, asked.version, channel, *passed(self._repository, channel))
        self._fetched = None
        return self._journal.move(attempt, State.RELEASED)

    def _publish(self, attempt: Attempt, files: Mapping[str, bytes]) -> Channel:
        """Signs and publishes; the one place where a ring gets another release."""
        before = self._repository.channel(attempt.channel)
        new = {path.split("/")[2]: path for path in files if path.endswith("/passport.json")}
        channel = Channel(
            channel=attempt.channel,
            sequence=before.sequence + 1 if before else 1,
            release_id=attempt.release_id,
            model_version=attempt.version,
            passports=self._repository.passports(attempt.release_id) | new,
            issued_at=utc_now(),
            withdrawn=before.withdrawn if before else [],
        )
        if self._rollouts:
            channel = self._rollouts.begin(channel, before)
        elif channel.withdrawn:
            channel = msgspec.structs.replace(channel, schema=2)
        self._repository.publish(files, [channel])
        log.info("%s: %s is published (sequence %d)", channel.channel, channel.release_id, channel.sequence)
        self._ring(channel)
        return channel

    # What the steps ask for

    def _pass(self, attempt: Attempt, state: State, judged: list[GateResult], asked: Asked) -> Attempt:
        if why := gates.failures(judged, asked.overrides):
            raise Refused(why, judged)
        return self._journal.move(attempt, state, gates=judged, overrides=gates.used(judged, asked.overrides))

    def _lacking(self, attempt: Attempt) -> list[str]:
        """Targets that the release is not published for yet."""
        published = self._repository.passports(attempt.release_id)
        return [target for target in attempt.targets if target not in published]

    def _engines(self, attempt: Attempt, asked: Asked) -> dict[str, Staged]:
        material, engines, waiting = self._material(asked.version), {}, []
        for target in self._lacking(attempt):
            try:
                engines[target] = candidate.compiled(target, material, self._staging, asked.limits, self._builds)
            except WaitingForBuild as order:
                self._order(attempt, order)
                waiting.append(str(order))
        if waiting:
            raise Waiting("; ".join(waiting))
        return engines

    def _order(self, attempt: Attempt, waiting: WaitingForBuild) -> None:
        """Has the robots asked for an engine: the order is signed, and read by those of that kind."""
        if self._builds is None:
            return
        files = self._builds.request(attempt.release_id, waiting)
        try:
            self._repository.path_of(file_path(attempt.release_id, waiting.target, ORDER_FILE))
        except KeyError:  # not published yet
            self._repository.publish(files)

    def _material(self, version: Version) -> Material:
        if self._fetched is None or self._fetched[0] != version.release_id:
            self._fetched = (version.release_id, candidate.fetch(self._registry, version))
        return self._fetched[1]

    def _champion(self, version: Version) -> Champion | None:
        running = self._repository.channel(CHAMPION)
        if running is None or running.model_version == version.number:
            return None
        found = self._registry.version(running.model_version)
        try:
            return Champion(running.model_version, self._registry.metrics(found) if found else None)
        except RejectedError:
            return Champion(running.model_version, None)

    def _why_withdrawn(self, attempt: Attempt) -> str | None:
        running = self._repository.channel(attempt.channel)
        listed = "listed in the channel" if running and attempt.release_id in running.withdrawn else None
        return (self._journal.withdrawn(attempt.release_id) if attempt.release_id else None) or listed


def serves(channel: Channel, attempt: Attempt) -> bool:
    """Whether a ring runs what an attempt is to release."""
    return channel.release_id == attempt.release_id and set(attempt.targets) <= set(channel.passports)


def passed(repository: Repository, channel: Channel) -> tuple[list[GateResult], list[Override]]:
    """All gates of the engines of a channel, and what was decided on them, each once."""
    passports = [repository.passport(path) for path in channel.passports.values()]
    judged = {gate.name: gate for passport in passports for gate in passport.gates}
    decided = {one.gate: one for passport in passports for one in passport.overrides or []}
    return list(judged.values()), list(decided.values())
