"""Whether a signed release belongs on this machine at all: by what its passport says, before anything is downloaded."""

from serving.contracts.releases import Passport, engine_name, file_path
from serving.preprocess import PREPROCESSING
from serving.slots import GOLDEN_FILE

MAX_GOLDEN_BYTES = 64 << 20
MAX_ENGINE_BYTES = 1 << 30


def misfit(passport: Passport, release_id: str, target: str) -> str:
    """Why a passport does not fit a release and a machine; empty when it fits."""
    if passport.release_id != release_id:
        return f"it belongs to release {passport.release_id}"
    if passport.target != target:
        return f"its engine is for {passport.target}, this robot runs {target}"
    if passport.preprocessing != PREPROCESSING:
        return f"its network wants frames as {passport.preprocessing}, this robot makes {PREPROCESSING}"
    for described, name, limit in (
        (passport.engine, engine_name(target), MAX_ENGINE_BYTES),
        (passport.golden, GOLDEN_FILE, MAX_GOLDEN_BYTES),
    ):
        if described.path != file_path(release_id, target, name):
            return f"{described.path} is not {file_path(release_id, target, name)}"
        if described.bytes > limit:
            return f"{described.path} has {described.bytes} bytes, {limit} are allowed"
    return ""
