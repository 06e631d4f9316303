"""A person's decision to release a version although it fails a gate: signed, named, with its reason.

    FOLDER/approvers/<name>.pub    ed25519 public keys (PEM) of the people who may decide; put there by whoever runs
                                   the service, and taken away to end it
    FOLDER/overrides/<model>-v<version>.<gate>.<name>.json    decisions, written by `jetloop release override`

A decision counts for one gate of one version, and only for the ONNX file that it names by digest. What is not signed
with the key of the person that it names counts for nothing, and the log says so.
"""

import base64
import hashlib
import logging
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.release import durable, gates
from serving.contracts.releases import Override
from serving.errors import OperatorError, RejectedError

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024
_PREFIX = b"jetloop release override\n"  # what is signed here is signed for nothing else


class Overrides:
    """The decisions in a release folder."""

    def __init__(self, folder: Path) -> None:
        self._decisions = folder / "overrides"
        self._approvers = folder / "approvers"
        self._ignored: set[str] = set()  # digests of files that the log has told of

    def of(self, model: str, version: str, onnx_sha256: str) -> list[Override]:
        """The decisions that count for a version, by gate.

        Raises:
            OSError: a file cannot be read.
        """
        found: dict[str, Override] = {}
        for path in sorted(self._decisions.glob(f"{model}-v{version}.*.json")):
            content = path.read_bytes()[: MAX_BYTES + 1]
            try:
                decision = verify(content, self._approvers)
                if (decision.model_name, decision.model_version, decision.onnx_sha256) != (model, version, onnx_sha256):
                    raise RejectedError(
                        f"it is about {decision.model_name} version {decision.model_version}, ONNX file "
                        f"{decision.onnx_sha256[:12]}…, and not about this one"
                    )
                found.setdefault(decision.gate, decision)
            except RejectedError as problem:
                self._say_once(path, content, str(problem))
        return list(found.values())

    def save(self, decision: Override) -> Path:
        """Writes a decision down, after the check that the service makes.

        Raises:
            RejectedError: it would count for nothing.
            OSError: the folder cannot be written.
        """
        content = msgspec.json.format(msgspec.json.encode(decision), indent=1)
        verify(content, self._approvers)
        name = f"{decision.model_name}-v{decision.model_version}.{decision.gate}.{decision.by}.json"
        durable.write(self._decisions / name, content)
        return self._decisions / name

    def _say_once(self, path: Path, content: bytes, problem: str) -> None:
        digest = hashlib.sha256(str(path).encode() + content + problem.encode()).hexdigest()
        if digest not in self._ignored:
            log.error("the override %s is IGNORED: %s", path, problem)
        self._ignored.add(digest)


def verify(content: bytes, approvers: Path) -> Override:
    """Reads a decision and checks that the person it names has signed it.

    Args:
        content: of the file.
        approvers: folder of public keys, `<name>.pub`.

    Raises:
        RejectedError: it is malformed, of a gate that nobody may override, or not signed by an approver.
    """
    if len(content) > MAX_BYTES:
        raise RejectedError(f"it is larger than {MAX_BYTES} bytes")
    try:
        decision = msgspec.json.decode(content, type=Override)
        signature = base64.b64decode(decision.signature, validate=True)
    except ValueError as problem:  # msgspec's and base64's errors are ValueErrors
        raise RejectedError(f"it is malformed ({problem})") from None
    if not gates.overridable(decision.gate):
        raise RejectedError(f"the gate {decision.gate} can not be overridden: the engine is not the network judged")
    path = approvers / f"{decision.by}.pub"
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise RejectedError(f"there is no public key {path} to check it with ({problem})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise RejectedError(f"{path} is no ed25519 key")
    try:
        key.verify(signature, signed_content(decision))
    except InvalidSignature:
        raise RejectedError(f"it is not signed with the key of {decision.by} ({path})") from None
    return decision


def sign(decision: Override, key: Ed25519PrivateKey) -> Override:
    """The decision with its signature."""
    signature = base64.b64encode(key.sign(signed_content(decision))).decode()
    return msgspec.structs.replace(decision, signature=signature)


def signed_content(decision: Override) -> bytes:
    """What a person signs: all fields but the signature, as JSON with sorted keys."""
    fields = msgspec.to_builtins(decision)
    del fields["signature"]
    return _PREFIX + msgspec.json.encode(fields, order="sorted")


def private_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Reads a person's private key.

    Raises:
        OperatorError: it cannot be read, needs a passphrase, or is of another kind.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase or None)
    except TypeError:
        raise OperatorError(f"{path} is encrypted: set JETLOOP_OVERRIDE_PASSPHRASE to its passphrase") from None
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be used as a key ({problem}): wanted ed25519 in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorError(f"{path} is no ed25519 key: make one with `openssl genpkey -algorithm ed25519`")
    return key
