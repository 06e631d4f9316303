"""One slot's files: an engine, its golden frames, the passport that describes both; and whether they are intact.

Which slot runs is slots.py; whether an engine is fit to drive is engine/check.py.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving import files
from serving.contracts.releases import Channel, Passport, engine_name
from serving.errors import RejectedError

PASSPORT_FILE = "passport.json"
GOLDEN_FILE = "golden.npz"
MAX_PASSPORT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Candidate:
    """One slot whose files were found intact."""

    passport: Passport
    folder: Path
    engine: Path
    golden: Path
    channel: Channel  # the channel file that brought it; with a rollout its release may be another one
    cause: str = "release"  # why it was brought, for the event `model.activated`


def inspect(folder: Path, channel: Channel) -> Candidate:
    """Reads every byte of a slot and compares it with its passport.

    Raises:
        RejectedError: a file is missing, unreadable, or differs.
    """
    passport = read_passport(folder)
    try:
        engine, golden = folder / engine_name(passport.target), folder / GOLDEN_FILE
        for path, expected in ((engine, passport.engine), (golden, passport.golden)):
            if path.stat().st_size != expected.bytes or files.sha256_of(path) != expected.sha256:
                raise RejectedError(f"{path} differs from its passport")
    except (OSError, ValueError) as problem:  # ValueError: no target has that name
        raise RejectedError(f"{folder}: {problem}") from None
    return Candidate(passport, folder, engine, golden, channel)


def read_passport(folder: Path) -> Passport:
    """The passport of a slot.

    Raises:
        RejectedError: it is missing or unreadable, or no passport.
    """
    try:
        return msgspec.json.decode(files.read_bounded(folder / PASSPORT_FILE, MAX_PASSPORT_BYTES), type=Passport)
    except (OSError, ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise RejectedError(f"{folder}: {problem}") from None
