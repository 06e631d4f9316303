"""The link against real brokers, Mosquitto and the embedded amqtt: at least once, in order, whatever breaks."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.backoff import backoff_s
from serving.config import MqttSettings
from serving.contracts.events import RobotState, utc_now, wakeup_topic
from serving.errors import OperatorError
from serving.mqtt import Link
from serving.outbox import Draft, Outbox
from serving.reporter import Reporter
from tests.conftest import ROOT, end, free_port, listens, need, start, wait_for
from tests.simulators.cable import Cable
from tests.test_link_parts import Listener, program


class Broker:
    """A real broker in its own process, on one port over restarts."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "broker.log"
        if kind == "mosquitto":
            configuration = folder / "broker.conf"
            configuration.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
            self._command = [need("mosquitto"), "-c", str(configuration)]
        else:
            self._command = [sys.executable, "-m", "pipelines.cli", "broker", "--port", str(self.port)]
        self.begin()

    def begin(self) -> None:
        self._process = start(self._command, self._log, cwd=ROOT)
        try:
            wait_for(lambda: listens(self.port), what=f"the broker listening ({self._log})")
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        end(self._process)


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    running = Broker(request.param, tmp_path)
    yield running
    running.close()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db", 100 << 20)
    yield box
    box.close()


Linker = Callable[..., Link]


@pytest.fixture
def link_to(outbox: Outbox) -> Iterator[Linker]:
    """Starts links of robot r1, and ends them with the test."""
    links: list[Link] = []

    def make(port: int, on_wakeup: Callable[[], None] = lambda: None, **settings: object) -> Link:
        chosen = MqttSettings(
            **{"host": "127.0.0.1", "port": port, "reconnect_max_s": 0.5, "settle_s": 0, "max_events_per_s": 1e5}
            | settings
        )
        links.append(Link(chosen, outbox, "lab", "r1", "s1", "champion", on_wakeup))
        links[-1].start()
        return links[-1]

    yield make
    for link in links:
        link.stop(0.2)


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    hearing = Listener(broker.port)
    wait_for(lambda: hearing.subscriptions, what="the listener's subscription")
    yield hearing
    hearing.close()


def report(outbox: Outbox, count: int) -> None:
    reporter = Reporter(outbox, "lab", "r1", "s1")
    for number in range(count):
        reporter.emit("metrics" if number % 3 == 0 else "collision", {"number": number})
    reporter.close()


def unchanged_for(seconds: float, look: Callable[[], object]) -> Callable[[], bool]:
    """A condition for wait_for: what `look` gives has been the same for so long."""
    seen, since = look(), time.monotonic()

    def settled() -> bool:
        nonlocal seen, since
        now = look()
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    return settled


def first_arrivals(listener: Listener) -> list[int]:
    return list(dict.fromkeys(event.sequence for event in listener.events()))


def test_the_outbox_drains_in_order(broker: Broker, outbox: Outbox, link_to: Linker, listener: Listener) -> None:
    """Everything that waited arrives once and in order, stamped with the time it was sent, and leaves the outbox."""
    report(outbox, 300)
    link_to(broker.port)
    wait_for(lambda: outbox.depth() == 0, what="the outbox being empty")
    wait_for(lambda: len(listener.events()) >= 300, what="300 events")
    events = listener.events()
    assert [event.sequence for event in events] == list(range(1, 301))
    assert all(event.sentat is not None and event.sentat >= event.time for event in events)
    assert {message.topic for message in listener.messages} == {
        "jetloop/v1/lab/r1/metrics",
        "jetloop/v1/lab/r1/event/collision",
    }


def test_a_new_event_does_not_wait(broker: Broker, outbox: Outbox, link_to: Linker, listener: Listener) -> None:
    """With a connection that is up, an event is heard in a fraction of a second after it happened."""
    link = link_to(broker.port)
    link.publish_state(state("driving"))
    wait_for(lambda: listener.states(), what="the connection")
    reporter = Reporter(outbox, "lab", "r1", "s1")
    started = time.monotonic()
    reporter.emit("collision")
    wait_for(lambda: listener.events(), what="the event")
    assert time.monotonic() - started < 0.4
    reporter.close()


