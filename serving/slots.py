"""Two slots, `a` and `b`: the engine that runs and the one that comes, or came before. What a robot boots with.

    <folder>/a/, b/         engine.<ext>, golden.npz, passport.json
    <folder>/current.json   which slot runs, which ran before, the digest of each one's passport (pointer.py)
    <folder>/seen.json      the newest sequence of each channel (remembered.py)
    <folder>/refused.json   engines that this robot refused, and why (remembered.py)

Nothing here downloads or loads an engine, or judges one (probation.py); what a slot holds is candidate.py, what is done
without the pointer recovery.py. Power may fail at any instruction: a slot
counts only once the pointer names it, and the pointer is replaced in one rename after everything it names is on the
disk. While what runs is on probation, the slot before it is the only engine known to be good: it is not emptied, and
the next release waits.
"""

import logging
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Optional, Tuple

import msgspec

from serving import files, pointer, recovery
from serving.candidate import GOLDEN_FILE as GOLDEN_FILE
from serving.candidate import MAX_PASSPORT_BYTES as MAX_PASSPORT_BYTES
from serving.candidate import PASSPORT_FILE as PASSPORT_FILE
from serving.candidate import Candidate as Candidate
from serving.candidate import inspect
from serving.contracts.releases import Channel
from serving.errors import OperatorError, RejectedError
from serving.pointer import Pointer, Progress, Record, SlotName
from serving.remembered import Refusals, SeenChannels

log = logging.getLogger(__name__)


