"""Rollouts as the release service runs them: orders of people and reports of robots in, signed channel files out.

The rules are rollout.py's and rollout_health.py's; this reads the event store, publishes, and notes what was done.
Everything goes through `advance`, called at each look of the service, from its one thread.
"""

import datetime
import logging
import time
from collections.abc import Callable

from pipelines.params import RolloutParams
from pipelines.release import rollout, rollout_table
from pipelines.release.repository import Repository
from pipelines.release.rollout import Move
from pipelines.release.rollout_health import Outcome, Verdict
from pipelines.release.rollout_reports import Reports
from pipelines.release.rollout_table import Look, Order, RolloutTable, Step
from serving.contracts.releases import Channel
from serving.errors import OperatorError, RejectedError

log = logging.getLogger(__name__)

CANARY = "canary"
_LOOK_EVERY_S = 10.0  # as often as robots tell their metrics


class Rollouts:
    """The rollouts of one release folder.

    Args:
        repository: where channels are read and published.
        table: what is remembered.
        params: the block `rollout`, read anew each time.
        reports: None where no event store is configured: releases then go to all robots at once.
        ring: wakes the robots of a channel.
    """

    def __init__(
        self,
        repository: Repository,
        table: RolloutTable,
        params: Callable[[], RolloutParams],
        reports: Reports | None,
        ring: Callable[[Channel], None],
    ) -> None:
        self._repository, self._table, self._params = repository, table, params
        self._reports, self._ring = reports, ring
        self._looked_s: dict[tuple[str, int], float] = {}  # (channel, sequence) -> time.monotonic() of the last look
        self._said: dict[str, str] = {}

    def begin(self, channel: Channel, before: Channel | None) -> Channel:
        """The channel file that a release begins with.

        Args:
            channel: what the alias asks for.
            before: what the ring runs now.

        Raises:
            OperatorError: the table cannot be written.
        """
        at_once = ""
        if channel.channel == CANARY:
            at_once = "the canary ring takes a release as a whole"
        elif self._reports is None:
            at_once = "no --store is given, so nobody sees how the robots do: to all at once"
        elif self._table.has_completed(channel.channel, channel.release_id):
            at_once = "all robots ran it before"
        move = rollout.begin(channel, before, self._params().steps, at_once)
        previous = move.channel.rollout.previous if move.channel.rollout else None
        if previous is not None and before is not None:
            reason = f"it was followed by {channel.release_id}"
            self._table.note(
                Step(channel.issued_at, channel.channel, before.sequence, previous.release_id, "complete", reason)
            )
        self._note(move)
        return move.channel

    def advance(self, name: str) -> bool:
        """Does what people ordered and what the reports of the robots ask for; whether anything was published.

        Raises:
            OperatorError: the table or the repository cannot be used.
            OSError: the disk is full or not writable; what is published still stands.
        """
        channel = self._repository.channel(name)
        if channel is None:
            return False
        orders = self._table.orders(name)
        for order in orders:
            self._obey(order)
        if orders:
            return True
        move = self._by_reports(channel)
        if move is not None:
            self._publish(move)
        return move is not None

    def held(self, name: str, release_id: str) -> str:
        """Why a release may not be published on a channel yet, and what to do; empty when it may."""
        if name == CANARY or not self._params().canary_first or self._table.has_completed(name, release_id):
            return ""
        reason = self._not_proven(release_id, self._repository.channel(CANARY))
        return f"rollout.canary_first: {reason}" if reason else ""

    def tags(self, name: str, release_id: str) -> dict[str, str | None]:
        """What the version behind a release shall say of its rollout, as tags; None: no such tag."""
        channel, tag = self._repository.channel(name), f"release.rollout.{name}"
        if channel is None or channel.release_id != release_id or channel.release_id in channel.withdrawn:
            return {tag: None}
        if channel.rollout is None or (rollout.is_whole(channel) and not channel.rollout.paused):
            return {tag: None}
        share = f"{channel.rollout.share:.0%} of the robots"
        if channel.rollout.paused:
            todo = "`jetloop release resume`, `withdraw` or `promote` go on"
            return {tag: f"paused at {share}: {self._reason(channel)}. {todo}"[:500]}
        return {tag: f"{share} since {channel.issued_at}"}

    def why_withdrawn(self, name: str, release_id: str) -> str:
        """Why a release was withdrawn from a channel, in one line; empty where it is not known any more."""
        steps = self._table.steps(name, 200)
        found = (step.reason for step in steps if (step.release_id, step.status) == (release_id, "withdrawn"))
        return next(found, "")

    # Orders

    def _obey(self, order: Order) -> None:
        channel = self._repository.channel(order.channel)
        assert channel is not None
        try:
            move = obey(order, channel, rollout_table.now())
        except RejectedError as problem:
            log.warning("%s %s, asked for by %s: %s", order.kind, order.release_id, order.who, problem)
            self._table.answer(order, f"refused: {problem}")
            return
        self._publish(move)
        self._table.answer(order, f"done with sequence {move.channel.sequence}")

    # Reports

    def _by_reports(self, channel: Channel) -> Move | None:
        name, params = channel.channel, self._params()
        if not rollout.is_watched(channel) or not self._is_due((name, channel.sequence), params):
            return None
        if self._reports is None:
            if channel.rollout is not None and channel.rollout.share < 1:
                share = f"{channel.rollout.share:.0%}"
                self._say(name, f"{channel.release_id} stays at {share}: without --store nobody sees how it does")
            return None
        if rollout.is_whole(channel) and self._table.has_completed(name, channel.release_id):
            return None
        verdict = self._verdict(channel, self._reports, params)
        age = rollout.age_s(channel, datetime.datetime.now(datetime.timezone.utc))
        if rollout.is_whole(channel) and verdict.outcome is Outcome.HEALTHY and age >= params.step_min_s:
            self._table.note(_step(channel, "complete", verdict.text))
            log.info("%s: %s is complete: %s", name, channel.release_id, verdict.text)
            return None
        return rollout.advance(channel, verdict, age, params, rollout_table.now())

    def _verdict(self, channel: Channel, reports: Reports, params: RolloutParams) -> Verdict:
        try:
            verdict = reports.verdict(channel, params)
        except OperatorError as problem:  # the rollout waits; releasing goes on
            self._say(channel.channel, f"the robots' reports cannot be read, so the rollout waits: {problem}")
            verdict = Verdict(Outcome.NOT_ENOUGH, str(problem))
        else:
            self._said.pop(channel.channel, None)
        look = Look(rollout_table.now(), channel.channel, channel.release_id, verdict.outcome.value, verdict.text)
        self._table.saw(look)
        return verdict

    def _is_due(self, step: tuple[str, int], params: RolloutParams) -> bool:
        now_s, every_s = time.monotonic(), min(_LOOK_EVERY_S, params.step_min_s / 4)
        if now_s - self._looked_s.get(step, -every_s) < every_s:
            return False
        self._looked_s[step] = now_s
        return True

    def _not_proven(self, release_id: str, canary: Channel | None) -> str:
        """Why the canary ring has not shown that a release is good; empty when it has."""
        params = self._params()
        if self._reports is None:
            return "the service sees no reports: start it with --store, or set canary_first to false"
        if canary is None or canary.release_id != release_id:
            return "set the alias canary on this version first; champion follows by itself when it did well there"
        if release_id in canary.withdrawn:
            return f"it was withdrawn on canary: {self._reason(canary)}"
        if canary.rollout is not None and canary.rollout.paused:
            return f"it is paused on canary: {self._reason(canary)}"
        until = datetime.datetime.fromisoformat(canary.issued_at) + datetime.timedelta(seconds=params.canary_min_s)
        if until > datetime.datetime.now(datetime.timezone.utc):
            return f"it must do well on canary until {until:%Y-%m-%d %H:%M:%S} UTC; champion follows by itself"
        if self._table.has_completed(CANARY, release_id):
            return ""
        return "its reports from canary do not show yet that it does well; `jetloop release status` has them"

    # Publishing and telling

    def _publish(self, move: Move) -> None:
        """Signs the new channel file; then notes it, so that what is noted has happened."""
        self._repository.publish({}, [move.channel])
        self._note(move)
        self._ring(move.channel)

    def _note(self, move: Move) -> None:
        channel = move.channel
        level = logging.WARNING if move.status in ("paused", "withdrawn") else logging.INFO
        log.log(level, "%s: %s: %s: %s", channel.channel, channel.release_id, move.status, move.reason)
        release = channel.withdrawn[-1] if move.status == "withdrawn" else channel.release_id
        self._table.note(_step(channel, move.status, move.reason, release))

    def _reason(self, channel: Channel) -> str:
        """Why a channel is as it is."""
        steps = self._table.steps(channel.channel)
        return next((step.reason for step in steps if step.sequence == channel.sequence), "not known any more")

    def _say(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            log.warning("%s: %s", about, text)


def obey(order: Order, channel: Channel, issued_at: str) -> Move:
    """What an order makes of a channel.

    Raises:
        RejectedError: it asks for nothing that can be done.
    """
    if order.kind == "withdraw":
        return rollout.withdraw(channel, order.release_id, issued_at, f"by {order.who}")
    if order.release_id != channel.release_id:
        raise RejectedError(f"meanwhile {channel.channel} runs {channel.release_id}, the order was for another release")
    rules = {"pause": rollout.pause, "resume": rollout.resume, "promote": rollout.promote}
    return rules[order.kind](channel, issued_at, f"by {order.who}")


def _step(channel: Channel, status: str, reason: str, release_id: str = "") -> Step:
    return Step(
        rollout_table.now(), channel.channel, channel.sequence, release_id or channel.release_id, status, reason
    )
