"""Downloads: a large file goes on where it broke off; and what waits for the end of a probation."""

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api import exceptions as tuf_errors

from serving.errors import OperatorError
from serving.fetcher import Fetcher
from serving.slots import Slots
from tests.test_link_parts import channel_of
from tests.updater_lab import Lab, made_lab

CONTENT = os.urandom(300_000)


class Flaky:
    """A web server with or without ranges whose connections end early.

    Attributes:
        breaks_after: bytes of each answer's body; then the connection ends.
        ranges: `fine`, `none` (it sends everything), `refused` (416) or `shifted` (it sends another part).
        asked: the Range header of each request.
    """

    def __init__(self) -> None:
        self.breaks_after = 10**9
        self.ranges = "fine"
        self.content = CONTENT
        self.asked: list[str | None] = []
        flaky = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                flaky._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges != "none" else 0
        if start and self.ranges == "refused":
            handler.send_error(416)
            return
        start += 1 if start and self.ranges == "shifted" else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start:][: self.breaks_after])


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    made = Flaky()
    yield made
    made.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with made_lab(tmp_path) as made:
        yield made


@pytest.fixture
def fetcher(flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    monkeypatch.setattr("serving.fetcher.RESUMABLE_BYTES", 100_000)
    return Fetcher(flaky.url, 5.0, tmp_path / "tuf")


def break_off(flaky: Flaky, fetcher: Fetcher, after: int) -> None:
    flaky.breaks_after = after
    with pytest.raises(tuf_errors.DownloadError):
        fetcher.download_bytes(f"{flaky.url}/engine", len(CONTENT))
    flaky.breaks_after = 10**9


def test_a_large_file_goes_on_where_it_broke_off(flaky: Flaky, fetcher: Fetcher) -> None:
    """Broken off twice, the third attempt asks for the rest alone, also in another process; nothing is left over."""
    break_off(flaky, fetcher, 100_000)
    break_off(flaky, fetcher, 50_000)
    again = Fetcher(flaky.url, 5.0, fetcher._folder)
    assert again.download_bytes(f"{flaky.url}/engine", len(CONTENT)) == CONTENT
    assert flaky.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert list((fetcher._folder / "parts").iterdir()) == []


@pytest.mark.parametrize("ranges", ["none", "refused", "shifted"])
def test_a_server_without_ranges_sends_it_all_again(flaky: Flaky, fetcher: Fetcher, ranges: str) -> None:
    """No range, a refused one, or the wrong part: the file is whole in the end."""
    break_off(flaky, fetcher, 100_000)
    flaky.ranges = ranges
    assert fetcher.download_bytes(f"{flaky.url}/engine", len(CONTENT)) == CONTENT


def test_a_small_file_begins_anew(flaky: Flaky, fetcher: Fetcher) -> None:
    """Metadata is not resumed: it may have changed, and costs nothing."""
    flaky.content, flaky.breaks_after = CONTENT[:5000], 1000
    with pytest.raises(tuf_errors.DownloadError):
        fetcher.download_bytes(f"{flaky.url}/timestamp.json", 16_384)
    flaky.breaks_after = 10**9
    assert fetcher.download_bytes(f"{flaky.url}/timestamp.json", 16_384) == CONTENT[:5000]
    assert flaky.asked == [None, None]


def test_what_is_longer_than_allowed_is_not_kept(flaky: Flaky, fetcher: Fetcher) -> None:
    """The limit holds over all attempts together, and what broke it is not gone on with."""
    break_off(flaky, fetcher, 100_000)
    with pytest.raises(tuf_errors.DownloadLengthMismatchError):
        fetcher.download_bytes(f"{flaky.url}/engine", 200_000)
    assert list((fetcher._folder / "parts").iterdir()) == []


def test_what_does_not_verify_is_not_gone_on_with(flaky: Flaky, fetcher: Fetcher) -> None:
    """A part that leads to a wrong whole is thrown away when the caller says so."""
    with pytest.raises(ValueError, match="wrong"), fetcher.download_file(f"{flaky.url}/engine", len(CONTENT)):
        raise ValueError("wrong digest")
    assert list((fetcher._folder / "parts").iterdir()) == []


def test_parts_do_not_pile_up(flaky: Flaky, fetcher: Fetcher) -> None:
    """Of many releases that broke off, the parts of two files are kept."""
    flaky.breaks_after = 1000
    for number in range(5):
        with pytest.raises(tuf_errors.DownloadError):
            fetcher.download_bytes(f"{flaky.url}/engine-{number}", len(CONTENT))
    assert len(list((fetcher._folder / "parts").iterdir())) == 2


def test_a_release_is_resumed_after_a_restart(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole updater: a connection that breaks in the middle of the engine costs the rest of it alone."""
    monkeypatch.setattr("serving.fetcher.RESUMABLE_BYTES", 10_000)
    lab.publish(1, 1)
    engine = next((lab.folder / "repository").rglob("*engine.onnx")).read_bytes()

    def half(path: str) -> Iterator[bytes] | None:
        return iter([engine[:20_000]]) if path.endswith("engine.onnx") else None

    lab.server.lie = half
    lab.updater.check()
    assert lab.activated == []
    lab.server.lie = lambda _: None
    lab.robot()
    assert lab.updater.check()
    assert lab.running() == "1"


# Probation


def on_probation(lab: Lab) -> Slots:
    """Release 2 drives on probation after release 1."""
    lab.slots._with_probation = True
    for version in (1, 2):
        lab.publish(version, version)
        assert lab.updater.check()
    assert lab.slots.probation is not None
    return lab.slots


def test_a_release_waits_until_the_probation_is_over(lab: Lab) -> None:
    """Release 3 comes during the probation of release 2: it is not downloaded, release 1 stays intact, nothing is
    refused; afterwards the next look brings it."""
    slots = on_probation(lab)
    lab.publish(3, 3)
    for _ in range(2):
        lab.server.asked.clear()
        with pytest.raises(OperatorError, match="on probation"):
            lab.updater.check()
        assert not [path for path in lab.server.asked if "engine" in path]
    assert slots.previous() is not None
    slots.progressed(None)
    assert lab.updater.check()
    assert (lab.activated, lab.running(), lab.refusals) == (["1", "2", "3"], "3", [])


def test_moving_back_does_not_wait_and_downloads_nothing(lab: Lab) -> None:
    """A person names release 1 again while release 2 is on probation: it is still here, and drives at once, without
    a probation of its own and without a refusal of the other."""
    slots = on_probation(lab)
    lab.server.asked.clear()
    lab.repository.publish({}, [channel_of(1, 3)])
    assert lab.updater.check()
    assert (lab.activated, lab.running(), lab.refusals) == (["1", "2", "1"], "1", [])
    assert not [path for path in lab.server.asked if "engine" in path]
    assert slots.probation is None


def test_going_back_is_not_undone_by_the_next_look(lab: Lab) -> None:
    """The channel still names the refused release: it is left alone, and the next one comes into its slot."""
    slots = on_probation(lab)
    bad = slots.running
    assert bad is not None
    slots.refuse(bad.passport.release_id, bad.passport.engine.sha256, "spin")
    slots.rollback()
    assert not lab.updater.check()
    assert lab.running() == "1"
    lab.publish(3, 3)
    assert lab.updater.check()
    assert lab.running() == "3"
