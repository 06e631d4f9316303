"""A robot that dies at each call that writes, and 10,000 kinds of garbage on its disk: it boots, or stands still.

The fault injection forks a child for each moment: the child does what the robot would do and kills itself (SIGKILL)
before the k-th call that changes the disk; the parent then boots from what is left. Files are written in halves, so
that half-written ones occur too. `JETLOOP_RANDOM_STATES=10000` runs the whole number of random states.
"""

import hashlib
import io
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving import files
from serving.config import ProbationSettings, RepositorySettings
from serving.contracts.releases import Channel
from serving.errors import OperatorError
from serving.pointer import Progress
from serving.probation import Probation
from serving.slots import Candidate, Slots
from serving.updater import Updater, misfit
from tests.test_link_parts import (
    TARGET,
    Server,
    channel_of,
    engine_bytes,
    files_of,
    fill,
    install,
    is_whole,
    passport_of,
    sha256,
)
from tests.test_robot_parts import Heard

REFUSED_LONG_AGO = sha256(b"refused long ago")
RANDOM_STATES = int(os.environ.get("JETLOOP_RANDOM_STATES", "200"))


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill does not lose what is written: each sync is a moment to die at, and need not be waited for."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# The harness


class HalfWriter:
    """A file whose content reaches the disk in two halves, with a moment to die before each."""

    def __init__(self, file: Any, passes: Callable[[], None]) -> None:
        self._file, self._passes = file, passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "HalfWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def write(self, data: Any) -> int:
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self._passes()
            self._file.write(half)
            self._file.flush()
        return len(data)


