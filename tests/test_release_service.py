"""The release service as people run it: a process between a real MLflow server, a real broker and robots."""

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import paho.mqtt.subscribe

from serving.contracts.releases import Channel, Passport, Wakeup
from tests import release_lab
from tests.conftest import ROOT, Address, answers, end, free_port, start, wait_for
from tests.release_lab import NEVER_S, PARAMS, TARGET, Lab

lab = release_lab.lab  # a fixture


def test_an_alias_becomes_a_release_a_refusal_and_a_way_back(lab: Lab, mosquitto: Address) -> None:
    """By webhook alone: a good version is signed and rung for, a bad one refused in words, going back builds none."""
    first = lab.version(description="Trained on the new corridor.")
    lab.serve("--mqtt", f"{mosquitto.host}:{mosquitto.port}", poll_s=NEVER_S)
    lab.ready()
    wait_for(lambda: lab.get("/healthz")["webhook"], timeout_s=60, what=f"the webhook ({lab.said()})")

    begun = time.monotonic()
    lab.promote(first)
    wait_for(lambda: lab.channel(), timeout_s=30, what=f"the release ({lab.said()})")
    seconds = time.monotonic() - begun
    print(f"alias to published: {seconds:.2f} s")
    lab.wait_for_status(first, "released")

    # What a robot gets
    channel = msgspec.json.decode(lab.pull("channels/champion.json"), type=Channel)
    passport = msgspec.json.decode(lab.pull(channel.passports[TARGET]), type=Passport)
    assert (channel.model_version, channel.sequence, passport.release_id) == (first, 1, channel.release_id)
    assert len(lab.pull(passport.engine.path)) == passport.engine.bytes
    assert lab.pull(passport.golden.path)[:2] == b"PK"
    assert passport.lineage.data == {"data/sessions": "d41d8cd98f00b204e9800998ecf8427e.dir"}
    assert (passport.decision.blocked_threshold, passport.approver) == (0.4, "mlflow-user")
    assert all(gate.passed for gate in passport.gates)
    assert len(passport.gates) == 4
    message = paho.mqtt.subscribe.simple("jetloop/v1/releases/champion", hostname=mosquitto.host, port=mosquitto.port)
    assert message.retain
    assert msgspec.json.decode(message.payload, type=Wakeup) == Wakeup(release_id=channel.release_id, sequence=1)

    # What a person sees
    tags = lab.tags(first)
    assert tags["gate.balanced_accuracy"] == "pass 0.93 ≥ 0.8"
    assert tags["release.id"] == channel.release_id
    description = lab.client.get_model_version(lab.model, first).description
    assert description.startswith("Trained on the new corridor.")
    assert "**Released** on `champion`" in description

    # A version that misses a gate
    second = lab.version(metrics={"test/balanced_accuracy": 0.93, "test/blocked_recall": 0.71})
    lab.promote(second)
    lab.wait_for_status(second, "refused")
    assert "blocked_recall: 0.71 < 0.85" in lab.tags(second)["release.reason"]
    assert "params.yaml" in lab.tags(second)["release.reason"]
    assert "keep `" + channel.release_id in lab.client.get_model_version(lab.model, second).description
    assert lab.channel() == channel

    # On to a third, and back to the first: signed anew, not built anew
    third = lab.version()
    lab.promote(third)
    lab.wait_for_status(third, "released")
    lab.promote(first)
    wait_for(lambda: (found := lab.channel()) and found.sequence == 3, timeout_s=30, what="going back")
    back = lab.channel()
    assert back
    assert (back.model_version, back.release_id, back.passports) == (first, channel.release_id, channel.passports)
    assert lab.tags(third)["release.status"] == "released"
    assert lab.said().count("compiled for") == 2

    wait_for(lambda: len(lab.get("/api/releases")) == 4, what="the history")
    listed = [(one["version"], one["status"], one["sequence"], one["current"]) for one in lab.get("/api/releases")]
    assert listed == [
        (first, "released", 3, True),
        (third, "released", 2, False),
        (second, "refused", None, False),
        (first, "released", 1, False),
    ]
    assert lab.get("/api/releases")[0]["passports"][TARGET]["lineage"]["run_id"] == passport.lineage.run_id


