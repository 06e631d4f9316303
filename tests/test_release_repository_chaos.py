"""A short run of `make chaos-release`: random damage to the repository, and kill -9 of who publishes and pulls."""

import os
import random
from pathlib import Path

import pytest

from tests.bench import release_chaos, release_kills


def test_no_random_corruption_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 files harmed: nothing wrong is activated, every robot recovers; and most of the harm was felt."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    found = release_chaos.corruptions(tmp_path, 60, 1, lambda: None)
    assert release_chaos.bad(found) == {}
    assert found["refused"] > 20
    assert found["refused"] + found["harmless"] == 60


@pytest.mark.parametrize("kind", release_chaos.HARMS)
def test_the_harm_is_done(kind: str) -> None:
    """Each kind changes the content, or the counts above would mean nothing."""
    dice = random.Random(3)
    content = bytes(range(1, 200))
    assert all(release_chaos.HARMS[kind](content, dice, b"another") != content for _ in range(50))


def test_a_wrong_engine_would_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TUF's check of digests switched off, the count of wrong releases is not 0: the measure can fail."""
    from tuf.api.metadata import MetaFile, TargetFile

    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("serving.slots.inspect", _believing)
    for kind in (MetaFile, TargetFile):
        monkeypatch.setattr(kind, "verify_length_and_hashes", lambda *_: None)
    assert release_chaos.corruptions(tmp_path, 40, 1, lambda: None)["accepted_but_wrong"] > 0


def _believing(folder: Path, channel: object) -> object:
    import msgspec

    from serving.candidate import Candidate
    from serving.contracts.releases import Passport

    passport = msgspec.json.decode((folder / "passport.json").read_bytes(), type=Passport)
    return Candidate(passport, folder, folder / "engine.onnx", folder / "golden.npz", channel)  # type: ignore[arg-type]


def test_kills_break_nothing(tmp_path: Path) -> None:
    """4 kills of a publisher and a robot: nothing broken, published twice or installed twice; the robot arrives."""
    found = release_kills.kills(tmp_path, 4, 1, lambda: None)
    assert release_chaos.bad(found) == {}
    assert found["published"] > 1
    assert found["activations"] > 1
