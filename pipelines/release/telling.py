"""Tells MLflow, and so the person who set the alias, what became of a version: tags and a note in its description."""

from collections.abc import Sequence

from pipelines.release import gates
from pipelines.release.journal import Attempt, State
from pipelines.release.registry import Registry, Version
from serving.contracts.releases import Channel, GateResult, Override

# Tags that say how it ended. Where another one stands, or none, on a version that a ring runs, it is told anew.
TOLD = (State.RELEASED.value, State.REFUSED.value, State.WITHDRAWN.value, "rolled-back")


def under_way(registry: Registry, version: Version, state: State, reason: str | None = None) -> None:
    """Marks a version as being worked on.

    Raises:
        OperatorError: MLflow cannot be told.
    """
    registry.tag(version, {"release.reason": reason, "release.status": state.value})


def released(
    registry: Registry,
    version: Version,
    channel: Channel,
    judged: Sequence[GateResult],
    overrides: Sequence[Override],
) -> None:
    """Tells that the robots get it.

    Raises:
        OperatorError: MLflow cannot be told.
    """
    registry.describe(version, _released_text(channel, judged, overrides))
    registry.tag(
        version,
        {
            **gates.as_tags(judged, overrides),
            "release.id": channel.release_id,
            "release.reason": None,
            "release.status": State.RELEASED.value,
        },
    )


def ended(registry: Registry, version: Version, attempt: Attempt, running: Channel | None) -> None:
    """Tells that it was refused, superseded or withdrawn, and what to do.

    Args:
        running: what the ring runs now.

    Raises:
        OperatorError: MLflow cannot be told.
    """
    if attempt.state is State.SUPERSEDED and version.status in TOLD:
        return  # of another attempt or ring, and it says more
    advice = _advice(attempt)
    keep = f"keep `{running.release_id}`" if running else "have no model yet"
    said = {State.REFUSED: "Refused", State.SUPERSEDED: "Not released", State.WITHDRAWN: "Withdrawn"}[attempt.state]
    text = (
        f"**{said}** for `{attempt.channel}` ({attempt.changed_at}): {attempt.reason}.\n\nThe robots {keep}. {advice}"
    )
    registry.describe(version, text)
    judged = gates.as_tags(attempt.gates, attempt.overrides) if attempt.state is State.REFUSED else {}
    registry.tag(
        version,
        {**judged, "release.reason": f"{attempt.reason}. {advice}", "release.status": attempt.state.value},
    )


def _advice(attempt: Attempt) -> str:
    if attempt.state is State.SUPERSEDED:
        return f"Set the alias `{attempt.channel}` on it again to have it released."
    if attempt.state is State.WITHDRAWN or not attempt.gates:
        return "Set the alias on a new version then."
    advice = (
        "Train a better model and set the alias on its version, or change `gates` in params.yaml; "
        "to have this one judged again as it is, delete its tag release.status"
    )
    failed = [gate.name for gate in attempt.gates if not gate.passed]
    if failed and all(gates.overridable(name) for name in failed):
        advice += f"; an approver may decide otherwise: `jetloop release override {attempt.version} --gate {failed[0]}`"
    return advice


def _released_text(channel: Channel, judged: Sequence[GateResult], overrides: Sequence[Override]) -> str:
    decided = [
        f"- **{one.by}** decided on {one.decided_at} that it is released although it fails `{one.gate}`: {one.reason}"
        for one in overrides
    ]
    when = "when they next look"
    if channel.rollout is not None:
        when = f"share by share; while it is not on all, the tag `release.rollout.{channel.channel}` says how far it is"
    lines = [
        f"**Released** on `{channel.channel}` as `{channel.release_id}` (sequence {channel.sequence}, "
        f"{channel.issued_at}), for {', '.join(sorted(channel.passports))}. Robots of that ring take it {when}. "
        f"To go back, set the alias `{channel.channel}` on an earlier version.",
        "",
        *decided,
        *(f"- {gate.name}: {gate.detail}" for gate in judged),
    ]
    return "\n".join(lines)