def test_refused_versions_are_judged_again_only_when_something_changed(lab: Lab) -> None:
    """By polling alone: a refusal stands until limits change or a person deletes the tag; canary is its own ring."""
    version = lab.version(metrics={"test/balanced_accuracy": 0.75, "test/blocked_recall": 0.9})
    lab.promote(version)
    lab.serve("--no-webhook")
    lab.wait_for_status(version, "refused")
    judged = lab.said().count("is promoted")
    lab.stop()
    lab.serve("--no-webhook")  # it remembers over a restart
    lab.ready()
    other = lab.version()
    lab.promote(other, "canary")
    lab.wait_for_status(other, "released")
    assert lab.said().count(f"version {version} is promoted") == judged == 1
    assert lab.channel() is None
    assert lab.channel("canary")

    lab.client.delete_model_version_tag(lab.model, version, "release.status")
    wait_for(lambda: lab.said().count(f"version {version} is promoted") == 2, what="judging after the tag went")
    lab.wait_for_status(version, "refused")
    lab.edit_params("gates: [broken")
    wait_for(lambda: "the gates stay as they were" in lab.said(), what="a broken edit being said")
    lab.edit_params(PARAMS.format(accuracy=0.7))
    lab.wait_for_status(version, "released")
    assert "release.reason" not in lab.tags(version)
    assert lab.said().count("the gates stay as they were") == 1


def test_what_a_run_lacks_or_hides_is_refused(lab: Lab) -> None:
    """A network that is not the one registered, one that disagrees with its golden frames: refused, in words."""
    lab.serve("--no-webhook")
    wrong_parity = lab.version(off_by=0.5)
    lab.promote(wrong_parity)
    lab.wait_for_status(wrong_parity, "refused")
    assert f"parity.{TARGET}" in lab.tags(wrong_parity)["release.reason"]

    swapped = lab.version()
    lab.client.set_model_version_tag(lab.model, swapped, "lineage.golden_sha256", "0" * 64)
    lab.promote(swapped)
    lab.wait_for_status(swapped, "refused")
    assert "not the one that was registered" in lab.tags(swapped)["release.reason"]

    by_hand = lab.version()
    lab.client.delete_model_version_tag(lab.model, by_hand, "lineage.onnx_sha256")
    lab.promote(by_hand)
    lab.wait_for_status(by_hand, "refused")
    assert "register it with `dvc repro`" in lab.tags(by_hand)["release.reason"]
    assert lab.channel() is None
    assert "Traceback" not in lab.said()


def test_mlflow_and_the_broker_may_come_late_and_go(tmp_path: Path) -> None:
    """Both down at the start, MLflow down again in mid-poll: a line each time, then it releases as if nothing was."""
    store, port, broker = tmp_path / "store", free_port(), free_port()
    uri = f"http://127.0.0.1:{port}"

    def mlflow() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "pipelines.cli", "mlflow", "--port", str(port), "--folder", str(store)]
        process = start(command, tmp_path / "mlflow.log", cwd=ROOT)
        wait_for(lambda: answers(f"{uri}/health"), timeout_s=90, what="MLflow")
        return process

    lab = Lab(uri, tmp_path)
    server = None
    try:
        lab.serve("--mqtt", f"127.0.0.1:{broker}")
        wait_for(lambda: "does not answer" in lab.said(), timeout_s=60, what="the outage being said")
        wait_for(lambda: "cannot be reached" in lab.said(), timeout_s=60, what="the broker's absence being said")
        server = mlflow()
        version = lab.version()
        lab.promote(version)
        lab.wait_for_status(version, "released")
        wait_for(lambda: "all is well again" in lab.said(), what=f"the recovery ({lab.said()})")
        end(server)
        wait_for(lambda: lab.said().count("retrying, from") == 2, timeout_s=60, what="the second outage being said")
        server = mlflow()
        second = lab.version()
        lab.promote(second)
        lab.wait_for_status(second, "released")
        wait_for(lambda: lab.said().count("all is well again") == 2, what=f"the second recovery ({lab.said()})")
        assert lab.said().count("retrying, from") == lab.said().count("all is well again") == 2
        assert "Traceback" not in lab.said()
    finally:
        lab.stop()
        if server:
            end(server)
