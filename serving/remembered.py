"""What a robot remembers of releases across reboots: the newest sequence of each channel, and engines it refused.

Two sealed files (files.py). One that is damaged or lost is begun anew; what that costs is said at each class. Neither
class locks: the slots, which own both, do.
"""

import datetime
import logging
from pathlib import Path
from typing import Dict, List, Optional

import msgspec

from serving import files
from serving.contracts.releases import Channel
from serving.errors import OperatorError

MAX_REFUSALS = 200  # the newest are kept

log = logging.getLogger(__name__)


class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sequence: int
    release_id: str


class _SeenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    channels: Dict[str, _Seen]


class SeenChannels:
    """The newest sequence of each channel: an older one is a replay. Without its file, what runs takes its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = files.read_sealed(path, _SeenFile)
        self._seen: Dict[str, _Seen] = dict(found.channels) if found else {}

    def replayed(self, channel: Channel, running: Optional[Channel]) -> Optional[str]:
        """Why a channel file is a replay of an older one, or contradicts one; None when it may be followed.

        Args:
            channel: verified as TUF does.
            running: the channel file that brought what runs.
        """
        seen = self._seen.get(channel.channel)
        if seen is None and running and running.channel == channel.channel:
            seen = _Seen(running.sequence, running.release_id)
        if seen is None or channel.sequence > seen.sequence:
            return None
        if channel.sequence < seen.sequence:
            return f"its sequence {channel.sequence} is older than {seen.sequence}, which was seen before"
        if channel.release_id != seen.release_id:
            return f"its sequence {channel.sequence} was seen before with another release, {seen.release_id}"
        return None

    def named_last(self, release_id: str) -> bool:
        """Whether the newest file of a channel named this release."""
        return any(seen.release_id == release_id for seen in self._seen.values())

    def saw(self, channel: Channel) -> None:
        """Remembers the sequence of a channel file that was verified.

        Raises:
            OperatorError: the disk failed.
        """
        new = _Seen(channel.sequence, channel.release_id)
        if self._seen.get(channel.channel) == new:
            return
        seen = {**self._seen, channel.channel: new}
        try:
            files.write_sealed(self._path, _SeenFile(seen))
        except OSError as problem:
            raise OperatorError(f"{self._path}: {problem.strerror}; check the disk") from None
        self._seen = seen


class _Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    release_id: str
    engine_sha256: str
    reason: str
    at: str  # RFC 3339, UTC


class _RefusedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refusals: List[_Refusal]


class Refusals:
    """Engines that this robot refused, and why. Without its file an engine may be tried, and refused, once more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = files.read_sealed(path, _RefusedFile)
        self._refusals: List[_Refusal] = list(found.refusals) if found else []

    def add(self, release_id: str, engine_sha256: str, reason: str) -> None:
        """Remembers a refusal. A full disk is logged, not raised: it then holds until the next start."""
        at = datetime.datetime.now(datetime.timezone.utc).isoformat()
        others = [refusal for refusal in self._refusals if refusal.engine_sha256 != engine_sha256]
        self._refusals = [*others, _Refusal(release_id, engine_sha256, reason[:1000], at)][-MAX_REFUSALS:]
        try:
            files.write_sealed(self._path, _RefusedFile(self._refusals))
        except OSError as problem:
            log.error("%s: the refusal is remembered until the next start only: %s", self._path, problem)

    def reason(self, engine_sha256: str) -> Optional[str]:
        """Why this robot does not run this engine; None when it was never refused."""
        return next((r.reason for r in self._refusals if r.engine_sha256 == engine_sha256), None)