def test_a_broker_that_dies_in_the_middle_loses_nothing(
    broker: Broker, outbox: Outbox, link_to: Linker, listener: Listener
) -> None:
    """The wire is cut in the middle of a drain, with answers lost on it; the broker is killed and started again:
    every event is heard at least once, first arrivals in order."""
    report(outbox, 2000)
    cable = Cable(broker.port)
    link_to(cable.port)
    wait_for(lambda: len(listener.events()) > 200, what="the drain being under way")
    cable.deaf = True
    wait_for(unchanged_for(0.5, lambda: (len(listener.events()), outbox.depth())), what="the window being full")
    assert len(listener.events()) == 2000 - outbox.depth() + 20  # heard, but their acknowledgement was lost
    cable.cut()
    wait_for(lambda: len(set(first_arrivals(listener))) >= 2000 - outbox.depth(), what="what was acknowledged")
    assert 0 < outbox.depth() < 2000
    broker.kill()
    broker.begin()
    wait_for(lambda: listener.subscriptions == 2, what="the listener's new subscription")
    cable.mend()
    wait_for(lambda: outbox.depth() == 0, what="the outbox being empty")
    wait_for(lambda: len(first_arrivals(listener)) == 2000, what="2000 events")
    assert first_arrivals(listener) == list(range(1, 2001))
    assert len(listener.events()) > 2000
    ids = {event.sequence: event.id for event in listener.events()}
    assert all(ids[event.sequence] == event.id for event in listener.events())
    cable.cut()


