"""A robot that floods: the others do not wait, nothing acknowledged is lost, and its order stays."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.errors import OperatorError
from telemetry.fair import FairSink
from telemetry.mqtt_inlet import Received
from telemetry.spool import Spool, robot_of
from tests.bench.telemetry_rig import Mosquitto
from tests.conftest import ROOT, need, wait_for
from tests.test_telemetry_collector import Bench
from tests.test_telemetry_samples import event, published


class Memory:
    """An inner sink that stores at random moments, and fails at some."""

    def __init__(self, store: list[tuple[str, bytes]], chance: random.Random) -> None:
        self.store, self._chance, self._batch, self._mids = store, chance, list[Received](), list[int]()

    def take(self, message: Received) -> None:
        self._batch.append(message)
        self._mids.append(message.mid)

    def room(self) -> int:
        return 20 - len(self._batch)

    def wait_s(self) -> float:
        return 0.0

    def settle(self) -> Sequence[int]:
        chance = self._chance.random()
        if chance < 0.05:
            raise OperatorError("the store does not work")
        return self.finish() if chance < 0.5 else ()

    def finish(self) -> Sequence[int]:
        self.store += [(one.topic, one.payload) for one in self._batch]
        mids, self._batch, self._mids = self._mids, [], []
        return mids

    def connection_ended(self) -> None:
        self._mids = []


def _topic(robot: str) -> str:
    return f"jetloop/v1/lab/{robot}/event/collision"


@pytest.mark.parametrize("seed", range(20))
def test_nothing_acknowledged_is_lost_whenever_it_is_killed(tmp_path: Path, seed: int) -> None:
    """Killed, cut off or refused by the store at random steps: all is stored, in each robot's order."""
    chance = random.Random(seed)
    sent = [(_topic("loud" if at % 5 else f"r{at % 3}"), b"%d" % at) for at in range(400)]
    waiting = list(enumerate(sent, 1))  # at the broker: not acknowledged
    store: list[tuple[str, bytes]] = []
    while waiting:
        spool = Spool(tmp_path, max_bytes=4000)
        sink = FairSink(Memory(store, chance), spool, share_per_s=3)
        upto = 0  # of what waits, handed out on this connection
        while waiting and chance.random() > 0.01:
            try:
                for mid, (topic, payload) in waiting[upto : upto + min(sink.room(), chance.randint(0, 8))]:
                    sink.take(Received(topic, payload, mid))
                    upto += 1
                acknowledged = list(sink.settle())
            except OperatorError:
                sink.connection_ended()
                upto = 0
                continue
            assert acknowledged == [mid for mid, _ in waiting[: len(acknowledged)]]  # in the order in which they came
            waiting, upto = waiting[len(acknowledged) :], upto - len(acknowledged)
        spool.close()  # as a kill does; nothing else is done
    rest = Spool(tmp_path)
    sink = FairSink(Memory(store, random.Random(1)), rest)
    while len(rest):
        try:
            sink.settle()
        except OperatorError:
            sink.connection_ended()
    once = list(dict.fromkeys(store))  # the store keeps the first of each
    assert sorted(once) == sorted(sent)
    for robot in ("loud", "r0", "r1", "r2"):
        assert [one for one in once if one[0] == _topic(robot)] == [one for one in sent if one[0] == _topic(robot)]
    assert (rest.bytes, sum(file.stat().st_size for file in tmp_path.glob("*.spool"))) == (0, 0)


def test_a_torn_end_is_cut_and_damage_is_said(tmp_path: Path) -> None:
    """What was not written to its end was not acknowledged, so it goes; damage before that stops with its place."""
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(_topic("loud"), b"%d" % number)
    spool.sync()
    with pytest.raises(OperatorError, match="used by another"):
        Spool(tmp_path)
    spool.close()
    (file,) = tmp_path.glob("*.spool")
    whole = file.read_bytes()
    for cut in range(len(whole) * 2 // 3 + 1, len(whole)):
        file.write_bytes(whole[:cut])
        spool = Spool(tmp_path)
        assert [one.payload for one in spool.take(9)] == [b"0", b"1"]
        spool.close()
    file.write_bytes(whole[:20] + b"?" + whole[21:])
    (tmp_path / f"{2:012d}.spool").write_bytes(whole)
    with pytest.raises(OperatorError, match="damaged at byte 0"):
        Spool(tmp_path)


def test_a_full_spool_takes_nothing_more(tmp_path: Path) -> None:
    """The spool is bounded: full, it lets nobody in until something of it is stored."""
    sink = FairSink(Memory([], random.Random(2)), Spool(tmp_path, max_bytes=1000), share_per_s=1)
    mid = 0
    while sink.room():
        mid += 1
        sink.take(Received(_topic("loud"), b"x" * 90, mid))
        if mid % 5 == 0:
            sink._write()
    assert mid < 12
    while not sink.room():
        sink.settle()
    assert robot_of(_topic("loud")) == "lab/loud"


def test_kill_9_in_a_flood_loses_nothing(tmp_path: Path) -> None:
    """The collector is killed twice while it puts a flood aside: all events are stored, none twice."""
    need("mosquitto")
    broker = Mosquitto(tmp_path / "broker")  # queues without a limit, as a fleet's does
    bench = Bench(tmp_path, broker.port)
    try:
        first = bench.collect()
        messages = [published(event(number)) for number in range(1, 12_001)]
        for topic, payload in messages:
            bench.publisher.publish(topic, payload, 1)
        wait_for(lambda: "floods, with over" in bench.text(), what="the flood logged")
        os.killpg(first.pid, signal.SIGKILL)
        second = bench.collect()
        bench.wait_stored(4000)
        os.killpg(second.pid, signal.SIGKILL)
        bench.collect()
        bench.wait_stored(12_000)
        wait_for(lambda: "nothing of lab/jetbot-1 waits" in bench.text(), what="the end of the flood logged")
        store = bench.store()
        assert store.count() == 12_000
        assert store.gaps(from_first=True) == []
    finally:
        bench.close()
        broker.close()


@pytest.mark.alone
def test_the_others_do_not_wait_for_a_flood(tmp_path: Path) -> None:
    """Beside one robot that floods by three connections the other robots' events are stored soon.

    The median: without a spool it is seconds. The p99 of a hundred events is one slow write of the disk, and the
    benchmark's to judge.
    """
    need("mosquitto")
    target = tmp_path / "flood.json"
    command = [sys.executable, "-m", "tests.bench.flood", "--seconds", "4", "--connections", "3", "--measure-only"]
    done = subprocess.run(
        [*command, "--to", str(target)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    (flood,) = json.loads(target.read_text())["floods"]
    assert flood["lost"] == 0
    assert flood["acknowledged_events_per_s"] > 1000
    assert flood["others"]["p50_ms"] < 500
