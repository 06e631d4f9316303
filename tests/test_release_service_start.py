"""Starting the release service: mistakes, a folder that is taken, a folder of an older jetloop."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tests import release_lab
from tests.conftest import free_port
from tests.release_lab import PARAMS, Jetloop, Lab

lab, jetloop = release_lab.lab, release_lab.jetloop  # fixtures


def test_two_services_do_not_share_a_folder(lab: Lab, jetloop: Jetloop) -> None:
    """The second one ends with a line that names the first."""
    lab.serve("--no-webhook")
    lab.ready()
    code, _, said = jetloop(*lab.command("--no-webhook"), "--port", str(free_port()))
    assert code == 1
    assert f"already served by process {lab.process and lab.process.pid}" in said


def test_mistakes_end_in_one_line(jetloop: Jetloop, tmp_path: Path) -> None:
    """Folder not made, port taken, unknown target, broker address, params: each one line that says what to do."""
    release = tmp_path / "release"
    code, printed, _ = jetloop("release", "init", "--folder", str(release))
    assert code == 0
    assert "root.json" in printed
    assert "keys/offline" in printed
    code, _, said = jetloop("release", "init", "--folder", str(release))
    assert (code, "nothing is overwritten" in said) == (1, True)
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.format(accuracy=0.8).replace("cpu-ort-fp32", "cpu-ort-int8"))
    good = tmp_path / "good.yaml"
    good.write_text(PARAMS.format(accuracy=0.8))
    serve = ["release", "serve", "--params", str(good), "--folder", str(release), "--port", str(free_port())]
    with taken_port() as port:
        cases = [
            ([*serve, "--folder", str(tmp_path / "none")], "jetloop release init"),
            ([*serve, "--port", str(port)], "choose another --port"),
            ([*serve, "--target", "toaster-trt8.2-fp16"], "jetloop release targets"),
            ([*serve, "--mqtt", "broker:x"], "is not HOST:PORT"),
            ([*serve, "--params", str(params)], "no limit for the target cpu-ort-fp32"),
            ([*serve, "--params", str(tmp_path / "none.yaml")], "none.yaml"),
            ([*serve, "--channel", "champion,../x"], "letters, digits"),
        ]
        for arguments, wanted in cases:
            code, _, said = jetloop(*arguments)
            assert code == 1, arguments
            assert wanted in said
            assert len(said.strip().splitlines()) == 1, said
    assert "nothing is released yet" in jetloop("release", "status", "--folder", str(release))[1]


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])
