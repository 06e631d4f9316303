"""Brings the signed repository to what the aliases in MLflow ask for, and tells MLflow what became of it.

Level-triggered: each `reconcile` compares what is wanted with what is published and takes the step that is missing,
so it does not matter how it was woken, or where the service was killed before. The order within a step makes that
so: publish first, then history and tags, `release.status` last.
"""

import datetime
import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.params import GateParams
from pipelines.release import gates
from pipelines.release.candidate import Candidate, Refused, prepare
from pipelines.release.history import Entry, History
from pipelines.release.registry import Registry, Version
from pipelines.release.repository import Repository
from serving.contracts.releases import Channel, GateResult

log = logging.getLogger(__name__)


class Step(enum.Enum):
    """What a channel needs to be what its alias asks for."""

    NOTHING = "nothing"
    FINISH = "finish"  # it is published; MLflow has not been told
    POINT = "point"  # the release exists; the channel names another
    BUILD = "build"


def decide(
    version: Version,
    channel: Channel | None,
    published: Sequence[str],
    targets: Sequence[str],
    limits: str,
    asked_anew: bool,
) -> Step:
    """The missing step of one channel.

    Args:
        version: what the alias is set on.
        channel: what the ring runs; None before its first release.
        published: targets that the version's release was built for.
        targets: targets to serve.
        limits: the gates in force, as text.
        asked_anew: the alias was seen on another version since this one was last judged.
    """
    if set(targets) <= set(published):
        if channel and channel.release_id == version.release_id and set(published) <= set(channel.passports):
            return Step.NOTHING if version.status in ("released", "rolled-back") else Step.FINISH
        return Step.POINT
    if version.status == "refused" and version.tags.get("release.limits") == limits and not asked_anew:
        return Step.NOTHING
    return Step.BUILD


@dataclass(frozen=True)
class Wanted:
    """What this service is for."""

    channels: Sequence[str]
    targets: Sequence[str]
    limits: Callable[[], GateParams]  # read anew each time: people edit params.yaml


class Service:
    """One reconciler of one folder; call it from one thread."""

    def __init__(
        self,
        registry: Registry,
        repository: Repository,
        history: History,
        wanted: Wanted,
        ring: Callable[[Channel], None],
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._history = history
        self._wanted = wanted
        self._ring = ring
        self._judged: dict[str, str] = {}  # channel -> version last dealt with; empty: none had the alias

    def reconcile(self) -> bool:
        """Looks at every channel once. With nothing to do that is one request each.

        Returns:
            Whether anything was done.

        Raises:
            OperatorError: MLflow cannot be asked or told; the next call goes on where this one stopped.
            OSError: the disk is full or not writable; what is published still stands.
        """
        steps = [self._reconcile(channel) for channel in self._wanted.channels]
        return any(steps)

    def _reconcile(self, name: str) -> bool:
        version = self._registry.promoted(name)
        if version is None:
            if self._judged.get(name) != "":
                log.info(
                    "%s: no version of %s has this alias; waiting for a person to set it", name, self._registry.model
                )
            self._judged[name] = ""
            return False
        channel = self._repository.channel(name)
        limits = self._wanted.limits()
        published = self._repository.passports(version.release_id) if version.release_id else {}
        asked_anew = self._judged.get(name, version.number) != version.number
        targets = gates.targets_for(self._wanted.targets, version.tags)
        step = decide(version, channel, list(published), targets, self._text(limits), asked_anew)
        if step is Step.BUILD:
            log.info("%s: version %s is promoted, judging it", name, version.number)
            self._build(name, version, [t for t in targets if t not in published], limits)
        elif step is Step.POINT:
            self._publish(name, version, Candidate({}, []))
        elif step is Step.FINISH and channel:
            self._report_released(channel, version)
        self._judged[name] = version.number
        return step is not Step.NOTHING

    def _build(self, name: str, version: Version, targets: Sequence[str], limits: GateParams) -> None:
        seen_at = _now()
        self._registry.tag(version, {"release.status": "pending"})
        try:
            candidate = prepare(self._registry, version, targets, limits, approved_at=seen_at, now=_now())
        except Refused as refusal:
            self._refuse(name, version, refusal, limits)
        else:
            self._publish(name, version, candidate)

    def _publish(self, name: str, version: Version, candidate: Candidate) -> None:
        before = self._repository.channel(name)
        new = {path.split("/")[2]: path for path in candidate.files if path.endswith("/passport.json")}
        channel = Channel(
            channel=name,
            sequence=before.sequence + 1 if before else 1,
            release_id=version.release_id,
            model_version=version.number,
            passports=self._repository.passports(version.release_id) | new,
            issued_at=_now(),
        )
        self._repository.publish(candidate.files, [channel])
        log.info("%s: %s is published (sequence %d)", name, channel.release_id, channel.sequence)
        self._ring(channel)
        self._report_released(channel, version)

    def _report_released(self, channel: Channel, version: Version) -> None:
        judged = self._gates_of(channel)
        self._history.add(
            Entry(
                issued_at=channel.issued_at,
                channel=channel.channel,
                version=version.number,
                status="released",
                release_id=channel.release_id,
                sequence=channel.sequence,
            )
        )
        self._registry.describe(version, _released_text(channel, judged))
        self._registry.tag(
            version,
            {
                **gates.as_tags(judged),
                "release.id": channel.release_id,
                "release.reason": None,
                "release.limits": None,
                "release.status": "released",
            },
        )

    def _refuse(self, name: str, version: Version, refusal: Refused, limits: GateParams) -> None:
        log.warning("%s: version %s is refused: %s", name, version.number, refusal)
        running = self._repository.channel(name)
        self._history.add(
            Entry(
                issued_at=_now(),
                channel=name,
                version=version.number,
                status="refused",
                release_id=version.release_id,
                reason=str(refusal),
            )
        )
        advice = _advice(refusal)
        self._registry.describe(version, _refused_text(name, running, refusal, advice))
        self._registry.tag(
            version,
            {
                **gates.as_tags(refusal.gates),
                "release.reason": f"{refusal}. {advice}",
                "release.limits": self._text(limits),
                "release.status": "refused",
            },
        )

    def _gates_of(self, channel: Channel) -> list[GateResult]:
        """All gates that the engines of a channel passed, each once."""
        passports = [self._repository.passport(path) for path in channel.passports.values()]
        return list({gate.name: gate for passport in passports for gate in passport.gates}.values())

    def _text(self, limits: GateParams) -> str:
        return gates.as_text(limits, self._wanted.targets)


def _advice(refusal: Refused) -> str:
    if not refusal.gates:
        return "Set the alias on the new version then."
    return (
        "Train a better model and set the alias on its version, or change `gates` in params.yaml; "
        "to have this one judged again as it is, delete its tag release.status"
    )


def _released_text(channel: Channel, judged: Sequence[GateResult]) -> str:
    lines = [
        f"**Released** on `{channel.channel}` as `{channel.release_id}` (sequence {channel.sequence}, "
        f"{channel.issued_at}), for {', '.join(sorted(channel.passports))}. Robots of that ring take it when they next "
        f"look. To go back, set the alias `{channel.channel}` on an earlier version.",
        "",
        *(f"- {gate.name}: {gate.detail}" for gate in judged),
    ]
    return "\n".join(lines)


def _refused_text(name: str, running: Channel | None, refusal: Refused, advice: str) -> str:
    keep = f"keep `{running.release_id}`" if running else "have no model yet"
    return f"**Refused** for `{name}` ({_now()}): {refusal}.\n\nThe robots {keep}. {advice}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
