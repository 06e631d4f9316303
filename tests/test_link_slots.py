"""The two slots: what a robot boots with, whatever happened to power and disk."""

import os
import random
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import files
from serving.errors import OperatorError, RejectedError
from serving.remembered import MAX_REFUSALS
from serving.slots import Slots
from tests.conftest import ROOT, end
from tests.test_link_parts import channel_of, engine_bytes, fill, install, is_whole, passport_of, program, sha256


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can see whether the disk synced; not waiting for it keeps them quick."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def version_of(slots: Slots) -> str | None:
    current = slots.current()
    return current.passport.lineage.model_version if current else None


def test_an_empty_folder_has_nothing_to_run(tmp_path: Path) -> None:
    """A new robot has no current candidate, and that is no error."""
    assert Slots(tmp_path / "slots").current() is None


def test_the_committed_release_is_what_the_next_start_finds(tmp_path: Path) -> None:
    """A commit outlives the process; the slot that runs is never the one prepared for the next."""
    first = install(Slots(tmp_path), 1, 1)
    second = install(Slots(tmp_path), 2, 2)
    assert first.folder != second.folder
    found = Slots(tmp_path).current()
    assert found == second
    assert is_whole(second)


def test_what_was_not_committed_is_never_booted(tmp_path: Path) -> None:
    """A downloaded and checked candidate counts only once the pointer names it."""
    install(Slots(tmp_path), 1, 1)
    slots = Slots(tmp_path)
    folder = slots.prepare()
    fill(folder, 2)
    slots.candidate(folder, channel_of(2, 2))
    assert version_of(Slots(tmp_path)) == "1"


@pytest.mark.parametrize("name", ["engine.onnx", "golden.npz", "passport.json"])
def test_a_damaged_slot_falls_back_to_the_one_before(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One changed byte in any file of the running slot: the previous slot boots, the reason is logged, and the next
    release goes into the damaged slot."""
    install(Slots(tmp_path), 1, 1)
    second = install(Slots(tmp_path), 2, 2)
    damaged = second.folder / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    slots = Slots(tmp_path)
    assert version_of(slots) == "1"
    assert name in caplog.text
    assert slots.prepare() == second.folder
    install(slots, 3, 3)
    assert version_of(Slots(tmp_path)) == "3"


def test_both_slots_damaged_means_nothing_to_run(tmp_path: Path) -> None:
    """With no intact slot the robot stands still rather than run half a file."""
    first = install(Slots(tmp_path), 1, 1)
    second = install(Slots(tmp_path), 2, 2)
    for candidate in (first, second):
        candidate.engine.write_bytes(candidate.engine.read_bytes()[:-1])
    assert Slots(tmp_path).current() is None


def test_a_slot_that_differs_from_its_passport_is_rejected(tmp_path: Path) -> None:
    """`candidate` compares engine and golden frames with the passport before anything is activated."""
    slots = Slots(tmp_path)
    folder = slots.prepare()
    fill(folder, 1)
    (folder / "engine.onnx").write_bytes(engine_bytes(2))
    with pytest.raises(RejectedError, match=r"engine\.onnx differs from its passport"):
        slots.candidate(folder, channel_of(1, 1))
    with pytest.raises(ValueError, match="not a slot"):
        slots.commit(replace(install(slots, 1, 1), folder=tmp_path / "elsewhere"))


def test_rollback_goes_to_the_slot_before_and_no_further(tmp_path: Path) -> None:
    """Rollback boots the previous slot, also after a restart; a second one has nothing to go to."""
    install(Slots(tmp_path), 1, 1)
    slots = Slots(tmp_path)
    install(slots, 2, 2)
    back = slots.rollback()
    assert back is not None
    assert back.passport == passport_of(1)
    assert version_of(Slots(tmp_path)) == "1"
    assert slots.rollback() is None
    assert Slots(tmp_path).rollback() is None


def test_a_refused_engine_is_not_booted_again(tmp_path: Path) -> None:
    """Power that fails between refusing an engine and going back still boots the one before."""
    install(Slots(tmp_path), 1, 1)
    slots = Slots(tmp_path)
    second = install(slots, 2, 2)
    slots.refuse(second.passport.release_id, second.passport.engine.sha256, "turned in circles")
    assert version_of(Slots(tmp_path)) == "1"


def test_refusals_outlive_a_reboot_and_are_bounded(tmp_path: Path) -> None:
    """The newest refusals are kept, with their reasons; the file does not grow for ever."""
    slots = Slots(tmp_path)
    for number in range(MAX_REFUSALS + 20):
        slots.refuse("release", sha256(str(number).encode()), f"reason {number}")
    again = Slots(tmp_path)
    assert again.refused(sha256(str(MAX_REFUSALS + 19).encode())) == f"reason {MAX_REFUSALS + 19}"
    assert again.refused(sha256(b"0")) is None
    assert again.refused(sha256(b"never seen")) is None


def test_an_older_or_contradicting_channel_is_a_replay(tmp_path: Path) -> None:
    """Sequences are remembered per channel across restarts, also where nothing was installed, and where the file
    that remembers them was lost, by what runs."""
    slots = Slots(tmp_path)
    slots.saw(channel_of(5, 5))
    again = Slots(tmp_path)
    assert again.replayed(channel_of(5, 5)) is None
    assert again.replayed(channel_of(4, 6)) is None
    assert "older than 5" in str(again.replayed(channel_of(4, 4)))
    assert "another release" in str(again.replayed(channel_of(4, 5)))
    assert again.replayed(channel_of(4, 4, "canary")) is None
    install(again, 5, 5)
    (tmp_path / "seen.json").write_bytes(b"garbage")
    lost = Slots(tmp_path)
    lost.current()
    assert "older than 5" in str(lost.replayed(channel_of(4, 4)))


def test_a_folder_that_cannot_be_made_is_the_operators(tmp_path: Path) -> None:
    """A path below a file ends in one line, not in a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="state_dir"):
        Slots(tmp_path / "file" / "slots")