def test_a_robot_that_is_killed_loses_nothing(broker: Broker, listener: Listener, tmp_path: Path) -> None:
    """A process that reports and sends is killed with SIGKILL, three times: every number it said was committed is
    heard, and the last will says offline each time."""
    path = tmp_path / "robot.db"
    said = 0
    for round_number in range(1, 4):
        process = subprocess.Popen(
            program(f"report_forever({str(path)!r}, {broker.port})"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            heard = len(listener.events())
            first = process.stdout.readline()
            wait_for(lambda heard=heard: len(listener.events()) > heard + 50, what="events of this round")
            process.kill()
            said = int([first, *process.stdout.read().splitlines()][-1])
        finally:
            process.stdout.close()
            end(process)
        wait_for(lambda n=round_number: len(listener.states()) >= n, what="the last will")
        assert not listener.states()[-1].online
        assert listener.states()[-1].reason == "connection lost"
    rest = Outbox(path, 100 << 20)
    link = Link(
        MqttSettings(host="127.0.0.1", port=broker.port, settle_s=0), rest, "lab", "r1", "s2", "champion", lambda: None
    )
    link.start()
    wait_for(lambda: rest.depth() == 0, what="the rest being sent")
    wait_for(lambda: set(first_arrivals(listener)) >= set(range(1, said + 1)), what=f"all {said} events")
    link.stop()
    assert first_arrivals(listener) == sorted(first_arrivals(listener))


def state(mode: str) -> RobotState:
    return RobotState(site="lab", robot="r1", session="s1", online=True, at=utc_now(), mode=mode)


def test_the_state_is_retained_and_a_clean_stop_says_offline(
    broker: Broker, outbox: Outbox, link_to: Linker, listener: Listener
) -> None:
    """The newest state is kept by the broker for whoever comes later; stop() sends what waits and says `stopped`."""
    link = link_to(broker.port)
    link.publish_state(state("loading"))
    wait_for(lambda: [s.mode for s in listener.states()][-1:] == ["loading"], what="the first state")
    link.publish_state(state("driving"))
    wait_for(lambda: [s.mode for s in listener.states()][-1:] == ["driving"], what="the second state")
    report(outbox, 30)
    link.stop()
    wait_for(lambda: not listener.states()[-1].online, what="the goodbye")
    assert listener.states()[-1].reason == "stopped"
    assert (len(listener.events()), outbox.depth()) == (30, 0)


def test_wakeups_are_heard(broker: Broker, outbox: Outbox, link_to: Linker, listener: Listener) -> None:
    """The retained wake-up is heard at connect, later ones as they come, whatever they hold; one that makes the
    callback fail stops nothing."""
    listener.publish(wakeup_topic("champion"), b"{}", retain=True)
    calls: list[int] = []

    def wake() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a fault of the updater")

    link_to(broker.port, on_wakeup=wake)
    wait_for(lambda: len(calls) == 1, what="the retained wake-up")
    for number in (2, 3):
        listener.publish(wakeup_topic("champion"), b"\xff not even JSON")
        wait_for(lambda n=number: len(calls) == n, what="a wake-up")
    listener.publish(wakeup_topic("canary"), b"{}")
    report(outbox, 1)
    wait_for(lambda: listener.events(), what="an event after the fault")
    assert len(calls) == 3


def test_each_channel_wakes_its_own(broker: Broker, outbox: Outbox, listener: Listener) -> None:
    """A link that listens to a second channel, the shadow's, tells each wake-up to whom it is for."""
    calls: list[str] = []
    chosen = MqttSettings(host="127.0.0.1", port=broker.port)
    link = Link(chosen, outbox, "lab", "r1", "s1", "champion", lambda: calls.append("main"))
    link.listen("canary", lambda: calls.append("shadow"))
    listener.publish(wakeup_topic("canary"), b"{}", retain=True)
    link.start()
    try:
        wait_for(lambda: calls == ["shadow"], what="the retained wake-up")
        listener.publish(wakeup_topic("champion"), b"{}")
        wait_for(lambda: calls == ["shadow", "main"], what="the other one")
    finally:
        link.stop(0.2)


def test_a_broker_that_is_not_there_is_waited_for(
    outbox: Outbox, link_to: Linker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a broker at the start the robot goes on, says so in one line, and drains once the broker is there."""
    caplog.set_level(logging.INFO, "serving.mqtt")
    report(outbox, 20)
    program_path = need("mosquitto")
    port = free_port()
    link_to(port)
    wait_for(lambda: "cannot be reached" in caplog.text, what="the line in the log")
    configuration = tmp_path / "late.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = start([program_path, "-c", str(configuration)], tmp_path / "late.log")
    try:
        wait_for(lambda: outbox.depth() == 0, what="the drain")
    finally:
        end(process)
    assert len([r for r in caplog.records if "cannot be reached" in r.getMessage()]) == 1


def test_a_refused_password_is_said_with_what_to_do(
    outbox: Outbox, link_to: Linker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that knows users refuses the wrong password: logged in one line, tried again, nothing lost."""
    port = free_port()
    users = tmp_path / "users"
    subprocess.run([need("mosquitto_passwd"), "-b", "-c", str(users), "r1", "right"], check=True)
    shutil.chown(users, "mosquitto") if os.geteuid() == 0 else None
    tmp_path.chmod(0o755)
    configuration = tmp_path / "users.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {users}\nuser root\n")
    process = start([need("mosquitto"), "-c", str(configuration)], tmp_path / "users.log")
    try:
        wait_for(lambda: listens(port), what="Mosquitto listening")
        report(outbox, 5)
        wrong = link_to(port, username="r1", password="wrong")
        wait_for(lambda: "check username, password" in caplog.text, what="the line in the log")
        wrong.stop(0.2)
        assert outbox.depth() == 5
        link_to(port, username="r1", password="right")
        wait_for(lambda: outbox.depth() == 0, what="the drain")
    finally:
        end(process)


def test_tls_with_client_certificates(outbox: Outbox, link_to: Linker, tmp_path: Path) -> None:
    """Over TLS, with a certificate of the robot's own, the outbox drains; a broker whose certificate another authority
    signed gets nothing."""
    make = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    for name in ("broker", "stranger"):
        subject = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run([*make, *subject], check=True, cwd=tmp_path, capture_output=True)
    port = free_port()
    (tmp_path / "tls.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nrequire_certificate true\n"
        "cafile broker.pem\ncertfile broker.pem\nkeyfile broker.key\n"
    )
    process = start([need("mosquitto"), "-c", "tls.conf"], tmp_path / "tls.log", cwd=tmp_path)
    try:
        wait_for(lambda: listens(port), what="Mosquitto listening")
        report(outbox, 200)
        own = {"certificate": str(tmp_path / "broker.pem"), "key": str(tmp_path / "broker.key")}
        fooled = link_to(port, ca=str(tmp_path / "stranger.pem"), **own)
        wait_for(lambda: "certificate verify failed" in fooled._said, what="the broker being distrusted")
        fooled.stop(0.2)
        assert outbox.depth() == 200
        link_to(port, ca=str(tmp_path / "broker.pem"), **own)
        wait_for(lambda: outbox.depth() == 0, what="the drain over TLS")
    finally:
        end(process)


def test_a_certificate_that_cannot_be_read_is_the_operators(outbox: Outbox, tmp_path: Path) -> None:
    """A missing or broken PEM file is named before anything is tried."""
    (tmp_path / "broken.pem").write_text("not a certificate")
    for name in ("missing.pem", "broken.pem"):
        chosen = MqttSettings(host="127.0.0.1", ca=str(tmp_path / name))
        with pytest.raises(OperatorError, match=name):
            Link(chosen, outbox, "lab", "r1", "s1", "champion", lambda: None)


def test_what_is_not_an_event_does_not_block_the_queue(
    broker: Broker, outbox: Outbox, link_to: Linker, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged row is logged and left out; the events behind it arrive."""
    outbox.put([Draft("event", "jetloop/v1/lab/r1/event/collision", lambda _: b"\x00 damaged")])
    report(outbox, 3)
    whole = outbox.batch(2)[1].payload
    outbox.put([Draft("event", "jetloop/v1/lab/r1/event/#", lambda _: whole)])
    link_to(broker.port)
    wait_for(lambda: outbox.depth() == 0, what="the drain")
    wait_for(lambda: len(listener.events()) == 3, what="three events")
    assert caplog.text.count("is damaged and left out") == 2


def test_backoff_doubles_up_to_its_cap_with_jitter() -> None:
    """Half of each pause is chance, none is longer than the cap, however long it lasts."""
    for failures in (1, 2, 3, 10, 1000):
        longest = min(30.0, 0.5 * 2 ** min(failures - 1, 30))
        waits = [backoff_s(failures, 0.5, 30.0) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
