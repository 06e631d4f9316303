"""What people look at: the page that shows a drive, the figure of distances, the pictures of a suite."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from serving.contracts.releases import Decision
from serving.errors import OperatorError, RejectedError
from simulator import cli, distances, watch
from simulator.drive import Network
from simulator.labels import clearance_m
from simulator.settings import LoopSettings, SuiteSettings
from simulator.suite import run_suite, start_arena
from simulator.suite_pictures import draw_paths, make_clip
from tests.conftest import free_port, wait_for
from tests.simulators.constant_network import BLOCKED, FREE, constant_network


@pytest.fixture
def free(tmp_path: Path) -> Path:
    return constant_network(tmp_path / "free.onnx", FREE)


@pytest.fixture
def page(free: Path) -> Iterator[str]:
    screen = watch.Screen(start_arena(9_000_003, 0), Network(free), SuiteSettings(frames_per_s=10))
    with watch.serve(screen, "<free.onnx>", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
    screen.close()


def test_the_page_shows_the_drive_as_it_goes_on(page: str) -> None:
    """The page names what drives, with nothing of the name taken as markup; the stream gives picture after picture."""
    with urllib.request.urlopen(f"{page}/", timeout=10) as answer:
        text = answer.read().decode()
    assert "&lt;free.onnx&gt;" in text
    assert "/stream" in text
    with urllib.request.urlopen(f"{page}/stream", timeout=10) as stream:
        pictures = []
        for _ in range(2):
            assert stream.readline().strip() == b"--picture"
            head = [stream.readline() for _ in range(3)]
            length = next(int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length"))
            pictures.append(stream.read(length))
            stream.readline()
    assert pictures[0] != pictures[1]
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures)
    with urllib.request.urlopen(f"{page}/picture.jpg", timeout=10) as answer:
        assert Image.open(answer).size == (896, 468)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{page}/other", timeout=10)


def test_a_drive_that_fails_is_told_to_who_waits(tmp_path: Path) -> None:
    """A network that answers nonsense ends the drive, and the command with its reason."""
    broken = constant_network(tmp_path / "nan.onnx", (float("nan"), 0.0))
    screen = watch.Screen(start_arena(9_000_003, 0), Network(broken), SuiteSettings())
    wait_for(lambda: screen.failed is not None, what="the drive's end")
    with pytest.raises(RejectedError, match="no number"):
        screen.wait()


def test_a_taken_port_is_named() -> None:
    """The second page on one port is refused with the option that mends it."""
    port = free_port()
    with watch.serve(None, "one", port), pytest.raises(OperatorError, match="--port"):  # type: ignore[arg-type]
        watch.serve(None, "two", port)  # type: ignore[arg-type]


def test_places_look_head_on_at_something_at_the_distance_asked_for() -> None:
    """Each place is in a room of its own, and what lies ahead is as far as it should be."""
    found = distances.places(4)
    assert len({room.seed for room, _ in found}) == 4
    low, high = distances.AWAY_M
    assert all(low <= clearance_m(room, pose) <= high for room, pose in found)


def test_who_sees_nothing_hits_everything_and_who_fears_everything_stays_away(tmp_path: Path, free: Path) -> None:
    """Always free: distance zero at each place. Always blocked: it turns where it began."""
    afraid = Network(constant_network(tmp_path / "blocked.onnx", BLOCKED), Decision())
    networks, loop = [Network(free), afraid], LoopSettings(frames_per_s=10)
    found = list(distances.compare(networks, 2, loop))
    assert [one.turned_m for number, one in found if number == 0] == [0.0, 0.0]
    assert all(one.turned_m == one.begun_m for number, one in found if number == 1)


def test_the_command_draws_the_figure(tmp_path: Path, free: Path) -> None:
    """One command: a line a network, and a PNG."""
    out = tmp_path / "new" / "figure.png"
    done = CliRunner().invoke(cli.group, ["distances", str(free), str(free), "--drives", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output.count("hits 2 of 2") == 2
    assert Image.open(out).format == "PNG"


def test_a_suite_leaves_pictures_small_enough_for_a_page(tmp_path: Path, free: Path) -> None:
    """A tile a room, and a clip of the drive with the most collisions, below 2 MB."""
    suite = SuiteSettings(rooms=3, starts=1, seconds=8, frames_per_s=8)
    episodes = [one for room in run_suite(free, Decision(), suite, 1) for one in room]
    draw_paths(episodes, tmp_path / "paths.png")
    assert Image.open(tmp_path / "paths.png").size == (600, 2 * 314)
    shown = make_clip(Network(free), suite, episodes, tmp_path / "clip.gif")
    assert shown.counts.collisions == max(one.counts.collisions for one in episodes)
    clip = Image.open(tmp_path / "clip.gif")
    assert (getattr(clip, "n_frames", 0), clip.size) == (32, (384, 212))
    assert (tmp_path / "clip.gif").stat().st_size < 2_000_000
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="cannot write"):
        draw_paths(episodes, tmp_path / "file" / "paths.png")
