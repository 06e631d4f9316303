"""MLflow's webhook: registering it, and telling a real delivery from a forged one.

MLflow signs `<delivery id>.<timestamp>.<body>` with HMAC-SHA256 (mlflow/webhooks/delivery.py). A delivery only ever
makes the service look at the registry, which is asked what an alias is on; what it says is noted (aliases.py).
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pipelines.release.keys import write_secret
from serving.errors import RejectedError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SIGNATURE_HEADER = "X-MLflow-Signature"
DELIVERY_ID_HEADER = "X-MLflow-Delivery-Id"
TIMESTAMP_HEADER = "X-MLflow-Timestamp"
EVENT: Final = "model_version_alias.created"
MAX_AGE_S = 300


class Delivery(NamedTuple):
    """What a genuine delivery says that somebody did."""

    delivery_id: str
    alias: str
    version: str


class _Data(msgspec.Struct):
    name: str
    alias: str = ""
    version: str = ""


class _Body(msgspec.Struct):
    entity: str
    data: _Data


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> None:
    """Checks that a request was signed with our secret within the last five minutes.

    Args:
        headers: of the request; looked up without regard to case if the mapping does so.
        now_s: Unix time.

    Raises:
        RejectedError: a header is missing, the time is off, or the signature is wrong.
    """
    signature = headers.get(SIGNATURE_HEADER, "")
    delivery_id = headers.get(DELIVERY_ID_HEADER, "")
    timestamp = headers.get(TIMESTAMP_HEADER, "")
    if not (signature and delivery_id and timestamp):
        raise RejectedError(f"{SIGNATURE_HEADER}, {DELIVERY_ID_HEADER} or {TIMESTAMP_HEADER} is missing")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs(now_s - int(timestamp)) > MAX_AGE_S:
        raise RejectedError(f"{TIMESTAMP_HEADER} is not within {MAX_AGE_S} s of now: check both clocks")
    expected = sign(secret, delivery_id, timestamp, body)
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
        raise RejectedError("the signature is wrong")


def sign(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """MLflow's signature of a delivery: `v1,` and the base64 of the HMAC."""
    content = b".".join((delivery_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret.encode(), content, hashlib.sha256).digest()).decode()


def secret_in(path: Path) -> str:
    """The secret shared with MLflow, made on first use in a file that only this user can read.

    Raises:
        OSError: the folder cannot be written.
    """
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32).encode())
    return path.read_text(encoding="ascii").strip()


def register(client: "MlflowClient", url: str, secret: str) -> None:
    """Has MLflow call `url` when an alias is set; brings one that is there already up to date.

    Raises:
        MlflowException: the server has no webhooks, or allows no such address.
    """
    token = None
    while True:
        page = client.list_webhooks(max_results=100, page_token=token)
        for hook in page:
            if hook.url == url:
                # MLflow never tells the secret it holds, so it is set anew.
                client.update_webhook(hook.webhook_id, secret=secret, status="ACTIVE", events=[EVENT])
                return
        token = page.token
        if not token:
            break
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"jetloop-release-{url}")[:60].strip("-").lower()
    client.create_webhook(name, url, [EVENT], description="jetloop: an alias releases a version", secret=secret)


def delivery_of(headers: Mapping[str, str], body: bytes, model: str) -> Delivery | None:
    """What a verified delivery says about an alias of `model`; None for anything else, malformed bodies too."""
    try:
        found = msgspec.json.decode(body, type=_Body)
    except msgspec.DecodeError:
        return None
    if found.entity != "model_version_alias" or found.data.name != model:
        return None
    return Delivery(headers.get(DELIVERY_ID_HEADER, "")[:200], found.data.alias[:200], found.data.version[:200])
