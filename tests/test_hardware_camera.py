"""The camera: real GStreamer for colours and sizes, a stand-in of its launcher for all that goes wrong."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import numpy as np
import pytest

from serving import preprocess
from serving.errors import OperatorError
from serving.hardware import cameras
from serving.hardware.base import Frame
from serving.hardware.cameras import Camera, Source, csi_source, last_error, to_frames, usb_source
from serving.hardware.frame_judge import Judge
from tests.conftest import ROOT, need, wait_for

Open = Callable[..., Camera]


@pytest.fixture
def open_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a camera whose launcher fails in the way that the file `way` names when it is started."""
    launcher, way, made = tmp_path / "launcher", tmp_path / "way", []
    stand_in = ROOT / "tests/simulators/gst_launch.py"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$(cat {way})" "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(cameras, "LAUNCHER", str(launcher))
    monkeypatch.setattr(cameras, "_BACKOFF_S", (0.05, 0.2))
    monkeypatch.setattr(cameras, "_SILENT_S", 0.5)
    monkeypatch.setattr(cameras, "_FIRST_FRAME_S", 1.5)

    def opened(fails: str, latency_s: float = 0.0) -> Camera:
        way.write_text(fails)
        made.append(Camera(Source("teststand", 30, "look at the cable"), latency_s, min_fps=8))
        return made[-1]

    yield opened
    for camera in made:
        camera.close()


def trouble(camera: Camera) -> str:
    """What read() complains about now."""
    try:
        camera.read(0.1)
    except OperatorError as problem:
        return str(problem)
    return ""


def frames(camera: Camera, count: int) -> List[Frame]:
    found: List[Frame] = []

    def more() -> bool:
        try:
            frame: Optional[Frame] = camera.read(0.5)
        except OperatorError:
            return False
        if frame is not None:
            found.append(Frame(frame.pixels.copy(), frame.captured_at))
        return len(found) >= count

    wait_for(more, what=f"{count} frames")
    return found


def test_frames_come_fresh_and_in_rgb(open_camera: Open) -> None:
    """Shape, order of colours and a time of capture that never runs backwards."""
    camera = open_camera("well", latency_s=0.05)
    for before, after in zip((found := frames(camera, 8)), found[1:], strict=False):
        assert before.pixels.shape == preprocess.FRAME_SHAPE
        assert before.pixels[0, 0, 0] > 0
        assert tuple(before.pixels[0, 0, 1:]) == (0, 1)
        assert before.captured_at < after.captured_at < time.monotonic() - 0.05


def test_a_frame_stays_as_it_is_until_the_next_read(open_camera: Open) -> None:
    """The thread writes the frames that follow somewhere else, and only the newest is given out."""
    camera = open_camera("well")
    first = frames(camera, 3)[-1]
    held = camera.read(1.0)
    assert held is not None
    copy = held.pixels.copy()
    wait_for(lambda: time.monotonic() - held.captured_at > 0.3, what="ten frames more")
    assert (held.pixels == copy).all()
    after = camera.read(1.0)
    assert after is not None
    assert after.captured_at - held.captured_at > 0.2
    assert held.captured_at > first.captured_at


def test_a_backlog_is_not_taken_for_fresh(open_camera: Open) -> None:
    """A reader held up finds frames that lay there: they count as old as its last look, not as new."""
    camera = open_camera("well")
    frames(camera, 3)
    stopped: List[float] = []
    judge = camera._judge
    look = judge.look

    def slow_once(frame: np.ndarray, arrived_s: float) -> "tuple[str, bool]":
        if not stopped:
            stopped.append(time.monotonic())
            time.sleep(0.4)  # as if the whole daemon had been stopped
        return look(frame, arrived_s)

    judge.look = slow_once  # type: ignore[method-assign]
    wait_for(lambda: stopped, what="the hold-up")
    wait_for(lambda: time.monotonic() - stopped[0] > 0.4, what="its end")
    seen = frames(camera, 6)
    ages_s = [frame.captured_at - stopped[0] for frame in seen]
    assert not any(0.05 < age_s < 0.38 for age_s in ages_s), ages_s
    assert ages_s[-1] > 0.4


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("absent", "no camera: ERROR: from element v4l2src0: Cannot identify device '/dev/video0'"),
        ("unplugged", r"no camera: ERROR: .*Could not read from resource"),
        ("mute", "no frame for 2 s"),
        ("frozen", "the picture is frozen"),
        ("small", "a frame of 57600 bytes, not 150528: wrong size"),
        ("large", "a frame of 150529 bytes, not 150528: wrong size"),
        ("black", "the picture is black: take the cap off the lens"),
        ("slow", "5 frames a second, fewer than 8: more light"),
    ],
)
def test_every_fault_is_named_and_mends_by_itself(open_camera: Open, tmp_path: Path, way: str, message: str) -> None:
    """One line with the cause and what to look at; frames again when the cause is gone, with nobody's help."""
    camera = open_camera(way)
    said: List[str] = []
    wait_for(lambda: said.append(trouble(camera)) or said[-1], what="a complaint")
    assert re.search(message, said[-1]), said[-1]
    assert "look at the cable" in said[-1]
    assert "\n" not in said[-1]
    (tmp_path / "way").write_text("well")
    if way in ("black", "slow"):  # the camera stays open meanwhile: the stand-in has to be started anew
        os.kill(child_of(camera), signal.SIGKILL)
    assert frames(camera, 3)
    assert trouble(camera) == ""


