"""Hands an engine with its report to the release service, signed with this builder's own key.

The key is ed25519, a PEM file of mode 0600; its public half lies in the service's folder `builders/`. The report names
the digest of the engine, so that its signature holds for both.
"""

import os
from pathlib import Path

import msgspec
import urllib3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from serving import files
from serving.contracts.builds import (
    BUILDER_HEADER,
    BUILDS_PATH,
    REPORT_HEADER,
    SIGNATURE_HEADER,
    BuildReport,
    signed_content,
    to_header,
)
from serving.errors import OperatorError, RejectedError


def new_key(path: Path) -> str:
    """Makes a key that only this user can read.

    Returns:
        Its public half, PEM.

    Raises:
        OperatorError: there is a file already, or the folder cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        files.sync_folder(path.parent)
    except FileExistsError:
        raise OperatorError(f"{path} is there already and is not overwritten: choose another --key") from None
    except OSError as problem:
        raise OperatorError(f"{path}: {problem.strerror}; choose another --key") from None
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def read_key(path: Path) -> Ed25519PrivateKey:
    """Reads what `new_key` made.

    Raises:
        OperatorError: it is not there, not such a key, or others can read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise OperatorError(f"{path} can be read by other users: `chmod 600 {path}`")
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        raise OperatorError(f"there is no key {path}: make one with `jetloop-robot build --new-key`") from None
    except (OSError, ValueError, TypeError) as problem:
        raise OperatorError(f"{path} cannot be used as a key: {problem}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorError(f"{path} is no ed25519 key: make one with `jetloop-robot build --new-key`")
    return key


def hand_in(service: str, report: BuildReport, engine: Path, key: Ed25519PrivateKey, timeout_s: float) -> None:
    """Sends engine and report.

    Raises:
        OperatorError: the service does not answer, does not know this builder, or cannot keep the engine.
        RejectedError: it does not take the build; with its reason.
    """
    raw = msgspec.json.encode(report)
    headers = {
        BUILDER_HEADER: report.builder,
        REPORT_HEADER: to_header(raw),
        SIGNATURE_HEADER: to_header(key.sign(signed_content(raw))),
        "Content-Length": str(report.engine_bytes),
        "Content-Type": "application/octet-stream",
    }
    url = f"{service.rstrip('/')}{BUILDS_PATH}/{report.release_id}/{report.target}"
    pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=timeout_s, read=max(timeout_s, 60.0)))
    try:
        with engine.open("rb") as file:
            answer = pool.request("PUT", url, body=file, headers=headers)
    except urllib3.exceptions.HTTPError as problem:
        raise OperatorError(f"{url}: {problem}; run this again, what is built is kept") from None
    if answer.status == 204:
        return
    reason = _reason(answer)
    if answer.status in (404, 409, 413, 422):
        raise RejectedError(f"the release service does not take it: {reason}")
    raise OperatorError(f"PUT {url}: {reason}")


def _reason(answer: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(msgspec.json.decode(answer.data)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {answer.status}"
