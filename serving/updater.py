"""Brings what the robot's ring shall run: looks, checks that it fits, downloads, hands over, commits.

What is signed is repository.py's part, which of a rollout's two releases this robot runs is rollout.py's, loading and
judging an engine is `activate`'s, keeping it the slots'. While what runs is on probation, a release that has to be
downloaded waits: its slot still holds the engine to go back to. A withdrawn release waits for nothing: the robot stands
still until the one before it drives.
"""

import logging
import random
import shutil
import threading
import time
from dataclasses import replace
from typing import Callable, Dict, List, Optional, Tuple, Type, TypeVar

import msgspec
from tuf.api import exceptions as tuf_errors

from serving.backoff import backoff_s
from serving.config import RepositorySettings
from serving.contracts.releases import Channel, Passport, ReleaseRef, channel_path, engine_name, file_path
from serving.errors import OperatorError, RejectedError
from serving.fit import misfit as misfit
from serving.repository import Refused, SignedRepository, errors_translated
from serving.rollout import Choice, choose
from serving.slots import GOLDEN_FILE, MAX_PASSPORT_BYTES, PASSPORT_FILE, Candidate, Slots

MAX_CHANNEL_BYTES = 64 * 1024
_DISK_RESERVE_BYTES = 32 << 20
_MIN_GAP_S = 0.1  # between two looks, however many wake-ups come
_BACKOFF_BASE_S = 1.0
_MAX_TOLD = 100

log = logging.getLogger(__name__)

T = TypeVar("T")