def child_of(camera: Camera) -> int:
    import psutil

    children = [child for child in psutil.Process().children() if "gst_launch" in " ".join(child.cmdline())]
    assert len(children) == 1
    return int(children[0].pid)


def test_closing_ends_the_camera_process(open_camera: Open) -> None:
    """Also while no frame comes."""
    import psutil

    others = psutil.Process().children()  # of tests that ran before in this process
    camera = open_camera("mute")
    wait_for(lambda: set(psutil.Process().children()) - set(others), what="the camera's process")
    began_s = time.monotonic()
    camera.close()
    assert time.monotonic() - began_s < 2.0
    assert not set(psutil.Process().children()) - set(others)


def test_a_missing_gstreamer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, for waiting would not mend it."""
    monkeypatch.setattr(cameras, "LAUNCHER", "gst-launch-of-nowhere")
    with pytest.raises(OperatorError, match=r"apt-get install gstreamer1\.0-tools"):
        Camera(usb_source("/dev/video0", 640, 480, 30, mjpeg=False), 0.0, 8)


def test_the_csi_pipeline_is_the_jetbot_projects() -> None:
    """nvarguscamerasrc in the sensor's mode, scaled on the chip to BGRx, and asked for by name as RGB."""
    command = " ".join(to_frames(csi_source(0, 1640, 1232, 30, 2), 7))
    assert command == (
        "gst-launch-1.0 --quiet nvarguscamerasrc sensor-id=0 ! "
        "video/x-raw(memory:NVMM),width=1640,height=1232,format=NV12,framerate=30/1 ! "
        "nvvidconv flip-method=2 ! video/x-raw,width=224,height=224,format=BGRx ! "
        "queue max-size-buffers=1 leaky=downstream ! videoconvert ! videoscale ! "
        "video/x-raw,format=RGB,width=224,height=224 ! fdsink fd=7 sync=false"
    )


def real_camera(elements: str) -> Camera:
    need("gst-launch-1.0")
    return Camera(Source(elements, 30, "look at the cable"), 0.0, min_fps=0)


@pytest.mark.parametrize(("argb", "rgb"), [("0xffff0000", (255, 0, 0)), ("0xff0000ff", (0, 0, 255))])
def test_gstreamer_gives_red_as_red(argb: str, rgb: "tuple[int, int, int]") -> None:
    """Real GStreamer, from the BGRx that nvvidconv gives: red comes first. The notebooks got this wrong."""
    elements = (
        f"videotestsrc is-live=true pattern=solid-color foreground-color={argb} ! "
        "video/x-raw,format=BGRx,width=224,height=224,framerate=30/1"
    )
    camera = real_camera(elements)
    try:
        pixels = frames(camera, 2)[0].pixels
        assert np.abs(pixels.astype(int) - rgb).max() <= 2
    finally:
        camera.close()


def test_gstreamer_scales_any_camera_and_keeps_the_newest() -> None:
    """Real GStreamer at 640x480 YUY2, as a webcam gives it: whole frames at its rate."""
    elements = "videotestsrc is-live=true pattern=snow ! video/x-raw,format=YUY2,width=640,height=480,framerate=30/1"
    camera = real_camera(elements)
    try:
        found = frames(camera, 30)
        rate = 29 / (found[-1].captured_at - found[0].captured_at)
        assert 15 < rate < 35
        assert all(frame.pixels.std() > 10 for frame in found)
    finally:
        camera.close()


def test_gstreamer_decodes_a_webcams_jpegs() -> None:
    """Real GStreamer, with JPEGs in the place of the webcam's."""
    elements = usb_source("/dev/video0", 640, 480, 30, mjpeg=True).elements
    assert elements.startswith("v4l2src device=/dev/video0 ! image/jpeg,")
    source = "videotestsrc is-live=true pattern=red ! video/x-raw,width=640,height=480,framerate=30/1 ! jpegenc"
    camera = real_camera(elements.replace("v4l2src device=/dev/video0", source))
    try:
        assert (
            np.abs(frames(camera, 2)[0].pixels.astype(int) - (255, 0, 0)).max() <= 30
        )  # JPEG has a standard of its own for red
    finally:
        camera.close()


def test_gstreamer_without_a_camera_is_told_in_its_own_words() -> None:
    """Real GStreamer on a device that is not there."""
    camera = real_camera(usb_source("/dev/video99", 640, 480, 30, mjpeg=False).elements)
    try:
        wait_for(lambda: "/dev/video99" in trouble(camera), what="the complaint")
    finally:
        camera.close()


def test_a_still_scene_with_noise_is_not_frozen() -> None:
    """Only the very same picture for a second is."""
    judge = Judge(min_fps=0)
    still = np.full(preprocess.FRAME_BYTES, 90, np.uint8)
    for number in range(90):
        still[number * 16] ^= 1
        assert judge.look(still, number / 30) == ("", False)
    said = [judge.look(still, 3 + number / 30) for number in range(40)]
    assert said[5] == ("", False)
    assert "frozen" in said[-1][0]


@pytest.mark.parametrize("said", ["", "\n", "a\nb", "x\nERROR: from element a: b.\nAdditional debug info"])
def test_the_reason_is_always_one_line(said: str) -> None:
    """The line with the error, else the first, else that there was none."""
    assert last_error(said) in ("its process ended without a word", "a", "ERROR: from element a: b.")
