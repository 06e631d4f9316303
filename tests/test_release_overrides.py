"""A person's signed decision to release a version although it fails a gate."""

import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.release import overrides
from pipelines.release.overrides import sign, verify
from serving.contracts.releases import Override, Passport
from serving.errors import RejectedError
from tests import release_lab
from tests.release_desk import TARGET, Desk
from tests.release_lab import Jetloop
from tests.simulators.registry_file import MODEL

jetloop = release_lab.jetloop  # a fixture
POOR = {"test/balanced_accuracy": 0.93, "test/blocked_recall": 0.71}


def person(folder: Path, name: str, approver: bool = True) -> Path:
    """A person's key file; as an approver, its public half is with the service."""
    key = Ed25519PrivateKey.generate()
    none = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)
    (folder / f"{name}.pem").write_bytes(pem)
    if approver:
        public = folder / "release" / "approvers" / f"{name}.pub"
        public.parent.mkdir(parents=True, exist_ok=True)
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(encoding, form))
    return folder / f"{name}.pem"


def order(desk: Desk, version: str, gate: str, key: Path, name: str = "anna") -> tuple[str, ...]:
    folder = ("--folder", str(desk.folder))
    return (
        *("release", "override", version, *folder, "--gate", gate),
        *("--reason", "one drive is mislabelled", "--by", name, "--key", str(key)),
    )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_signed_decision_releases_and_stands_in_the_passport(desk: Desk, tmp_path: Path, jetloop: Jetloop) -> None:
    """Refused, decided by an approver, judged again by itself; tags, description and passport name who and why."""
    version = desk.registry.add(POOR)
    desk.release(version)
    assert desk.status(version) == "refused"
    assert f"jetloop release override {version} --gate blocked_recall" in desk.tags(version)["release.reason"]
    key = person(tmp_path, "anna")
    code, printed, said = jetloop(*order(desk, version, "blocked_recall", key))
    assert code == 0, said
    assert "decided anna" in printed
    desk.service.reconcile()
    assert desk.status(version) == "released"
    assert desk.tags(version)["gate.blocked_recall"].startswith("overridden by anna (one drive is mislabelled):")
    assert "**anna** decided" in desk.registry.description(version)
    channel = desk.channel()
    assert channel
    passport = desk.repository.passport(channel.passports[TARGET])
    assert passport.overrides
    (decision,) = passport.overrides
    assert (decision.gate, decision.by) == ("blocked_recall", "anna")
    assert [gate.passed for gate in passport.gates if gate.name == "blocked_recall"] == [False]
    overrides.verify(msgspec.json.encode(decision), desk.folder / "approvers")  # anybody may check it again
    assert not desk.service.reconcile()


@pytest.mark.parametrize("forgery", ["stranger", "reason", "version", "name", "garbage", "no approvers"])
def test_a_decision_without_valid_signature_is_ignored_loudly(
    desk: Desk, tmp_path: Path, jetloop: Jetloop, caplog: pytest.LogCaptureFixture, forgery: str
) -> None:
    """Signed by another key, altered, of another version or name: the version stays refused, one line says so."""
    version = desk.registry.add(POOR)
    desk.release(version)
    key = person(tmp_path, "anna")
    assert jetloop(*order(desk, version, "blocked_recall", key))[0] == 0
    (file,) = (desk.folder / "overrides").iterdir()
    decision = json.loads(file.read_text())
    if forgery == "stranger":
        signed = sign(msgspec.convert(decision, Override), Ed25519PrivateKey.generate())
        decision = msgspec.to_builtins(signed)
    elif forgery == "no approvers":
        (desk.folder / "approvers" / "anna.pub").unlink()
    elif forgery != "garbage":
        field, value = {"reason": ("reason", "x"), "version": ("model_version", "9"), "name": ("by", "bob")}[forgery]
        decision[field] = value
    file.write_text("{" if forgery == "garbage" else json.dumps(decision))
    for _ in range(3):
        desk.service.reconcile()
    assert desk.status(version) == "refused"
    assert caplog.text.count("IGNORED") == 1
    assert desk.channel() is None


def test_a_decision_is_of_one_onnx_file(desk: Desk, tmp_path: Path, jetloop: Jetloop) -> None:
    """Taken to another version by renaming the file, it counts for nothing."""
    first, second = desk.registry.add(POOR), desk.registry.add(POOR)
    desk.release(first)
    assert jetloop(*order(desk, first, "blocked_recall", person(tmp_path, "anna")))[0] == 0
    (file,) = (desk.folder / "overrides").iterdir()
    file.rename(file.with_name(file.name.replace(f"-v{first}.", f"-v{second}.")))
    desk.release(second)
    assert desk.status(second) == "refused"


def test_parity_is_never_overridden(desk: Desk, tmp_path: Path, jetloop: Jetloop) -> None:
    """Not by the command, and not by a file that an approver signed by other means."""
    version = desk.registry.add(off_by=0.5)
    desk.release(version)
    gate = f"parity.{TARGET}"
    assert gate in desk.tags(version)["release.reason"]
    assert "release override" not in desk.tags(version)["release.reason"]
    key = person(tmp_path, "anna")
    code, _, said = jetloop(*order(desk, version, gate, key))
    assert (code, "can not be overridden" in said) == (1, True)
    known = desk.registry.version(version)
    assert known
    decision = Override(
        model_name=MODEL,
        model_version=version,
        onnx_sha256=known.onnx_sha256,
        gate=gate,
        reason="x",
        by="anna",
        decided_at="2026-11-23T12:00:00Z",
        signature="",
    )
    signed = msgspec.json.encode(sign(decision, overrides.private_key(key)))
    (desk.folder / "overrides").mkdir()
    (desk.folder / "overrides" / f"{MODEL}-v{version}.{gate}.anna.json").write_bytes(signed)
    desk.service.reconcile()
    assert desk.status(version) == "refused"


def test_mistakes_with_the_command_are_one_line(desk: Desk, tmp_path: Path, jetloop: Jetloop) -> None:
    """A version that was not judged, a gate that passed, a stranger, another kind of key, a wrong name."""
    version = desk.registry.add(POOR)
    key = person(tmp_path, "anna")
    stranger = person(tmp_path, "bob", approver=False)
    assert "never judged" in jetloop(*order(desk, version, "blocked_recall", key))[2]
    desk.release(version)
    for arguments, says in (
        (order(desk, version, "balanced_accuracy", key), "it fails: blocked_recall"),
        (order(desk, version, "blocked_recall", stranger, "bob"), "there is no public key"),
        (order(desk, version, "blocked_recall", stranger, "anna"), "not signed with the key of anna"),
        (order(desk, version, "blocked_recall", key, "../anna"), "cannot be written down"),
        (order(desk, version, "blocked_recall", Path(__file__)), "cannot be used as a key"),
    ):
        code, _, said = jetloop(*arguments)
        assert (code, len(said.strip().splitlines())) == (1, 1), said
        assert says in said
    assert not list((desk.folder / "overrides").glob("*"))


@given(content=st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_decision_or_rejected(content: bytes) -> None:
    """Whatever stands in the file, nothing but RejectedError comes out."""
    with pytest.raises(RejectedError):
        verify(content, Path("/nowhere"))


def test_passports_without_a_decision_read_as_before() -> None:
    """The field is left out where there is none, so a robot that does not know it reads the passport."""
    fields = {field.name: field for field in msgspec.structs.fields(Passport)}
    assert fields["overrides"].default is msgspec.UNSET
