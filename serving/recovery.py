"""When `current.json` is damaged: which slots are whole all the same, and which of them is the newest.

What the pointer knew and no other file does is lost: how far a probation had come, and which channel brought a slot. So
the newest slot begins its probation anew, with the other one as the engine before; and the updater's next look renews
the channel. Every slot was verified before it was filled (updater.py); here its files are compared with its passport
once more, and whether the engine gives the golden logits is found when it is loaded, as at every start.
"""

import logging
from pathlib import Path
from typing import Callable, List, Optional, Tuple

from serving import files
from serving.candidate import PASSPORT_FILE, Candidate, inspect, read_passport
from serving.contracts.releases import Channel, Passport, file_path
from serving.errors import RejectedError
from serving.pointer import Record, SlotName
from serving.remembered import SeenChannels

_SLOTS: Tuple[SlotName, ...] = ("a", "b")

log = logging.getLogger(__name__)


def whole_slots(
    folder: Path, seen: SeenChannels, refused: Callable[[str], Optional[str]]
) -> List[Tuple[Record, Candidate]]:
    """The slots that are whole and hold no refused engine, the newest first.

    Newest is the release that a channel file named last; after that, the one that was approved last.

    Args:
        folder: of the slots.
        seen: what the channels named last.
        refused: why this robot does not run an engine, by its sha256; None when it was never refused.
    """
    found: List[Tuple[Record, Candidate]] = []
    for slot in _SLOTS:
        try:
            found.append(_whole(folder / slot, slot, refused))
        except (RejectedError, OSError) as problem:
            log.warning("slot %s cannot take over: %s", slot, problem)

    def newness(one: Tuple[Record, Candidate]) -> Tuple[bool, str, str]:
        passport = one[1].passport
        return seen.named_last(passport.release_id), passport.approved_at, passport.built_at

    return sorted(found, key=newness, reverse=True)


def _whole(folder: Path, slot: SlotName, refused: Callable[[str], Optional[str]]) -> Tuple[Record, Candidate]:
    channel = _lost_channel(read_passport(folder))
    candidate = inspect(folder, channel)
    why = refused(candidate.passport.engine.sha256)
    if why:
        raise RejectedError(f"its engine was refused: {why}")
    return Record(slot, files.sha256_of(folder / PASSPORT_FILE), channel), candidate


def _lost_channel(passport: Passport) -> Channel:
    """In the place of the channel file that brought a slot: as old as can be, so that any real one renews it."""
    release = passport.release_id
    return Channel(
        channel="unknown",
        sequence=1,
        release_id=release,
        model_version=passport.lineage.model_version,
        passports={passport.target: file_path(release, passport.target, PASSPORT_FILE)},
        issued_at=passport.approved_at,
    )
