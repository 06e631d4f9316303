"""`jetloop ingest` as a person runs it: DVC, params.yaml, twice, killed in the middle, with parts missing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipelines.ingest import ingest
from pipelines.ingest_divide import divide
from pipelines.sessions import SessionZip, each_session, session_files
from serving.errors import OperatorError, RejectedError
from tests.conftest import ROOT
from tests.tiny_images import near, notebook, picture, session, zip_of


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with the params.yaml of this one and a sample."""
    folder = tmp_path_factory.mktemp("pristine")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True)
    shutil.copy(ROOT / "params.yaml", folder)
    session(folder / "data/sample", "sample")
    return folder


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Path:
    """A copy of its own of `pristine`."""
    return Path(shutil.copytree(pristine, tmp_path / "project"))


def jetloop(folder: Path, *arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipelines.cli", "ingest", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_a_zip_becomes_a_tracked_session_once(project: Path, tmp_path: Path) -> None:
    """The session is in DVC, the pipeline reads it, what to commit is told; the second time nothing changes."""
    dataset = notebook(tmp_path / "dataset.zip")
    done = jetloop(project, dataset, "--source", "anna")
    assert done.returncode == 0, done.stderr
    assert "git add data/sessions.dvc data/.gitignore params.yaml" in done.stdout
    assert "dvc repro" in done.stdout
    before, after = (ROOT / "params.yaml").read_text(), (project / "params.yaml").read_text()
    different = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line.split("#")[0].strip() for line in different] == ["sessions: data/sessions"]
    assert "#" in different[0]
    pointer = (project / "data/sessions.dvc").read_text()
    assert "nfiles: 1" in pointer
    shutil.copy(dataset, tmp_path / "same.zip")
    again = jetloop(project, tmp_path / "same.zip")
    assert again.returncode == 0, again.stderr
    assert "nothing new" in again.stdout
    assert "git add" not in again.stdout
    assert (project / "data/sessions.dvc").read_text() == pointer
    assert [path.name for path in session_files(project / "data/sessions")] == ["dataset.zip"]


def test_sessions_that_are_not_fetched_are_not_dropped(project: Path, tmp_path: Path) -> None:
    """In a clone without the data, `dvc add` of the new session alone would remove the others: ingest refuses."""
    assert jetloop(project, notebook(tmp_path / "first.zip")).returncode == 0
    shutil.rmtree(project / "data/sessions")
    second = jetloop(project, notebook(tmp_path / "second.zip", seed=100))
    assert second.returncode == 1
    assert "dvc pull data/sessions.dvc" in second.stderr
    assert not (project / "data/sessions").exists()


def test_no_track_touches_neither_dvc_nor_params(project: Path, tmp_path: Path) -> None:
    """For a folder that something else looks after; a part of a set is a session with the part's number."""
    before = (project / "params.yaml").read_bytes()
    assert jetloop(project, notebook(tmp_path / "dataset.zip"), "--no-track", "--part", "1/2").returncode == 0
    assert (project / "data/sessions/dataset-1.zip").exists()
    assert jetloop(project, tmp_path / "dataset.zip", "--part", "3/2").returncode == 2
    assert not (project / "data/sessions.dvc").exists()
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("problem", ["no dvc", "no params", "broken zip", "one class"])
def test_what_goes_wrong_is_one_line(project: Path, tmp_path: Path, problem: str) -> None:
    """No traceback, whatever is missing; the exit code is 1."""
    dataset = notebook(tmp_path / "dataset.zip", free=0 if problem == "one class" else 3)
    if problem == "no dvc":
        shutil.rmtree(project / ".dvc")
    elif problem == "no params":
        (project / "params.yaml").unlink()
    elif problem == "broken zip":
        dataset.write_bytes(b"no zip")
    done = jetloop(project, dataset)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (project / "data/sessions.dvc").exists()


@pytest.mark.parametrize(("before_replace", "sessions"), [(True, 0), (False, 1)])
def test_kill_leaves_no_half_session(project: Path, tmp_path: Path, before_replace: bool, sessions: int) -> None:
    """Killed before or after the one rename: no session or the whole one, and a second run completes."""
    dataset = notebook(tmp_path / "dataset.zip")
    script = (
        "import os, signal\n"
        "rename = os.replace\n"
        "def die(source, target):\n"
        "    if str(target).endswith('sessions/dataset.zip'):\n"
        f"        if not {before_replace}: rename(source, target)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(source, target)\n"
        "os.replace = die\n"
        "from pipelines.cli import main\n"
        "main()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, "ingest", str(dataset)],
        cwd=project,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(session_files(project / "data/sessions")) == sessions
    done = jetloop(project, dataset)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (project / "data/sessions").iterdir()] == ["dataset.zip"]
    assert len(next(each_session(project / "data/sessions")).images) == 6
    assert YAML(typ="safe").load((project / "data/sessions.dvc").read_text())["outs"][0]["nfiles"] == 1


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    """DVC sees one object, whenever and from whatever the session was made."""
    dataset = notebook(tmp_path / "dataset.zip")
    shutil.unpack_archive(dataset, tmp_path / "folder")
    for number, path in enumerate((dataset, tmp_path / "folder/dataset")):
        ingest(path, tmp_path / str(number), reports=tmp_path / "reports")
    assert (tmp_path / "0/dataset.zip").read_bytes() == (tmp_path / "1/dataset.zip").read_bytes()