STATE_FILES = ("current.json", "seen.json", "refused.json", *(f"{s}/{n}" for s in "ab" for n in
    ("engine.onnx", "golden.npz", "passport.json")))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    damage=st.dictionaries(
        st.sampled_from(STATE_FILES), st.one_of(st.binary(max_size=300), st.none(), st.integers(0, 10**6)), min_size=1
    )
)
def test_garbage_in_any_state_file_never_raises(damage: dict[str, bytes | int | None]) -> None:
    """Random bytes, a missing file or a flipped bit anywhere: None, or an intact candidate; and the robot can still
    install the next release."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        install(Slots(folder), 1, 1)
        install(Slots(folder), 2, 2)
        Slots(folder).refuse("release", sha256(b"x"), "reason")
        for name, how in damage.items():
            path = folder / name
            if how is None:
                path.unlink(missing_ok=True)
            elif isinstance(how, bytes):
                path.write_bytes(how)
            elif path.exists():
                content = bytearray(path.read_bytes())
                content[how % len(content)] ^= 1 << how % 8
                path.write_bytes(content)
        slots = Slots(folder)
        current = slots.current()
        assert current is None or is_whole(current)
        install(slots, 3, 3)
        assert version_of(Slots(folder)) == "3"


not_a_pointer = st.binary(max_size=300) | st.integers(0, 10**6)


@settings(max_examples=60, deadline=None)
@given(content=not_a_pointer, lost=st.sampled_from(["", "a", "b"]), refused=st.sampled_from([0, 1, 2]))
def test_a_damaged_pointer_costs_no_drive(content: bytes | int, lost: str, refused: int) -> None:
    """Whatever `current.json` holds (noise, one flipped bit): the newest slot that is whole and not refused boots,
    durably, says so, on probation where the other one can be gone back to; the next release can be installed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slots = Slots(folder, probation=True)
        place = {version: install(slots, version, version).folder for version in (1, 2)}
        slots.saw(channel_of(2, 2))
        pointer = bytearray((folder / "current.json").read_bytes())
        if isinstance(content, int):
            pointer[content % len(pointer)] ^= 1 << content % 8
        (folder / "current.json").write_bytes(pointer if isinstance(content, int) else content)
        if lost:
            (folder / lost / "engine.onnx").write_bytes(b"lost")
        if refused:
            slots.refuse("release", sha256(engine_bytes(refused)), "turned in circles")
        fit = [version for version in (2, 1) if place[version].name != lost and version != refused]
        found = Slots(folder, probation=True)
        assert version_of(found) == (str(fit[0]) if fit else None)
        assert "current.json was damaged" in found.damage
        assert (found.probation is not None) == (len(fit) == 2)
        again = Slots(folder, probation=True)
        assert version_of(again) == version_of(found)
        assert (again.damage == "") == bool(fit)
        if len(fit) == 2:
            back = again.rollback()
            assert back is not None
            assert is_whole(back)
        install(again, 3, 3)
        assert version_of(Slots(folder)) == "3"


