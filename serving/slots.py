"""Two slots, `a` and `b`: the engine that runs and the one that comes, or came before. What a robot boots with.

    <folder>/a/, b/         engine.<ext>, golden.npz, passport.json
    <folder>/current.json   the pointer: which slot runs, which ran before, and the digest of each one's passport
    <folder>/seen.json      the newest sequence of each channel: an older one is a replay
    <folder>/refused.json   engines that this robot refused, and why

Nothing here downloads or loads an engine. Power may fail at any instruction: a slot counts only once the pointer names
it, and the pointer is replaced in one rename after everything it names is on the disk.
"""

import datetime
import logging
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Literal, Optional, Tuple

import msgspec

from serving import files
from serving.contracts.names import Sha256
from serving.contracts.releases import Channel, Passport, engine_name
from serving.errors import OperatorError, RejectedError

PASSPORT_FILE = "passport.json"
GOLDEN_FILE = "golden.npz"
MAX_PASSPORT_BYTES = 256 * 1024
MAX_REFUSALS = 200  # the newest are kept

log = logging.getLogger(__name__)

_SlotName = Literal["a", "b"]


@dataclass(frozen=True)
class Candidate:
    """One slot whose files were found intact."""

    passport: Passport
    folder: Path
    engine: Path
    golden: Path
    channel: Channel  # the channel file that brought it


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slot: _SlotName
    passport_sha256: Sha256
    channel: Channel


class _Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: _Record
    previous: Optional[_Record] = None


class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sequence: int
    release_id: str


class _SeenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    channels: Dict[str, _Seen]


class _Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    release_id: str
    engine_sha256: str
    reason: str
    at: str  # RFC 3339, UTC


class _RefusedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refusals: List[_Refusal]