def test_a_set_is_divided_into_sessions_with_both_classes(tmp_path: Path) -> None:
    """Near-duplicates stay together, every part has both classes, and what is left out is named once."""
    files = {f"blocked/{i}.jpg": picture(i) for i in range(10)}
    files.update({f"free/{i}.jpg": picture(100 + i) for i in range(10)})
    files.update({f"free/near{i}.jpg": near(100 + i) for i in range(10)})
    path = zip_of(tmp_path / "dataset.zip", {**files, "free/empty.jpg": b""})
    parts = divide(path, (0.6, 0.4))
    assert sorted(name for part in parts for name in part) == sorted([*files, "free/empty.jpg"])
    for part in parts:
        assert all((f"free/{i}.jpg" in part) == (f"free/near{i}.jpg" in part) for i in range(10))
    reports = [ingest(path, tmp_path / "sessions", part=(i, 2), reports=tmp_path / "reports") for i in (1, 2)]
    assert [(report.session, report.about.source) for report in reports] == [
        ("dataset-1", "dataset"),
        ("dataset-2", "dataset"),
    ]
    assert [one.file for report in reports for one in report.left_out] == ["free/empty.jpg"]
    assert [sum(report.images.values()) for report in reports] == pytest.approx([15, 15], abs=2)
    assert all(count > 0 for report in reports for count in report.images.values())
    names = [one.file for report in reports for one in report.taken]
    assert sorted(names) == sorted(files)


def test_a_set_too_small_to_divide_is_refused(tmp_path: Path) -> None:
    """One view of a class cannot be in two sessions."""
    with pytest.raises(RejectedError, match="1 different views of `free`"):
        divide(notebook(tmp_path / "dataset.zip", blocked=4, free=1), (0.6, 0.4))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no session; add images with `jetloop ingest PATH`"),
        ({}, "has no session.json"),
        ({"session.json": b"{"}, "is not JSON"),
        ({"session.json": b'{"id": "b", "source": "b"}'}, "must be b.zip"),
        ({"session.json": b'{"id": "a", "source": "b", "sauce": 1}'}, "`sauce` is not a known setting"),
        ({"session.json": b'{"id": "a", "source": "b"}', "notes.txt": b""}, "holds 'notes.txt'"),
        (b"no zip", "a.zip is not a readable zip"),
    ],
)
def test_a_folder_with_a_bad_session_is_named(tmp_path: Path, content: Any, says: str) -> None:
    """What somebody copied there by hand is told from a session, by file name."""
    if isinstance(content, dict):
        zip_of(tmp_path / "a.zip", content)
    elif content is not None:
        (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises((RejectedError, OperatorError)) as caught:
        list(each_session(tmp_path))
    assert says in str(caught.value)


def test_a_damaged_image_of_a_session_is_named(tmp_path: Path) -> None:
    """A flipped byte is noticed when the image is read."""
    path = session(tmp_path, "a")
    data = bytearray(path.read_bytes())
    data[data.index(picture(0)) + 700] ^= 0xFF
    path.write_bytes(data)
    with SessionZip(path) as opened, pytest.raises(RejectedError, match=r"a\.zip: blocked/b0\.jpg is damaged"):
        opened.read(opened.images[0])


@pytest.mark.skipif("JETLOOP_REAL_DATA" not in os.environ, reason="JETLOOP_REAL_DATA names no folder of real sets")
def test_real_sets_are_taken(tmp_path: Path) -> None:
    """Real notebooks' zips and folders: every image that can be used is taken, the second time nothing is new."""
    folder = Path(os.environ["JETLOOP_REAL_DATA"])
    sets = [*sorted(folder.glob("raw-zips/*.zip")), *sorted(path for path in folder.glob("jetbot/*") if path.is_dir())]
    assert sets
    for path in sets:
        report = ingest(path, tmp_path / "sessions", reports=tmp_path / "reports")
        assert report.outcome in ("written", "nothing-new")
        assert ingest(path, tmp_path / "sessions", reports=tmp_path / "reports").outcome == "nothing-new"
