"""A Mosquitto as `jetloop broker certs` and `config` make it: who gets in, who may say what, what survives its end."""

import datetime
import random
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from click.testing import CliRunner
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from serving.contracts.events import event_topic, state_topic, wakeup_topic
from serving.errors import OperatorError
from serving.mqtt import Link
from serving.outbox import Outbox
from serving.reporter import Reporter
from telemetry import broker as broker_module
from telemetry import mosquitto
from telemetry.certificate_folder import CertificateFolder, check_name, role_of
from tests.conftest import ROOT, wait_for
from tests.simulators.cable import Cable
from tests.test_link_parts import Listener, SecureBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SecureBroker]:
    running = SecureBroker(tmp_path)
    yield running
    running.close()


class Client:
    """One attempt to connect, with what became of it."""

    def __init__(self, port: int, tls: ssl.SSLContext, client_id: str = "any") -> None:
        self.accepted = self.ended = False
        self.refused: list[bool] = []  # one for each subscription
        self.heard: list[str] = []  # topics
        self.paho = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
        self.paho.tls_set_context(tls)
        self.paho.on_connect = lambda *given: setattr(self, "accepted", not given[3].is_failure)
        self.paho.on_disconnect = lambda *_: setattr(self, "ended", True)
        self.paho.on_subscribe = lambda *given: self.refused.append(given[3][0].is_failure)
        self.paho.on_message = lambda *given: self.heard.append(given[2].topic)
        try:
            self.paho.connect("127.0.0.1", port)
            self.paho.loop_start()
        except OSError:  # refused within the handshake
            self.ended = True
        wait_for(lambda: self.accepted or self.ended, what="an answer of the broker")

    def publish(self, topic: str) -> None:
        self.paho.publish(topic, b"{}", qos=1).wait_for_publish(10)

    def subscribe(self, topic: str) -> bool:
        """Whether the broker takes the subscription."""
        count = len(self.refused)
        self.paho.subscribe(topic, qos=1)
        wait_for(lambda: len(self.refused) > count, what="the answer to a subscription")
        return not self.refused[-1]

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


def gets_in(broker: SecureBroker, tls: ssl.SSLContext) -> bool:
    client = Client(broker.port, tls)
    client.close()
    return client.accepted


def listen(broker: SecureBroker, **options: bool) -> Listener:
    listener = Listener(broker.port, tls=broker.context("collector"), **options)
    wait_for(lambda: listener.subscriptions, what="the collector's subscription")
    return listener


def test_a_robot_speaks_in_its_own_place_alone(broker: SecureBroker) -> None:
    """Events, metrics and state of its own are passed on; another robot's, a release's or anything else are not, and
    end the connection."""
    listener = listen(broker)
    own = [event_topic("lab", "r1", kind) for kind in ("collision", "metrics")] + [state_topic("lab", "r1")]
    foreign = [
        event_topic("lab", "r2", "collision"),
        event_topic("lab", "r2", "metrics"),
        state_topic("lab", "r2"),
        wakeup_topic("champion"),
        "jetloop/v1/lab/r1/event/a/b",
        "jetloop/v1/lab/r1/anything",
        "elsewhere",
    ]
    for topic in foreign:
        liar = Client(broker.port, broker.context("lab/r1"))
        liar.paho.publish(topic, b"{}", qos=1)
        wait_for(lambda liar=liar: liar.ended, what=f"the end of who wrote to {topic}")
        liar.close()
    robot = Client(broker.port, broker.context("lab/r1"))
    for topic in own:
        robot.publish(topic)
    wait_for(lambda: len(listener.messages) >= len(own), what="the robot's own messages")
    assert [message.topic for message in listener.messages] == own
    robot.close()
    listener.close()