class Slots:
    """The slots below one folder; any thread may call any method.

    Args:
        folder: made if it is missing. It must be on a disk that survives a reboot.

    Raises:
        OperatorError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pointer_path = folder / "current.json"
        self._seen_path = folder / "seen.json"
        self._refused_path = folder / "refused.json"
        self._lock = threading.RLock()
        self._running: Optional[Tuple[_Record, Candidate]] = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise OperatorError(f"{folder}: {problem.strerror}; check robot.state_dir and its owner") from None
        seen = files.read_sealed(self._seen_path, _SeenFile)
        self._seen: Dict[str, _Seen] = dict(seen.channels) if seen else {}
        refused = files.read_sealed(self._refused_path, _RefusedFile)
        self._refusals: List[_Refusal] = list(refused.refusals) if refused else []

    def current(self) -> Optional[Candidate]:
        """What to boot with: the slot that the pointer names or, if that one is damaged, the one that ran before.

        Reads every byte and compares the digests. Never raises for what it finds on the disk: it is logged, and None
        means that there is nothing fit to run.
        """
        with self._lock:
            self._running = None
            pointer = files.read_sealed(self._pointer_path, _Pointer)
            for record in (pointer.current, pointer.previous) if pointer else ():
                if record is None:
                    continue
                try:
                    self._running = record, self._open(record)
                    return self._running[1]
                except RejectedError as problem:
                    log.error("slot %s (%s) is not used: %s", record.slot, record.channel.release_id, problem)
            return None

    @property
    def running(self) -> Optional[Candidate]:
        """What `current()` or `commit()` gave last, without reading the disk again."""
        with self._lock:
            return self._running[1] if self._running else self.current()

    def prepare(self) -> Path:
        """Empties the slot that is not running, so that a new engine, golden.npz and passport.json can be put there.

        Raises:
            OperatorError: the disk does not let it.
        """
        with self._lock:
            if self._running is None:
                self.current()
            folder = self.folder / self._other_slot()
            try:
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    folder.unlink()
                elif folder.exists():
                    shutil.rmtree(folder)
                folder.mkdir()
                files.sync_folder(self.folder)
            except OSError as problem:
                raise OperatorError(f"{folder}: cannot be emptied: {problem.strerror}; check the disk") from None
            return folder

    def candidate(self, folder: Path, channel: Channel) -> Candidate:
        """Checks what was put into a slot, and makes it durable.

        Args:
            folder: what `prepare()` gave.
            channel: the channel file that named this release.

        Raises:
            RejectedError: a file is missing, or differs from the passport.
            OperatorError: the disk failed.
        """
        found = _inspect(folder, channel)
        try:
            for path in (found.engine, found.golden, folder / PASSPORT_FILE):
                files.sync_file(path)
            files.sync_folder(folder)
        except OSError as problem:
            raise OperatorError(f"{folder}: cannot be synced: {problem.strerror}; check the disk") from None
        return found

    def commit(self, candidate: Candidate) -> None:
        """From now on the robot boots with this candidate; the one that ran is remembered as the one before.

        Committing the slot that runs already only renews its channel.

        Raises:
            OperatorError: the disk failed, and the robot boots with what it booted with before.
            RejectedError: the files changed since they were checked.
        """
        with self._lock:
            name = candidate.folder.name
            if candidate.folder.parent != self.folder or name not in ("a", "b"):
                raise ValueError(f"{candidate.folder} is not a slot of {self.folder}")
            slot: _SlotName = "a" if name == "a" else "b"
            if self._running is None:
                self.current()
            checked = self.candidate(candidate.folder, candidate.channel)
            record = _Record(slot, files.sha256_of(candidate.folder / PASSPORT_FILE), candidate.channel)
            self._point_at(record, checked, previous=self._before(slot))

    def rollback(self) -> Optional[Candidate]:
        """Goes back to the slot that ran before; None, and nothing changed, when there is none that is intact.

        The caller remembers with `refuse()` why, or the updater brings the same engine again.

        Raises:
            OperatorError: the disk failed, and the robot boots with what it booted with before.
        """
        with self._lock:
            pointer = files.read_sealed(self._pointer_path, _Pointer)
            record = pointer.previous if pointer else None
            if record is None or (self._running and record.slot == self._running[0].slot):
                log.error("nothing to go back to: no slot ran before this one")
                return None
            try:
                candidate = self._open(record)
            except RejectedError as problem:
                log.error("cannot go back to slot %s (%s): %s", record.slot, record.channel.release_id, problem)
                return None
            self._point_at(record, candidate, previous=None)
            return candidate

    def refuse(self, release_id: str, engine_sha256: str, reason: str) -> None:
        """Remembers, also across reboots, that this robot does not run this engine.

        A full disk is logged, not raised: the refusal then holds until the next start.
        """
        with self._lock:
            at = datetime.datetime.now(datetime.timezone.utc).isoformat()
            others = [refusal for refusal in self._refusals if refusal.engine_sha256 != engine_sha256]
            self._refusals = [*others, _Refusal(release_id, engine_sha256, reason[:1000], at)][-MAX_REFUSALS:]
            try:
                files.write_sealed(self._refused_path, _RefusedFile(self._refusals))
            except OSError as problem:
                log.error("%s: the refusal is remembered until the next start only: %s", self._refused_path, problem)

    def refused(self, engine_sha256: str) -> Optional[str]:
        """Why this robot does not run this engine; None when it was never refused."""
        with self._lock:
            return next((r.reason for r in self._refusals if r.engine_sha256 == engine_sha256), None)

    def replayed(self, channel: Channel) -> Optional[str]:
        """Why a channel file is a replay of an older one, or contradicts one; None when it may be followed."""
        with self._lock:
            seen = self._seen.get(channel.channel)
            running = self._running[0].channel if self._running else None
            if seen is None and running and running.channel == channel.channel:
                seen = _Seen(running.sequence, running.release_id)  # seen.json was lost
            if seen is None or channel.sequence > seen.sequence:
                return None
            if channel.sequence < seen.sequence:
                return f"its sequence {channel.sequence} is older than {seen.sequence}, which was seen before"
            if channel.release_id != seen.release_id:
                return f"its sequence {channel.sequence} was seen before with another release, {seen.release_id}"
            return None

    def saw(self, channel: Channel) -> None:
        """Remembers the sequence of a channel file that was verified.

        Raises:
            OperatorError: the disk failed.
        """
        with self._lock:
            new = _Seen(channel.sequence, channel.release_id)
            if self._seen.get(channel.channel) == new:
                return
            seen = {**self._seen, channel.channel: new}
            try:
                files.write_sealed(self._seen_path, _SeenFile(seen))
            except OSError as problem:
                raise OperatorError(f"{self._seen_path}: {problem.strerror}; check the disk") from None
            self._seen = seen

    def _other_slot(self) -> _SlotName:
        return "b" if self._running and self._running[0].slot == "a" else "a"

    def _before(self, slot: _SlotName) -> Optional[_Record]:
        """What the pointer's `previous` becomes when `slot` is committed."""
        if self._running and self._running[0].slot != slot:
            return self._running[0]
        pointer = files.read_sealed(self._pointer_path, _Pointer)
        return pointer.previous if pointer and pointer.previous and pointer.previous.slot != slot else None

    def _point_at(self, record: _Record, candidate: Candidate, previous: Optional[_Record]) -> None:
        try:
            files.write_sealed(self._pointer_path, _Pointer(record, previous))
        except OSError as problem:
            raise OperatorError(f"{self._pointer_path}: {problem.strerror}; check the disk") from None
        self._running = record, replace(candidate, channel=record.channel)

    def _open(self, record: _Record) -> Candidate:
        folder = self.folder / record.slot
        try:
            digest = files.sha256_of(folder / PASSPORT_FILE)
        except OSError as problem:
            raise RejectedError(f"{folder / PASSPORT_FILE}: {problem.strerror}") from None
        if digest != record.passport_sha256:
            raise RejectedError(f"{folder / PASSPORT_FILE} is not the passport that was committed")
        candidate = _inspect(folder, record.channel)
        refused = self.refused(candidate.passport.engine.sha256)
        if refused:  # power failed between refusing it and going back
            raise RejectedError(f"its engine was refused: {refused}")
        return candidate


def _inspect(folder: Path, channel: Channel) -> Candidate:
    """Reads a slot and compares it with its passport.

    Raises:
        RejectedError: a file is missing, unreadable, or differs.
    """
    try:
        passport = msgspec.json.decode(files.read_bounded(folder / PASSPORT_FILE, MAX_PASSPORT_BYTES), type=Passport)
        engine, golden = folder / engine_name(passport.target), folder / GOLDEN_FILE
        for path, expected in ((engine, passport.engine), (golden, passport.golden)):
            if path.stat().st_size != expected.bytes or files.sha256_of(path) != expected.sha256:
                raise RejectedError(f"{path} differs from its passport")
    except (OSError, ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise RejectedError(f"{folder}: {problem}") from None
    return Candidate(passport, folder, engine, golden, channel)