class Slots:
    """The slots below one folder; any thread may call any method.

    Args:
        folder: made if it is missing. It must be on a disk that survives a reboot.
        probation: whether an engine that is committed after another one is on probation, until `progressed(None)`.

    Attributes:
        damage: one line for people when `current()` found the pointer damaged, and what it went on with; else empty.

    Raises:
        OperatorError: the folder cannot be made.
    """

    def __init__(self, folder: Path, probation: bool = False) -> None:
        self.folder = folder
        self._with_probation = probation
        self._pointer_path = folder / "current.json"
        self._lock = threading.RLock()
        self._running: Optional[Tuple[Record, Candidate]] = None
        self.damage = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise OperatorError(f"{folder}: {problem.strerror}; check robot.state_dir and its owner") from None
        self._seen = SeenChannels(folder / "seen.json")
        self._refusals = Refusals(folder / "refused.json")

    def current(self) -> Optional[Candidate]:
        """What to boot with: the slot that the pointer names or, if that one is damaged, the one that ran before; with
        a damaged pointer, the newest slot that is whole.

        Reads every byte and compares the digests. Never raises for what it finds on the disk: it is logged, and None
        means that there is nothing fit to run.
        """
        with self._lock:
            self._running = None
            found = self._pointer()
            if found is None and os.path.lexists(self._pointer_path):
                return self._recover()
            for record in (found.current, found.previous) if found else ():
                if record is None:
                    continue
                try:
                    self._running = record, self._open(record)
                    return self._running[1]
                except RejectedError as problem:
                    log.error("slot %s, by %s, is not used: %s", record.slot, _named(record), problem)
            return None

    @property
    def running(self) -> Optional[Candidate]:
        """What `current()`, `commit()` or `rollback()` gave last; the disk is not read again."""
        with self._lock:
            return self._running[1] if self._running else None

    @property
    def probation(self) -> Optional[Progress]:
        """How far the probation of what runs has come; None when it is on none, or there is nothing to go back to."""
        with self._lock:
            found = self._pointer() if self._running else None
            if found is None or found.previous is None or self._running is None:
                return None
            return found.probation if found.current == self._running[0] else None

    def progressed(self, progress: Optional[Progress]) -> None:
        """Remembers how far the probation of what runs has come; None ends it. Without one nothing happens.

        Raises:
            OperatorError: the disk failed; the next start goes on from what it held before.
        """
        with self._lock:
            found = self._pointer()
            if found is not None and found.probation != progress and self.probation is not None:
                self._write(msgspec.structs.replace(found, probation=progress))

    def prepare(self) -> Path:
        """Empties the slot that is not running, so that a new engine, golden.npz and passport.json can be put there.

        Raises:
            OperatorError: the disk does not let it; or what runs is on probation, and that slot is kept until its end.
        """
        with self._lock:
            if self._running is None:
                self.current()
            if self.probation is not None:
                raise OperatorError(f"{self._release()} is on probation: the engine before it is kept until its end")
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
        found = inspect(folder, channel)
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
            slot: SlotName = "a" if name == "a" else "b"
            if self._running is None:
                self.current()
            checked = self.candidate(candidate.folder, candidate.channel)
            record = Record(slot, files.sha256_of(candidate.folder / PASSPORT_FILE), candidate.channel)
            self._point_at(record, checked, self._before(slot), self._probation_of(record))

    def previous(self) -> Optional[Candidate]:
        """The slot that ran before, every byte of it checked; None when there is none that is intact."""
        with self._lock:
            found = self._previous()
            return found[1] if found else None

    def rollback(self) -> Optional[Candidate]:
        """Goes back to the slot that ran before; None, and nothing changed, when there is none that is intact.

        The caller remembers with `refuse()` why, or the updater brings the same engine again.

        Raises:
            OperatorError: the disk failed, and the robot boots with what it booted with before.
        """
        with self._lock:
            found = self._previous()
            if found is None:
                log.error("nothing to go back to: no intact slot ran before this one")
                return None
            self._point_at(*found, previous=None, progress=None)
            return found[1]

    def refuse(self, release_id: str, engine_sha256: str, reason: str) -> None:
        """Remembers, also across reboots, that this robot does not run this engine.

        A full disk is logged, not raised: the refusal then holds until the next start.
        """
        with self._lock:
            self._refusals.add(release_id, engine_sha256, reason)

    def refused(self, engine_sha256: str) -> Optional[str]:
        """Why this robot does not run this engine; None when it was never refused."""
        with self._lock:
            return self._refusals.reason(engine_sha256)

    def replayed(self, channel: Channel) -> Optional[str]:
        """Why a channel file is a replay of an older one, or contradicts one; None when it may be followed."""
        with self._lock:
            return self._seen.replayed(channel, self._running[0].channel if self._running else None)

    def saw(self, channel: Channel) -> None:
        """Remembers the sequence of a channel file that was verified.

        Raises:
            OperatorError: the disk failed.
        """
        with self._lock:
            self._seen.saw(channel)

    def _pointer(self) -> Optional[Pointer]:
        return pointer.read(self._pointer_path)

    def _write(self, new: Pointer) -> None:
        pointer.write(self._pointer_path, new)

    def _release(self) -> str:
        return self._running[1].passport.release_id if self._running else "nothing"

    def _previous(self) -> Optional[Tuple[Record, Candidate]]:
        found = self._pointer()
        record = found.previous if found else None
        if record is None or (self._running and record.slot == self._running[0].slot):
            return None
        try:
            return record, self._open(record)
        except RejectedError as problem:
            log.warning("slot %s, by %s, is not to be gone back to: %s", record.slot, _named(record), problem)
            return None

    def _recover(self) -> Optional[Candidate]:
        """Goes on without the pointer: with the newest whole slot, and the other one, if whole, as the one before."""
        whole = recovery.whole_slots(self.folder, self._seen, self.refused)
        then = f"going on with {whole[0][1].passport.release_id}" if whole else "no slot is whole, standing still"
        self.damage = f"{self._pointer_path.name} was damaged: {then}"
        log.error("%s", self.damage)
        if not whole:
            return None
        previous = whole[1][0] if len(whole) > 1 else None
        try:
            self._point_at(*whole[0], previous, Progress() if previous and self._with_probation else None)
        except OperatorError as problem:
            log.error("the next start has to find it again: %s", problem)
            self._running = whole[0]
        return whole[0][1]

    def _other_slot(self) -> SlotName:
        return "b" if self._running and self._running[0].slot == "a" else "a"

    def _before(self, slot: SlotName) -> Optional[Record]:
        """What the pointer's `previous` becomes when `slot` is committed."""
        if self._running and self._running[0].slot != slot:
            return self._running[0]
        found = self._pointer()
        return found.previous if found and found.previous and found.previous.slot != slot else None

    def _probation_of(self, record: Record) -> Optional[Progress]:
        """What a slot that is committed begins with: nothing to prove where it ran before, or where it runs already."""
        if self._running is None or not self._with_probation:
            return None
        if self._running[0].slot == record.slot:
            return self.probation
        found = self._pointer()
        before = found.previous if found else None
        ran_before = before is not None and before.passport_sha256 == record.passport_sha256
        return None if ran_before else Progress()

    def _point_at(
        self, record: Record, candidate: Candidate, previous: Optional[Record], progress: Optional[Progress]
    ) -> None:
        self._write(Pointer(record, previous, progress))
        self._running = record, replace(candidate, channel=record.channel)

    def _open(self, record: Record) -> Candidate:
        folder = self.folder / record.slot
        try:
            digest = files.sha256_of(folder / PASSPORT_FILE)
        except OSError as problem:
            raise RejectedError(f"{folder / PASSPORT_FILE}: {problem.strerror}") from None
        if digest != record.passport_sha256:
            raise RejectedError(f"{folder / PASSPORT_FILE} is not the passport that was committed")
        candidate = inspect(folder, record.channel)
        refused = self.refused(candidate.passport.engine.sha256)
        if refused:  # power failed between refusing it and going back
            raise RejectedError(f"its engine was refused: {refused}")
        return candidate


def _named(record: Record) -> str:
    return f"sequence {record.channel.sequence} of {record.channel.channel}"