def test_a_robot_hears_the_releases_alone(broker: SecureBroker) -> None:
    """The wake-up of its ring reaches it; events of others do not, whatever it subscribes to."""
    robot, other = Client(broker.port, broker.context("lab/r1")), Client(broker.port, broker.context("lab/r2"))
    assert robot.subscribe(wakeup_topic("champion"))
    for topic in ("jetloop/v1/lab/r2/event/+", "jetloop/#", "#", "$SYS/#"):
        robot.subscribe(topic)  # Mosquitto may take it; it passes nothing on
    other.publish(event_topic("lab", "r2", "collision"))
    other.publish(state_topic("lab", "r2"))
    broker.certificates.issue("releases", 7)
    mosquitto.write(broker.certificates, broker.folder / "mosquitto", "127.0.0.1", broker.port, "root")
    broker.reload()
    service = Client(broker.port, broker.context("releases"))
    service.publish(wakeup_topic("champion"))
    wait_for(lambda: robot.heard, what="the wake-up")
    assert robot.heard == [wakeup_topic("champion")]
    for client in (robot, other, service):
        client.close()


def test_nobody_takes_the_session_of_another(broker: SecureBroker) -> None:
    """A robot that connects under another one's client id does not put it out: the certificate names the session."""
    first = Client(broker.port, broker.context("lab/r1"), client_id="jetloop-lab-r1")
    second = Client(broker.port, broker.context("lab/r2"), client_id="jetloop-lab-r1")
    assert first.accepted
    assert second.accepted
    assert first.subscribe(wakeup_topic("champion"))  # still there
    assert not first.ended
    first.close()
    second.close()


def test_who_has_no_good_certificate_stays_out(broker: SecureBroker, tmp_path: Path) -> None:
    """None, one that ended, one of another authority: refused."""
    assert gets_in(broker, broker.context("lab/r1"))
    assert not gets_in(broker, broker.context(""))
    broker.certificates.issue("lab/r1", -0.001)
    assert not gets_in(broker, broker.context("lab/r1"))
    foreign = CertificateFolder.create(tmp_path / "foreign", 30).issue("lab/r1", 7)
    context = ssl.create_default_context(cafile=str(broker.certificates.folder / "ca.pem"))
    context.load_cert_chain(foreign / "certificate.pem", foreign / "key.pem")
    assert not gets_in(broker, context)
    broker.certificates.issue("lab/r1", 7)
    assert gets_in(broker, broker.context("lab/r1"))


def test_what_is_revoked_stays_out_after_a_reload(broker: SecureBroker) -> None:
    """All certificates of the name, no others; a new one of the same name gets in."""
    stolen = broker.context("lab/r1")
    assert gets_in(broker, stolen)
    assert broker.certificates.revoke("lab/r1") == 1
    broker.reload()
    wait_for(lambda: not gets_in(broker, stolen), what="the refusal")
    assert gets_in(broker, broker.context("lab/r2"))
    broker.certificates.issue("lab/r1", 7)
    assert gets_in(broker, broker.context("lab/r1"))
    broker.kill()
    broker.begin()
    assert not gets_in(broker, stolen)


