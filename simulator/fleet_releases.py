"""How the robots of a simulated fleet follow a release repository: the robot's own TUF client, without its slots.

Verified and downloaded is as on the robot (serving/repository.py), by each robot for itself or once for all; nothing is
loaded and nothing is kept. What a robot takes of it, it decides for itself (serving/rollout.py).
"""

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from serving.config import RepositorySettings
from serving.contracts.releases import Channel, Passport, ReleaseRef, channel_path, engine_name, file_path
from serving.fit import misfit
from serving.repository import Refused, SignedRepository, errors_translated
from serving.slots import GOLDEN_FILE, MAX_PASSPORT_BYTES, PASSPORT_FILE
from serving.updater import MAX_CHANNEL_BYTES

T = TypeVar("T")


class Follower:
    """One TUF client. Its methods block: they belong into a thread, one call at a time.

    Args:
        settings: url, root and timeout; as in robot.toml.
        target: the kind of engine to bring.
        ring: the channel to follow.
        folder: for metadata and downloads; what is downloaded is removed at once.

    Raises:
        OperatorError: root.json cannot be read.
    """

    def __init__(self, settings: RepositorySettings, target: str, ring: str, folder: Path) -> None:
        self._repository = SignedRepository(settings, folder)
        self._target, self._ring, self._folder = target, ring, folder
        self._channel: Channel | None = None
        self.brought: dict[str, Passport] = {}  # release id -> of what was downloaded and verified

    def look(self) -> Channel | None:
        """What is said to the ring now; None while nothing was released.

        Raises:
            Refused: what is there does not verify, or is a replay.
            OperatorError: the repository or the disk does not answer.
        """
        with errors_translated():
            if self._repository.nothing_new():
                return self._channel
            self._repository.refresh()
            try:
                self._channel = self._read_channel()
            except Refused:
                self._repository.settle()  # it is no better at the next look
                raise
            self._repository.settle()
            return self._channel

    def _read_channel(self) -> Channel | None:
        info = self._repository.find(channel_path(self._ring))
        if info is None:
            return self._channel
        channel = _decode(self._repository.read(info, MAX_CHANNEL_BYTES), Channel, info.path)
        if channel.channel != self._ring:
            raise Refused(f"{info.path} is about channel {channel.channel}", channel.release_id)
        before = self._channel
        if before is not None and channel.sequence < before.sequence:
            raise Refused(f"{info.path} is a replay: {channel.sequence} after {before.sequence}", channel.release_id)
        return channel

    def bring(self, wanted: ReleaseRef) -> Passport:
        """Downloads a release, if it was not yet, and verifies it. `look` comes first.

        Raises:
            Refused: it does not verify, or does not fit.
            OperatorError: the repository or the disk does not answer.
        """
        if wanted.release_id not in self.brought:
            with errors_translated():
                passport = self._passport(wanted)
                self._download(passport)
            self.brought[wanted.release_id] = passport
        return self.brought[wanted.release_id]

    def _passport(self, wanted: ReleaseRef) -> Passport:
        release, path = wanted.release_id, wanted.passports.get(self._target)
        if path is None:
            raise Refused(f"it was not built for {self._target}", release)
        info = self._repository.find(path)
        if info is None or path != file_path(release, self._target, PASSPORT_FILE):
            raise Refused(f"its passport {path} is not in the repository, or not its own", release)
        passport = _decode(self._repository.read(info, MAX_PASSPORT_BYTES), Passport, path)
        problem = misfit(passport, release, self._target)
        if problem:
            raise Refused(f"its passport does not fit this robot: {problem}", release, passport.engine.sha256)
        return passport

    def _download(self, passport: Passport) -> None:
        folder = self._folder / "download"
        folder.mkdir(exist_ok=True)
        for described, name in ((passport.golden, GOLDEN_FILE), (passport.engine, engine_name(self._target))):
            info = self._repository.find(described.path)
            if info is None or (info.length, info.hashes.get("sha256")) != (described.bytes, described.sha256):
                reason = f"{described.path} is not signed as the passport describes it"
                raise Refused(reason, passport.release_id, passport.engine.sha256)
            self._repository.download(info, folder / name)
        shutil.rmtree(folder)


def _decode(raw: bytes, into: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(raw, type=into)
    except (ValueError, RecursionError) as problem:
        raise Refused(f"{path} cannot be read: {problem}") from None


class Looks:
    """Looks at the repository for the robots, in threads.

    Args:
        make: makes the follower of a robot, by name; with `shared` it is asked for one, of the name `all`.
        shared: one TUF client for all: who wants to look while it looks waits for the next look, with all others.
        threads: looks at once, where each robot has a client of its own.
    """

    def __init__(self, make: Callable[[str], Follower], shared: bool, threads: int) -> None:
        self._make, self._shared = make, shared
        self._followers: dict[str, Follower] = {}
        self._pool = ThreadPoolExecutor(1 if shared else threads, thread_name_prefix="look")
        self._next: asyncio.Task[Channel | None] | None = None  # the shared look that has not begun yet
        self._one_at_a_time = asyncio.Lock()

    async def look(self, robot: str) -> Channel | None:
        """As `Follower.look`, begun after this call.

        Raises:
            Refused, OperatorError: see there.
        """
        if not self._shared:
            return await self._in_thread(self._of(robot).look)
        if self._next is None:
            self._next = asyncio.create_task(self._look_for_all())
        return await asyncio.shield(self._next)

    async def bring(self, robot: str, wanted: ReleaseRef) -> Passport:
        """As `Follower.bring`.

        Raises:
            Refused, OperatorError: see there.
        """
        follower = self._of(robot)
        if wanted.release_id in follower.brought:
            return follower.brought[wanted.release_id]
        return await self._in_thread(lambda: follower.bring(wanted))

    async def _look_for_all(self) -> Channel | None:
        async with self._one_at_a_time:
            self._next = None  # who asks from here on may have heard of something newer
            return await self._in_thread(self._of("all").look)

    def _of(self, robot: str) -> Follower:
        name = "all" if self._shared else robot
        if name not in self._followers:
            self._followers[name] = self._make(name)
        return self._followers[name]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