def die_at(moment: int) -> None:
    """From now on this process kills itself before the `moment`-th call that changes the disk."""
    calls = 0

    def passes() -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            passes()
            return real(*args, **kwargs)

        return call

    real_open, real_write, real_io_open = os.open, os.write, io.open
    for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "symlink", "link"):
        setattr(os, name, counted(getattr(os, name)))

    def open_counted(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_RDWR):
            passes()
        return real_open(path, flags, *args, **kwargs)

    def write_half(descriptor: int, data: Any) -> int:
        passes()
        return real_write(descriptor, data[: len(data) // 2 + 1])

    def io_open_counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real_io_open(file, mode, *args, **kwargs)
        passes()
        return HalfWriter(real_io_open(file, mode, *args, **kwargs), passes)

    os.open, os.write, io.open = open_counted, write_half, io_open_counted  # type: ignore[assignment]


def dies(action: Callable[[], None], moment: int) -> bool:
    """Runs `action` in a child that dies at a moment; False when it came to its end before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_at(moment)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed; its traceback is above"
    return False


def at_each_moment(folder: Path, prepare: Callable[[Path], None], action: Callable[[Path], None]) -> Iterator[Path]:
    """The folders that are left when power fails at the first, the second, … moment of `action`; the last is whole."""
    moment, died = 0, True
    while died:
        moment += 1
        place = folder / str(moment)
        prepare(place)
        died = dies(lambda place=place: action(place), moment)  # type: ignore[misc]
        yield place
    assert moment > 5, "the harness saw hardly any call"


# What a robot does


def on_probation(folder: Path) -> None:
    """Release 2 drives on probation, release 1 is the one before, and something was refused once."""
    slots = Slots(folder, probation=True)
    slots.refuse("release", REFUSED_LONG_AGO, "long ago")
    slots.saw(channel_of(2, 2))
    install(slots, 1, 1)
    install(slots, 2, 2)


def passed(folder: Path) -> None:
    on_probation(folder)
    slots = Slots(folder, probation=True)
    slots.current()
    slots.progressed(None)


def install_third(folder: Path) -> None:
    slots = Slots(folder, probation=True)
    slots.current()
    slots.saw(channel_of(3, 3))
    install(slots, 3, 3)


def drive_on(folder: Path) -> None:
    slots = Slots(folder, probation=True)
    slots.current()
    for driven_s in (10.0, 20.0):
        slots.progressed(Progress(driven_s))
    slots.progressed(None)


def go_back(folder: Path) -> None:
    slots = Slots(folder, probation=True)
    probation = Probation(ProbationSettings(), slots, lambda _: None, Heard(), lambda: None)
    probation.boot()
    probation.go_back("operator", "too shy")
    probation.look()


def boot_again(folder: Path) -> None:
    slots = Slots(folder, probation=True)
    Probation(ProbationSettings(max_starts=1), slots, lambda _: None, Heard(), lambda: None).boot()


def boot_loop(folder: Path) -> None:
    on_probation(folder)
    boot_again(folder)


def boots(folder: Path) -> tuple[str, Slots]:
    """Boots as the daemon does: the release that it finds whole, and that it never refused."""
    slots = Slots(folder, probation=True)
    probation = Probation(ProbationSettings(max_starts=100), slots, lambda _: None, Heard(), lambda: None)
    candidate = probation.boot()
    assert candidate is not None
    assert is_whole(candidate)
    assert slots.refused(candidate.passport.engine.sha256) is None
    assert slots.refused(REFUSED_LONG_AGO) == "long ago"
    return candidate.passport.lineage.model_version, slots


@pytest.mark.parametrize(
    ("prepare", "action", "before", "after"),
    [
        (passed, install_third, "2", "3"),
        (on_probation, drive_on, "2", "2"),
        (on_probation, go_back, "2", "1"),
        (passed, go_back, "2", "1"),
        (boot_loop, boot_again, "2", "1"),
    ],
)
def test_a_robot_that_dies_at_any_write_boots(
    tmp_path: Path, prepare: Callable[[Path], None], action: Callable[[Path], None], before: str, after: str
) -> None:
    """Installing, driving on probation, going back, a boot loop: at each moment the release before or the one after
    boots, whole; what was refused is remembered; and the next release can be installed."""
    found = ""
    for place in at_each_moment(tmp_path, prepare, action):
        found, slots = boots(place)
        assert found in (before, after)
        if slots.probation is not None:
            slots.progressed(None)
        install(slots, 9, 9)
        assert boots(place)[0] == "9"
    assert found == after


def test_while_probation_is_under_way_there_is_always_a_way_back(tmp_path: Path) -> None:
    """At each moment of an installation: when the new release boots it is on probation, with an intact one before."""
    for place in at_each_moment(tmp_path, passed, install_third):
        found, slots = boots(place)
        if found == "3":
            assert slots.probation is not None
            previous = slots.previous()
            assert previous is not None
            assert previous.passport == passport_of(2)


def test_a_new_robot_that_dies_while_it_gets_its_first_release(tmp_path: Path) -> None:
    """It boots with nothing or with the whole release, and can get it again."""

    def first(folder: Path) -> None:
        install(Slots(folder, probation=True), 1, 1)

    for place in at_each_moment(tmp_path, lambda _: None, first):
        slots = Slots(place, probation=True)
        current = slots.current()
        assert current is None or is_whole(current)
        install(slots, 1, 1)
        assert Slots(place).current() is not None


def test_an_update_over_the_network_that_dies_at_any_write(tmp_path: Path) -> None:
    """The whole updater, TUF's files and a download that is resumed: the release before or the new one boots, and the
    next look brings the new one."""
    repository = Repository.create(tmp_path / "repository", Keys.generate())
    repository.publish(files_of(3), [channel_of(3, 3)])
    server = Server(tmp_path / "repository")
    root = tmp_path / "repository" / "metadata" / "1.root.json"
    repository_settings = RepositorySettings(url=server.url, root=str(root), timeout_s=5)
    refusals: list[tuple[str, str, str]] = []

    def look(folder: Path) -> None:
        slots = Slots(folder, probation=True)
        slots.current()
        Updater(
            repository_settings, TARGET, "champion", slots, lambda _: None, lambda *told: refusals.append(told)
        ).check()

    try:
        for place in at_each_moment(tmp_path / "robots", passed, look):
            assert boots(place)[0] in ("2", "3")
            look(place)
            assert boots(place)[0] == "3"
    finally:
        server.close()
    assert refusals == []


# Garbage

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
some_channel = st.sampled_from([channel_of(1, 1), channel_of(2, 2), channel_of(2, 9, "canary")]).map(
    msgspec.to_builtins
)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """The same JSON with one value in it replaced, left out, or something added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: mutated(draw, value[key])}
    how = draw(st.sampled_from(["replace", "add", "leave"]))
    if how == "replace" or not isinstance(value, dict):
        return draw(anything)
    if how == "add":
        return {**value, draw(st.text(max_size=10)): draw(anything)}
    return {key: value[key] for key in list(value)[1:]}


@st.composite
def random_passports(draw: st.DrawFn) -> bytes:
    """From a whole passport to noise."""
    if not draw(st.integers(0, 4)):
        return draw(st.binary(max_size=200))
    raw: Any = msgspec.to_builtins(passport_of(draw(st.integers(1, 2))))
    for _ in range(draw(st.integers(0, 3))):
        raw = mutated(draw, raw)
    return json.dumps(raw).encode()


def sealed(body: Any) -> bytes:
    """As files.write_sealed does, whatever the body is: a digest that fits."""
    raw = json.dumps(body).encode()
    return b'{"sha256":"%s","body":%s}' % (hashlib.sha256(raw).hexdigest().encode(), raw)


@st.composite
def random_files(draw: st.DrawFn) -> dict[str, bytes]:
    """All state files of a robot, some whole, some mutated under a seal that fits, some noise."""
    passports = {slot: draw(random_passports()) for slot in "ab"}
    record = {slot: {"slot": slot, "passport_sha256": sha256(passports[slot])} for slot in "ab"}
    progress = {"driven_s": draw(st.floats(0, 1e6)), "starts": draw(st.integers(0, 10))}
    bodies: dict[str, Any] = {
        "current.json": {
            "current": {**record["a"], "channel": draw(some_channel)},
            "previous": {**record["b"], "channel": draw(some_channel)},
            "probation": progress,
        },
        "seen.json": {"channels": {"champion": {"sequence": draw(st.integers()), "release_id": "x"}}},
        "refused.json": {
            "refusals": [
                {"release_id": "x", "engine_sha256": draw(st.sampled_from(ENGINES)), "reason": "r", "at": "then"}
            ]
        },
    }
    made = {f"{slot}/passport.json": content for slot, content in passports.items()}
    for name, body in bodies.items():
        how = draw(st.integers(0, 5))
        if how == 0:
            made[name] = draw(st.binary(max_size=200))
        elif how == 1:
            made[name] = sealed(mutated(draw, body))
        elif how > 2:
            made[name] = sealed(body)
    return made


ENGINES = [sha256(engine_bytes(version)) for version in (1, 2)] + [sha256(b"another")]


def verifies(candidate: Candidate, folder: Path) -> bool:
    """Whether engine and golden frames are inside the folder and, byte for byte, what the passport says."""
    described = ((candidate.engine, candidate.passport.engine), (candidate.golden, candidate.passport.golden))
    return all(
        path.resolve().is_relative_to(folder) and sha256(path.read_bytes()) == expected.sha256
        for path, expected in described
    )


@settings(
    max_examples=RANDOM_STATES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(random_files(), st.sampled_from([{}, {"a/engine.onnx": b""}, {"b/golden.npz": b"x"}]), some_channel)
def test_no_state_of_the_disk_is_a_traceback(
    made: dict[str, bytes], damage: dict[str, bytes], channel: dict[str, Any]
) -> None:
    """Random state files and passports, most of them under a seal that fits: the robot boots with an engine that
    verifies and was not refused, or with none; it goes back, or not; and it takes the next release."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        for slot, version in (("a", 1), ("b", 2)):
            (folder / slot).mkdir()
            fill(folder / slot, version)
        for name, content in {**made, **damage}.items():
            (folder / name).write_bytes(content)
        slots = Slots(folder, probation=True)
        probation = Probation(ProbationSettings(), slots, lambda _: None, Heard(), lambda: None)
        booted = probation.boot()
        for candidate in (booted, slots.running, slots.previous()):
            assert candidate is None or verifies(candidate, folder)
            assert candidate is None or slots.refused(candidate.passport.engine.sha256) is None
            assert candidate is None or isinstance(misfit(candidate.passport, "release", TARGET), str)
        assert isinstance(slots.replayed(msgspec.convert(channel, Channel)), str | None)
        probation.go_back("operator", "to see")
        probation.look()
        try:
            slots.prepare()
        except OperatorError:
            assert slots.probation is not None
            slots.progressed(None)
        install(slots, 3, 10**6)
        assert Slots(folder).current() is not None


def test_the_harness_can_fail(tmp_path: Path) -> None:
    """A writer that replaces its file in place, without a temporary one, is caught by the harness."""

    def in_place(folder: Path) -> None:
        folder.mkdir()
        (folder / "state").write_bytes(b"whole")
        for _ in range(5):
            os.write(os.open(folder / "state", os.O_WRONLY | os.O_TRUNC), b"w")
            (folder / "state").write_bytes(b"whole")

    def in_place_again(folder: Path) -> None:
        for _ in range(3):
            (folder / "state").write_bytes(b"whole")

    left = {(place / "state").read_bytes() for place in at_each_moment(tmp_path, in_place, in_place_again)}
    assert left > {b"whole"}
    assert files.sha256_of(tmp_path / "1" / "state") == sha256(b"whole")