def test_the_robot_is_told_why_it_is_refused(
    broker: SecureBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A revoked certificate, and one that was made for another robot: one line each, with name and date; nothing is
    sent, and nothing lost; with a certificate of its own, put where the old one was, the same link goes on."""
    outbox = Outbox(tmp_path / "outbox.db", 10 << 20)
    fill(outbox, 20)
    foreign = Link(broker.settings("lab/r2"), outbox, "lab", "r1", "s1", "champion", lambda: None)
    foreign.start()
    wait_for(lambda: "is the certificate of lab/r2, and this robot is lab/r1" in caplog.text, what="the line")
    foreign.stop(0.2)
    broker.certificates.revoke("lab/r1")
    broker.reload()
    link = Link(broker.settings("lab/r1", settle_s=0), outbox, "lab", "r1", "s1", "champion", lambda: None)
    link.start()
    wait_for(lambda: "revoked or out of date" in caplog.text, what="the line")
    assert "the certificate is of lab/r1, good until" in caplog.text
    assert outbox.depth() == 20
    broker.certificates.issue("lab/r1", 7)
    wait_for(lambda: outbox.depth() == 0, what="the drain with the new certificate")
    link.stop()


def test_the_authority_is_renewed_without_a_pause(broker: SecureBroker) -> None:
    """While both authorities are trusted, old and new certificates get in, whoever was connected stays; the old ones
    stay out after `retire`, which refuses to lock anybody out by mistake."""
    old, old_collector = broker.context("lab/r1"), broker.context("collector")
    staying = Client(broker.port, broker.context("lab/r2"))
    broker.certificates.rotate(30)
    broker.reload()
    assert gets_in(broker, old)
    broker.certificates.issue("lab/r1", 7)
    assert gets_in(broker, broker.context("lab/r1"))
    assert gets_in(broker, old)
    with pytest.raises(OperatorError, match="broker, collector, lab/r2: not renewed since the rotation"):
        broker.certificates.retire()
    for name in ("lab/r2", "collector"):
        broker.certificates.issue(name, 7)
    broker.certificates.issue("broker", 7, ["127.0.0.1"])
    broker.reload()
    wait_for(lambda: gets_in(broker, broker.context("collector")), what="the new broker certificate")
    assert broker.certificates.retire() == []
    assert not staying.ended
    staying.close()
    broker.kill()
    broker.begin()
    assert gets_in(broker, broker.context("lab/r2"))
    assert not gets_in(broker, old)
    assert not gets_in(broker, old_collector)


def fill(outbox: Outbox, count: int) -> None:
    reporter = Reporter(outbox, "lab", "r1", "s1")
    for number in range(count):
        reporter.emit("collision", {"number": number})
    reporter.close()


def test_a_broker_that_is_killed_loses_nothing_acknowledged(broker: SecureBroker, tmp_path: Path) -> None:
    """The collector is away, a robot drains, the broker is killed at random moments, also several
    times within a moment: every event reaches the collector when it is back, at least once, first arrivals in order."""
    listener = listen(broker, clean=False)
    saved = broker.folder / "mosquitto" / "state" / "mosquitto.db"
    wait_for(lambda: saved.exists() and b"collector" in saved.read_bytes(), what="the collector's session on disk")
    listener.close()
    outbox = Outbox(tmp_path / "outbox.db", 10 << 20)
    fill(outbox, 3000)
    chosen = broker.settings("lab/r1", max_events_per_s=400, settle_s=4)
    link = Link(chosen, outbox, "lab", "r1", "s1", "champion", lambda: None)
    link.start()
    for _ in range(3):
        time.sleep(random.uniform(0.5, 2.0))  # the moment of the kill is chance
        broker.kill()
        broker.begin()
    wait_for(lambda: outbox.depth() == 0, timeout_s=40, what="the drain")
    link.stop()
    back = Listener(broker.port, tls=broker.context("collector"), clean=False)
    wait_for(lambda: len({event.sequence for event in back.events()}) == 3000, what="all events")
    first = list(dict.fromkeys(event.sequence for event in back.events()))
    assert first == list(range(1, 3001))
    back.close()


def test_a_flapping_line_comes_to_an_end(broker: SecureBroker, tmp_path: Path) -> None:
    """A line that breaks every half second, well within `settle_s`: the outbox drains all the same, and no event is
    sent more than a few times."""
    listener = listen(broker)
    outbox = Outbox(tmp_path / "outbox.db", 10 << 20)
    fill(outbox, 200)
    cable = Cable(broker.port)
    chosen = broker.settings("lab/r1", port=cable.port, max_events_per_s=200, settle_s=3, reconnect_max_s=0.1)
    link = Link(chosen, outbox, "lab", "r1", "s1", "champion", lambda: None)
    link.start()
    deadline = time.monotonic() + 30
    while outbox.depth() and time.monotonic() < deadline:
        time.sleep(0.5)  # how long the line holds
        cable.cut()
        cable.mend()
    assert outbox.depth() == 0
    wait_for(lambda: len({event.sequence for event in listener.events()}) == 200, what="all events")
    assert list(dict.fromkeys(event.sequence for event in listener.events())) == list(range(1, 201))
    assert len(listener.events()) <= 6 * 200  # five acknowledged, and what was cut off before its acknowledgement
    link.stop()
    cable.cut()
    listener.close()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(broker_module.command, arguments, catch_exceptions=True)
    if isinstance(result.exception, OperatorError):
        return f"error: {result.exception}"
    assert result.exit_code in (0, 2), result.output
    return result.output


def test_the_commands_lead_from_nothing_to_a_configuration(tmp_path: Path) -> None:
    """init, broker, robot, service, config: each says what it wrote; wrong names and orders are one line; keys are
    for their owner alone."""
    certs, to = ("--certs", str(tmp_path / "certs")), ("--to", str(tmp_path / "out"))
    assert "begin with `jetloop broker certs init`" in run("certs", "list", *certs)
    assert "ca.pem" in run("certs", "init", *certs)
    assert "holds an authority already" in run("certs", "init", *certs)
    assert "certs broker HOST" in run("config", *certs, *to)
    run("certs", "broker", "broker.lab", "192.168.1.5", *certs)
    run("certs", "robot", "lab/r1", *certs)
    run("certs", "service", "collector", "bridge-2", *certs)
    assert "is neither a robot" in run("certs", "service", "postman", *certs)
    assert "not SITE/ROBOT" in run("certs", "robot", "r1", *certs)
    assert "is neither a robot" in run("certs", "robot", "lab/#", *certs)
    assert "mosquitto.conf" in run("config", *certs, *to)
    assert "user bridge-2\ntopic read jetloop/v1/#" in (tmp_path / "out" / "acl").read_text()
    assert "revoked: 1 of lab/r1" in run("certs", "revoke", "lab/r1", *certs)
    listed = run("certs", "list", *certs)
    assert "revoked" in listed
    assert "364 days left" in listed
    for key in (tmp_path / "certs").rglob("key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = x509.load_pem_x509_certificate((tmp_path / "certs" / "broker" / "certificate.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.lab"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.5"]


def test_the_files_in_deploy_are_what_the_command_writes() -> None:
    """deploy/mosquitto shows the configuration of a fleet; it does not drift from the code."""
    folder = ROOT / "deploy" / "mosquitto"
    certs, state, acl = Path("/etc/mosquitto/certs"), Path("/var/lib/mosquitto"), Path("/etc/mosquitto/acl")
    assert (folder / "mosquitto.conf").read_text() == mosquitto.configuration(certs, state, acl, "0.0.0.0", 8883)
    services = ["bridge", "collector", "console", "monitor", "operator", "releases"]
    assert (folder / "acl").read_text() == mosquitto.access_list(services)


def test_the_list_of_revocations_never_runs_out_before_its_authority(tmp_path: Path) -> None:
    """Mosquitto refuses everybody when the list has ended; so it ends with the authority, one list for each."""
    folder = CertificateFolder.create(tmp_path, 30)
    folder.rotate(60)
    pem = (tmp_path / "crl.pem").read_bytes()
    end = b"-----END X509 CRL-----\n"
    lists = [x509.load_pem_x509_crl(part + end) for part in pem.split(end)[:-1]]
    days = [(one.next_update_utc - datetime.datetime.now(datetime.UTC)).days for one in lists if one.next_update_utc]
    assert days == [29, 59]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_no_name_escapes_its_place(name: str) -> None:
    """A name that may have a certificate is a robot's two levels or a service's one, without wildcards, dots that
    climb or anything Mosquitto's patterns could read as more."""
    try:
        check_name(name)
    except OperatorError:
        return
    assert name == "broker" or name.count("/") == 1 or role_of(name)
    assert not set(name) & set("+#\\ \0\n")
    assert not any(level.startswith(".") for level in name.split("/"))
    assert len(name) <= 64
