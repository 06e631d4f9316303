"""The reports of the robots, as a rollout needs them: read from the event store, judged against the release before."""

import datetime
import time
from typing import TYPE_CHECKING

from pipelines.params import RolloutParams
from pipelines.release.rollout_health import Verdict, judge
from serving.contracts.releases import Channel, rollout_place

if TYPE_CHECKING:
    from telemetry.health import Seen

_BEFORE = datetime.timedelta(days=7)  # how far back the release before is looked at
_BEFORE_EVERY_S = 300.0  # that is a large part of the store, and changes little


class Reports:
    """What the robots told; one thread.

    Args:
        url: of the collector's store, as SQLAlchemy spells it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._before: dict[str, tuple[int, float, list[Seen]]] = {}  # channel -> sequence, time.monotonic(), seen

    def verdict(self, channel: Channel, params: RolloutParams) -> Verdict:
        """On the release of a channel, since this step of it began.

        Raises:
            OperatorError: the store does not answer.
        """
        from telemetry import health  # imports sqlalchemy; most services have no store
        from telemetry.store import open_reader

        since = datetime.datetime.fromisoformat(channel.issued_at)
        name, rollout = channel.channel, channel.rollout
        store = open_reader(self._url)
        try:
            sequence, read_s, before = self._before.get(name, (0, 0.0, []))
            if sequence != channel.sequence or time.monotonic() - read_s > _BEFORE_EVERY_S:
                previous = rollout.previous if rollout else None
                before = health.seen(store, previous.release_id, since - _BEFORE) if previous else []
                self._before[name] = channel.sequence, time.monotonic(), before
            new = health.seen(store, channel.release_id, since)
            online = health.online(store, name)
        finally:
            store.close()
        share = rollout.share if rollout else 1.0
        expected = sum(rollout_place(robot, channel.release_id) < share for robot in online)
        return judge(new, before, expected, params)
