"""Who may see the console, who may write in it, and what every answer carries. A real server, asked over HTTP."""

import http.client
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner

from serving.errors import OperatorError, RejectedError
from telemetry import users
from telemetry.console import command
from telemetry.console.access import Access, Limiter
from telemetry.notes import Notes
from telemetry.store import Batch, open_store
from tests.conftest import ROOT, answers, end, free_port, start, wait_for
from tests.test_telemetry_samples import event, state

PASSWORD = "correct horse battery"
Answer = tuple[int, dict[str, str], str]
Ask = Callable[..., Answer]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Callable[..., Ask]]:
    """Starts consoles with options; gives a function that asks them."""
    running = []

    def begin(*options: str) -> Ask:
        port = free_port()
        url = f"sqlite:///{tmp_path / 'events.db'}"
        open_store(url).add(Batch(events=[event(1)], states=[state()]))
        cli = [sys.executable, "-m", "pipelines.cli", "console", "--store", url, "--port", str(port), *options]
        running.append(start(cli, tmp_path / "console.log", cwd=ROOT))
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 60, f"the console ({tmp_path})")

        def ask(path: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            body = urlencode(form) if form is not None else None
            if body is not None:
                sent["Content-Type"] = "application/x-www-form-urlencoded"
            connection.request("GET" if body is None else "POST", path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace")

        return ask

    try:
        yield begin
    finally:
        for process in running:
            end(process)


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    for name, role in (("ann", "operator"), ("vic", "viewer")):
        arguments = ["user", "add", name, "--role", role, "--users", str(path)]
        done = CliRunner().invoke(command, arguments, input=f"{PASSWORD}\n")
        assert done.exit_code == 0, done.output
    return path


def _token(page: str) -> str:
    found = re.search(r'name=\\?"token\\?" value=\\?"([0-9a-f]{64})', page)
    assert found, page[:2000]
    return found[1]


def _sign_in(ask: Ask, name: str, password: str = PASSWORD) -> tuple[int, str]:
    form = {"name": name, "password": password, "token": _token(ask("/login")[2]), "back": "/events"}
    status, headers, _ = ask("/login", form)
    return status, headers.get("set-cookie", "")


def test_signing_in_and_what_each_role_may(console: Callable[..., Ask], users_file: Path, tmp_path: Path) -> None:
    """Nothing is seen before; an operator writes notes and a viewer does not; who is removed is out at once."""
    ask = console("--users", str(users_file))
    status, headers, _ = ask("/robot/lab/jetbot-1?x=1")
    assert (status, headers["location"]) == (303, "/login?back=%2Frobot%2Flab%2Fjetbot-1%3Fx%3D1")
    assert ask("/notes", {"text": "x"})[0] == 401
    assert _sign_in(ask, "ann", "wrong password")[0] == 401
    status, cookie = _sign_in(ask, "ann")
    assert status == 303
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    ann = cookie.partition(";")[0]
    status, _, page = ask("/robot/lab/jetbot-1", Cookie=ann)
    assert status == 200
    assert "jetbot-1" in page
    note = {"subject": "robot/lab/jetbot-1", "text": "wheel <b>loose</b>", "back": "/robot/lab/jetbot-1"}
    assert ask("/notes", {**note, "token": "0" * 64}, Cookie=ann)[0] == 400
    assert ask("/notes", {**note, "token": _token(page)}, Cookie=ann)[0] == 303
    kept = Notes(f"sqlite:///{tmp_path / 'events.db'}").of("robot/lab/jetbot-1")
    assert [(one["author"], one["text"]) for one in kept] == [("ann", "wheel <b>loose</b>")]
    page = ask("/robot/lab/jetbot-1", Cookie=ann)[2]
    assert "<b>loose" not in page

    vic = _sign_in(ask, "vic")[1].partition(";")[0]
    page = ask("/robot/lab/jetbot-1", Cookie=vic)[2]
    assert "Add a note" not in page
    assert ask("/notes", {**note, "token": _token(page)}, Cookie=vic)[0] == 403

    users.remove(users_file, "ann")
    assert ask("/", Cookie=ann)[0] == 303
    assert ask("/", Cookie=vic)[0] == 200
    assert ask("/logout", {"token": _token(ask("/", Cookie=vic)[2])}, Cookie=vic)[0] == 303
    assert ask("/", Cookie=vic)[0] == 303


def test_guessing_is_slowed_down(console: Callable[..., Ask], users_file: Path) -> None:
    """After five wrong passwords the right one does not help either; another name still gets in."""
    ask = console("--users", str(users_file))
    assert [_sign_in(ask, "ann", "a guess that is wrong")[0] for _ in range(6)] == [401] * 5 + [429]
    assert _sign_in(ask, "ann")[0] == 429
    assert _sign_in(ask, "vic")[0] == 303


def test_a_proxy_names_the_user(console: Callable[..., Ask], users_file: Path) -> None:
    """The header counts from the proxy's address alone, and once; the users file gives the role."""
    believed = console(
        "--trust-header", "X-Forwarded-User", "--trusted-proxy", "127.0.0.0/8", "--users", str(users_file)
    )
    assert believed("/")[0] == 401
    status, _, page = believed("/robot/lab/jetbot-1", X_Forwarded_User="ann")
    assert status == 200
    assert "Add a note" in page
    assert "ann" in page
    assert "Add a note" not in believed("/robot/lab/jetbot-1", X_Forwarded_User="eve")[2]
    other = console("--trust-header", "X-Forwarded-User", "--trusted-proxy", "10.0.0.0/8")
    assert other("/", X_Forwarded_User="ann")[0] == 401


def test_other_sites_are_kept_out(console: Callable[..., Ask]) -> None:
    """A page elsewhere can neither write, nor listen, nor frame, nor reach this machine by a name of its own."""
    ask = console()
    status, headers, page = ask("/robot/lab/jetbot-1")
    assert status == 200
    for name, part in {
        "content-security-policy": "frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cache-control": "no-store",
    }.items():
        assert part in {key.lower(): value for key, value in headers.items()}[name]
    note = {"subject": "robot/lab/jetbot-1", "text": "x", "token": _token(page)}
    assert ask("/notes", note, Origin="http://evil.example")[0] == 403
    assert ask("/", Host="evil.example")[0] == 403
    socket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert ask(path, **socket, **key, Origin="http://evil.example")[0] == 403
    assert ask("/notes", {"text": "x" * 20_000})[0] == 400


def test_a_network_needs_somebody_who_asks(tmp_path: Path) -> None:
    """Without users or a proxy the console listens on this machine alone, and says why."""
    cli = [sys.executable, "-m", "pipelines.cli", "console", "--host", "0.0.0.0", "--port", str(free_port())]
    done = subprocess.run(cli, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "add --users FILE" in done.stderr
    assert done.stderr.count("\n") == 1
    with pytest.raises(OperatorError, match="belong together"):
        Access(header="X-User")


def test_passwords(tmp_path: Path) -> None:
    """Hashes differ each time, match their password alone, and a damaged file lets nobody in."""
    first, second = users.hash_password(PASSWORD), users.hash_password(PASSWORD)
    assert first != second
    assert users.matches(PASSWORD, first)
    assert not users.matches(PASSWORD + "x", first)
    assert not users.matches(PASSWORD, "scrypt$1$2")
    with pytest.raises(RejectedError, match="10 to 200"):
        users.hash_password("short")
    path = tmp_path / "users.json"
    with pytest.raises(OperatorError, match="user add"):
        users.Users(path)
    users.put(path, users.User(name="ann", role="viewer", password=first))
    assert path.stat().st_mode & 0o777 == 0o600
    known = users.Users(path)
    assert known.check("ann", PASSWORD) is not None
    assert known.check("nobody", PASSWORD) is None
    path.write_text("{")
    with pytest.raises(OperatorError, match="is no file of"):
        known.get("ann")
    with pytest.raises(RejectedError, match="no user name"):
        users.put(tmp_path / "other.json", users.User(name="a b", role="viewer"))


def test_the_limiter_forgets() -> None:
    """It counts per key within its window, and keeps a bounded number of keys."""
    limiter = Limiter(2, 3600.0, keys=3)
    limiter.count("a")
    assert limiter.wait_s("a") == 0
    limiter.count("a")
    assert 3500 < limiter.wait_s("a") <= 3600
    for key in "bcd":
        limiter.count(key)
    assert limiter.wait_s("a") == 0