class Updater:
    """Keeps one robot on the release of its ring; one thread of its own.

    Args:
        repository: the table `[repository]` of robot.toml.
        target: the kind of engine that this machine runs, such as `cpu-ort-fp32`.
        ring: the channel to follow.
        slots: where candidates go; TUF's metadata is kept in their folder too, under `tuf/`.
        activate: blocks until the candidate drives. It raises RejectedError when this robot must not run it (that is
            remembered), OperatorError when it could not be tried (then it is tried again).
        refused: told once of each refusal: release_id and engine digest (empty where unknown), and why.
        robot: its name; it decides where this robot stands in a rollout.
        stand_still: no engine drives any more, and why; until the next `activate`.

    Raises:
        OperatorError: root.json cannot be read.
    """

    def __init__(
        self,
        repository: RepositorySettings,
        target: str,
        ring: str,
        slots: Slots,
        activate: Callable[[Candidate], None],
        refused: Callable[[str, str, str], None],
        robot: str = "",
        stand_still: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._repository = SignedRepository(repository, slots.folder / "tuf")
        self._poll_s = repository.poll_s
        self._target, self._ring = target, ring
        self._slots = slots
        self._activate, self._refused = activate, refused
        self._robot, self._stand_still = robot, stand_still
        self._uncommitted: Optional[Candidate] = None  # drives, but the disk did not take the pointer
        self._told: List[Tuple[str, str, str]] = []
        self._said: Dict[str, str] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updater", daemon=True)

    def start(self) -> None:
        """Looks at once, then at every poll and wake-up."""
        self._thread.start()

    def wake(self) -> None:
        """Look now; from any thread, returns at once."""
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the thread; a download under way is left, and begun again at the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def check(self) -> bool:
        """Looks once, and brings what is new.

        Returns:
            Whether a new engine was activated. A refused release gives False: the running one stays.

        Raises:
            OperatorError: repository or disk do not answer as they should; try again later.
        """
        try:
            return self._check()
        except Refused as refusal:
            self._tell(refusal)
            return False

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.check()
                self._say("repository", logging.INFO, f"{self._repository.url} answers")
                failures, wait_s = 0, self._poll_s * random.uniform(0.8, 1.2)
            except OperatorError as problem:
                failures += 1
                wait_s = backoff_s(failures, _BACKOFF_BASE_S, max(self._poll_s, _BACKOFF_BASE_S))
                self._say("repository", logging.WARNING, f"{problem}; trying again, up to every {self._poll_s:g} s")
            except Exception:  # a fault of ours must not end the updates of this robot for good
                failures, wait_s = failures + 1, self._poll_s
                log.exception("the updater failed; trying again in %.0f s", wait_s)
            if not self._stopping.wait(_MIN_GAP_S):
                self._wake.wait(wait_s)

    def _check(self) -> bool:
        if self._uncommitted:
            self._commit(self._uncommitted)
        with errors_translated():
            if self._repository.nothing_new():
                return False
            self._repository.refresh()
            try:
                channel = self._channel()
                activated = channel is not None and self._follow(channel)
            except Refused as refusal:
                if not refusal.may_heal:
                    self._repository.settle()
                raise
            self._repository.settle()
            return activated

    def _channel(self) -> Optional[Channel]:
        info = self._repository.find(channel_path(self._ring))
        if info is None:
            self._say("release", logging.INFO, f"nothing was released on channel {self._ring} yet")
            return None
        channel = _decode(self._repository.read(info, MAX_CHANNEL_BYTES), Channel, info.path)
        if channel.channel != self._ring:
            raise Refused(f"{info.path} is about channel {channel.channel}", channel.release_id)
        replay = self._slots.replayed(channel)
        if replay:
            raise Refused(f"{info.path} is a replay: {replay}", channel.release_id)
        self._slots.saw(channel)
        return channel

    def _follow(self, channel: Channel) -> bool:
        """Brings the release that this robot shall run, if it is not the one that runs."""
        running = self._slots.running
        choice = choose(channel, self._robot, running.passport.release_id if running else "")
        self._drop_withdrawn(channel, running, choice)
        if choice.release is None:
            if self._say("release", logging.WARNING, choice.why) and running is None:
                self._stand_still(choice.why)
            return False
        wanted = choice.release
        if running and running.passport.release_id == wanted.release_id:
            if running.channel.sequence != channel.sequence:
                self._commit(replace(running, channel=channel))
            return False
        raw, passport = self._passport(wanted)
        sha256 = passport.engine.sha256
        before = self._slots.refused(sha256)
        if before:
            text = f"{wanted.release_id} is left alone: its engine was refused here: {before}"
            self._say("release", logging.WARNING, text)
            return False
        self._say("release", logging.INFO, f"to run {wanted.release_id}: {choice.why}")
        previous = self._slots.previous()
        if previous is not None and previous.passport == passport:  # moved back: it is still here
            return self._hand_over(replace(previous, channel=channel, cause=choice.cause))
        try:
            candidate = self._download(channel, raw, passport)
        except (tuf_errors.LengthOrHashMismatchError, tuf_errors.DownloadLengthMismatchError, RejectedError) as problem:
            raise Refused(f"download: {problem}", wanted.release_id, sha256, may_heal=True) from None
        return self._hand_over(replace(candidate, cause=choice.cause))

    def _drop_withdrawn(self, channel: Channel, running: Optional[Candidate], choice: Choice) -> None:
        """A withdrawn release drives no longer, is not booted with, and not gone back to.

        It is refused first: where power fails in between, the next start stands still, too.
        """
        held = (running, self._slots.previous()) if channel.withdrawn else ()
        for candidate in held:
            passport = candidate.passport if candidate else None
            if passport is None or passport.release_id not in channel.withdrawn:
                continue
            sha256, why = passport.engine.sha256, f"{passport.release_id} is withdrawn"
            new = self._slots.refused(sha256) is None
            self._slots.refuse(passport.release_id, sha256, why)
            if candidate is running and new:
                self._slots.progressed(None)  # its probation is over: the other slot may be emptied
                self._stand_still(why if choice.release else choice.why)
                self._tell(Refused(why, passport.release_id, sha256))

    def _passport(self, wanted: ReleaseRef) -> Tuple[bytes, Passport]:
        release = wanted.release_id
        path = wanted.passports.get(self._target)
        if path is None:
            known = ", ".join(sorted(wanted.passports)) or "nothing"
            raise Refused(f"it was not built for {self._target}, only for {known}", release)
        info = self._repository.find(path)
        if info is None or path != file_path(release, self._target, PASSPORT_FILE):
            raise Refused(f"its passport {path} is not in the repository, or not its own", release)
        raw = self._repository.read(info, MAX_PASSPORT_BYTES)
        passport = _decode(raw, Passport, path)
        problem = misfit(passport, release, self._target)
        if problem:
            raise Refused(f"its passport does not fit this robot: {problem}", release, passport.engine.sha256)
        return raw, passport

    def _download(self, channel: Channel, raw: bytes, passport: Passport) -> Candidate:
        wanted = ((passport.golden, GOLDEN_FILE), (passport.engine, engine_name(self._target)))
        infos = []
        for described, name in wanted:
            info = self._repository.find(described.path)
            if info is None or (info.length, info.hashes.get("sha256")) != (described.bytes, described.sha256):
                raise RejectedError(f"{described.path} is not signed as the passport describes it")
            infos.append((info, name))
        self._check_space(sum(info.length for info, _ in infos))
        folder = self._slots.prepare()
        started = time.monotonic()
        (folder / PASSPORT_FILE).write_bytes(raw)
        for info, name in infos:
            self._repository.download(info, folder / name)
        megabytes = sum(info.length for info, _ in infos) / 1e6
        log.info("%s: %.1f MB in %.1f s", passport.release_id, megabytes, time.monotonic() - started)
        return self._slots.candidate(folder, channel)

    def _hand_over(self, candidate: Candidate) -> bool:
        passport = candidate.passport
        try:
            self._activate(candidate)
        except RejectedError as problem:
            self._slots.refuse(passport.release_id, passport.engine.sha256, str(problem))
            raise Refused(str(problem), passport.release_id, passport.engine.sha256) from None
        self._commit(candidate)
        return True

    def _commit(self, candidate: Candidate) -> None:
        """Makes what drives what the robot boots with; when the disk does not take it, it is tried at the next look."""
        self._uncommitted = candidate
        try:
            self._slots.commit(candidate)
        except RejectedError as problem:
            passport = candidate.passport
            self._uncommitted = None
            raise Refused(str(problem), passport.release_id, passport.engine.sha256, may_heal=True) from None
        self._uncommitted = None

    def _check_space(self, needed: int) -> None:
        """A download lies beside the slot for a moment, so twice its size is asked for.

        Raises:
            OperatorError: the disk has too little room.
        """
        needed = 2 * needed + _DISK_RESERVE_BYTES
        free = shutil.disk_usage(self._slots.folder).free
        if free < needed:
            raise OperatorError(
                f"{self._slots.folder}: a new release needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
                "remove files from this disk"
            )

    def _tell(self, refusal: Refused) -> None:
        told = (refusal.release_id, refusal.engine_sha256, str(refusal))
        if told in self._told:
            return
        self._told = [*self._told, told][-_MAX_TOLD:]
        log.error("refused %s: %s", refusal.release_id or self._repository.url, refusal)
        self._refused(*told)

    def _say(self, about: str, level: int, text: str) -> bool:
        """Logs a change of state once, however often it is found; True when it is news."""
        new = text != self._said.get(about)
        if new:
            self._said[about] = text
            log.log(level, "%s", text)
        return new


def _decode(raw: bytes, into: Type[T], path: str) -> T:
    try:
        return msgspec.json.decode(raw, type=into)
    except (ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise Refused(f"{path} cannot be read: {problem}") from None