def test_the_newest_slot_is_what_a_channel_named_last(tmp_path: Path) -> None:
    """A channel that went back to release 1 is followed also when the pointer is lost; without its word the release
    that was approved last boots."""
    slots = Slots(tmp_path)
    for version in (1, 2):
        folder = slots.prepare()
        fill(folder, version)
        passport = passport_of(version, approved_at=f"2026-11-2{version}T10:00:00Z")
        (folder / "passport.json").write_bytes(msgspec.json.encode(passport))
        slots.commit(slots.candidate(folder, channel_of(version, version)))
    (tmp_path / "current.json").write_bytes(b"")
    assert version_of(Slots(tmp_path)) == "2"
    slots.saw(channel_of(1, 3))
    (tmp_path / "current.json").write_bytes(b"")
    assert version_of(Slots(tmp_path)) == "1"


def test_without_a_pointer_nothing_was_ever_committed(tmp_path: Path) -> None:
    """A whole slot on a robot that has no `current.json` at all is a first release that was not activated yet."""
    slots = Slots(tmp_path)
    fill(slots.prepare(), 1)
    assert Slots(tmp_path).current() is None


def test_a_damaged_pointer_on_a_read_only_disk_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest slot runs; that it could not be written down is in the log."""
    install(Slots(tmp_path), 1, 1)
    (tmp_path / "current.json").write_bytes(b"x")

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "write_atomic", read_only)
    slots = Slots(tmp_path)
    assert version_of(slots) == "1"
    assert slots.running is not None
    assert "Read-only" in caplog.text


def test_kill_at_random_moments_leaves_a_bootable_robot(tmp_path: Path) -> None:
    """A process that installs one release after the other is killed 8 times: each time the next start finds a whole
    release, never older than the one before."""
    rng = random.Random(1)
    newest = 0
    for _ in range(8):
        process = subprocess.Popen(
            program(f"install_forever({str(tmp_path)!r})"), cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.03))  # the moment of the kill, not a wait for anything
            process.kill()
            process.wait()
        finally:
            process.stdout.close()
            end(process)
        current = Slots(tmp_path).current()
        assert current is not None
        assert is_whole(current)
        version = int(current.passport.lineage.model_version)
        assert version > newest
        newest = version


def test_a_full_disk_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the pointer cannot be written, the error is the operator's and the old release still boots; a refusal that
    cannot be written holds until the next start."""
    slots = Slots(tmp_path)
    install(slots, 1, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_atomic", full)
        with pytest.raises(OperatorError, match="No space left"):
            install(slots, 2, 2)
        with pytest.raises(OperatorError, match="No space left"):
            slots.saw(channel_of(2, 2))
        slots.refuse("release", sha256(b"x"), "reason")
    assert slots.refused(sha256(b"x")) == "reason"
    assert version_of(Slots(tmp_path)) == "1"
