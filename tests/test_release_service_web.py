"""The release service's HTTP: who may wake it, what it serves."""

import json
import urllib.error
import urllib.request

import pytest

from pipelines.release import webhook
from tests import release_lab
from tests.conftest import wait_for
from tests.release_lab import NEVER_S, NOBODY, Lab, announced, delivery, post

lab = release_lab.lab  # a fixture


def test_only_mlflows_signature_wakes_the_service(lab: Lab) -> None:
    """Wrong secret, altered body, old timestamp, no headers: 401, a line, no look at MLflow. The right one releases."""
    lab.client.create_registered_model(lab.model)
    lab.serve("--webhook-url", NOBODY, poll_s=NEVER_S)  # MLflow's own calls go nowhere
    lab.ready()
    wait_for(lambda: "has this alias" in lab.said(), what=f"the first look ({lab.said()})")
    version = lab.version()
    lab.promote(version)
    secret = (lab.release / "webhook.secret").read_text()
    url = f"{lab.url}/webhooks/mlflow"
    body = announced(lab.model)

    for bad in (
        delivery("another secret", body),
        delivery(secret, body + b" "),
        delivery(secret, body, age_s=301),
        delivery(secret, body, age_s=-301),
        delivery(secret, body) | {webhook.DELIVERY_ID_HEADER: "d2"},
        delivery(secret, body) | {webhook.TIMESTAMP_HEADER: "soon"},
        delivery(secret, body) | {webhook.SIGNATURE_HEADER: "v1,ü"},
        {},
    ):
        assert post(url, bad, body) == 401
    assert lab.said().count("webhook from 127.0.0.1 refused") == 8
    assert post(url, delivery(secret, b"x" * 70000), b"x" * 70000) == 401
    other = json.dumps({"entity": "model_version_alias", "data": {"name": "another-model"}}).encode()
    assert post(url, delivery(secret, other), other) == 204
    assert lab.tags(version).get("release.status") is None
    assert lab.channel() is None
    assert post(url, delivery(secret, body), body) == 204
    lab.wait_for_status(version, "released")
    assert oct((lab.release / "webhook.secret").stat().st_mode)[-3:] == "600"


def test_static_files_have_ranges_and_no_keys(lab: Lab) -> None:
    """Robots resume downloads; caches keep signed files but not the timestamp; nothing outside the two folders."""
    lab.serve("--no-webhook")
    lab.ready()
    request = urllib.request.Request(f"{lab.url}/metadata/1.root.json", headers={"Range": "bytes=0-9"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.status, len(answer.read())) == (206, 10)
        assert "immutable" in answer.headers["Cache-Control"]
    with urllib.request.urlopen(f"{lab.url}/metadata/timestamp.json", timeout=10) as answer:
        assert answer.headers["Cache-Control"] == "no-cache"
    for path in ("/keys/online/timestamp.pem", "/metadata/../keys/online/timestamp.pem", "/targets/%2e%2e/lock"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(lab.url + path, timeout=10)
