"""The link over bad lines: slow, refusing, silent, breaking; how fast it sends, and how long it keeps what it sent."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import mqtt_connection
from serving.config import MqttSettings
from serving.mqtt import Link
from serving.outbox import Draft, Outbox
from serving.reporter import Reporter
from serving.settling import Pace, Settling
from tests.conftest import Address, wait_for
from tests.simulators.cable import Cable
from tests.test_link_parts import Listener


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db", 100 << 20)
    yield box
    box.close()


def report(outbox: Outbox, count: int) -> None:
    reporter = Reporter(outbox, "lab", "r1", "s1")
    for number in range(count):
        reporter.emit("collision", {"number": number})
    reporter.close()


def linked(outbox: Outbox, port: int, **settings: object) -> Link:
    chosen = {"host": "127.0.0.1", "port": port, "reconnect_max_s": 0.3, "settle_s": 0} | settings
    link = Link(MqttSettings(**chosen), outbox, "lab", "r1", "s1", "champion", lambda: None)
    link.start()
    return link


def listening(port: int) -> Listener:
    listener = Listener(port)
    wait_for(lambda: listener.subscriptions, what="the listener's subscription")
    return listener


def numbers(listener: Listener) -> list[int]:
    return [event.sequence for event in listener.events()]


def test_a_slow_broker_gets_a_window_at_a_time(mosquitto: Address, outbox: Outbox) -> None:
    """Behind a line whose answers take 100 ms, never more than the window is under way, and all arrives in order."""
    cable = Cable(mosquitto.port)
    cable.delay_s = 0.1
    listener = listening(mosquitto.port)
    report(outbox, 100)
    link = linked(outbox, cable.port, max_in_flight=10)
    most = 0
    while outbox.depth():
        most = max(most, len(listener.events()) - (100 - outbox.depth()))
    wait_for(lambda: len(listener.events()) == 100, what="all events")
    assert most <= 10 + 10  # under way, and acknowledged but not yet forgotten
    assert numbers(listener) == list(range(1, 101))
    link.stop()
    cable.cut()
    listener.close()


def test_a_line_that_breaks_all_the_time_loses_nothing(mosquitto: Address, outbox: Outbox) -> None:
    """Cut every 100 ms while 1500 events drain: all arrive, first arrivals in order."""
    cable = Cable(mosquitto.port)
    listener = listening(mosquitto.port)
    report(outbox, 1500)
    link = linked(outbox, cable.port, reconnect_max_s=0.05, max_events_per_s=2000)
    cuts = 0
    while outbox.depth():
        time.sleep(0.1)  # how long the line holds
        cable.cut()
        cable.mend()
        cuts += 1
    wait_for(lambda: len(set(numbers(listener))) == 1500, what="all events")
    assert list(dict.fromkeys(numbers(listener))) == list(range(1, 1501))
    assert cuts > 3
    link.stop()
    cable.cut()
    listener.close()


def test_a_broker_that_says_nothing_is_left(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What accepts the connection and never answers CONNECT is left in time, and tried again; stop() does not hang."""
    monkeypatch.setattr(mqtt_connection, "_CONNACK_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = linked(outbox, silent.getsockname()[1], reconnect_max_s=0.05)
        accepted = [silent.accept()[0] for _ in range(3)]  # kept, so that they stay open
        assert "does not answer CONNECT" in caplog.text
        begun_s = time.monotonic()
        link.stop(0.5)
        assert time.monotonic() - begun_s < 1.6
        for connection in accepted:
            connection.close()


def test_what_waited_is_sent_at_a_limited_rate(mosquitto: Address, outbox: Outbox) -> None:
    """300 events at 200 a second take a second and a half, evenly; a new event is not held up when nothing waits."""
    listener = listening(mosquitto.port)
    report(outbox, 300)
    link = linked(outbox, mosquitto.port, max_events_per_s=200)
    wait_for(lambda: listener.events(), what="the first event")
    begun_s, first = time.monotonic(), len(listener.events())
    wait_for(lambda: len(listener.events()) == 300, what="all events")
    rate = (300 - first) / (time.monotonic() - begun_s)
    assert 150 < rate < 215
    assert numbers(listener) == list(range(1, 301))
    begun_s = time.monotonic()
    report(outbox, 1)
    wait_for(lambda: len(listener.events()) == 301, what="one more")
    assert time.monotonic() - begun_s < 0.5
    link.stop()
    listener.close()


def test_a_pace_is_kept_and_no_burst_is_saved_up() -> None:
    """After a pause a twentieth of a second's share goes at once, not all that could have gone."""
    pace = Pace(1000)
    time.sleep(0.3)  # a pause
    at_once = 0
    while pace.wait_s() == 0 and at_once < 1000:
        pace.took_one()
        at_once += 1
    assert 50 <= at_once <= 100  # a slow machine may see the next slot begin
    assert 0 < pace.wait_s() <= 0.05


def ids_of(outbox: Outbox) -> list[int]:
    return [message.id for message in outbox.batch(100)]


def test_an_acknowledged_event_leaves_once_it_has_settled(outbox: Outbox) -> None:
    """It stays settle_s in the outbox; what had not settled when the connection ended is sent again; the fifth
    acknowledgement is believed."""
    outbox.put([Draft("event", "t", lambda number: b"%d" % number) for _ in range(4)])
    first, second, third, fourth = ids_of(outbox)
    quick = Settling(outbox, 0.2)
    quick.acknowledged(first)
    quick.forget_settled()
    assert ids_of(outbox) == [first, second, third, fourth]
    wait_for(lambda: (quick.forget_settled(), outbox.depth() == 3)[1], what="settling")

    slow = Settling(outbox, 3600)
    for _ in range(4):
        slow.acknowledged(second)
        slow.connection_ended()
    assert ids_of(outbox) == [second, third, fourth]
    slow.acknowledged(second)
    slow.connection_ended()
    assert ids_of(outbox) == [third, fourth]
