"""What the steps from a promoted version to a release are made of: judge, fetch, compile, judge the engines, passports.

Nothing here publishes, tags or moves on: service.py does that, with what comes from here. A version that does not pass
raises `Refused` with the reason.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from pipelines.params import GateParams
from pipelines.release import gates
from pipelines.release.build import builder_of
from pipelines.release.builds import Builds
from pipelines.release.built import Golden
from pipelines.release.comparison import Champion, champion_gates
from pipelines.release.memory import peak_memory_mb
from pipelines.release.promise import promised
from pipelines.release.registry import INT8_ARTIFACT, Registry, Version
from pipelines.release.staging import Staged, Staging
from serving.contracts.releases import (
    EngineFile,
    ExportReport,
    GateResult,
    GoldenFrames,
    Lineage,
    Override,
    Passport,
    Target,
    engine_name,
    file_path,
)
from serving.errors import RejectedError
from serving.preprocess import PREPROCESSING

log = logging.getLogger(__name__)

UNKNOWN_APPROVER = "mlflow-user"  # MLflow without basic-auth does not know who sets an alias


class Refused(RejectedError):
    """The version does not pass; `gates` are those that were looked at."""

    def __init__(self, reason: str, gates: Sequence[GateResult] = ()) -> None:
        super().__init__(reason)
        self.gates = list(gates)


@dataclass(frozen=True)
class Material:
    """What a run exported, checked against the digests in the version's tags."""

    onnx: bytes
    int8: bytes | None  # the same network in QDQ form, where the version has one
    golden_npz: bytes
    golden: Golden
    report: ExportReport

    def onnx_for(self, target: str) -> bytes:
        """The file that a target's engine is compiled from.

        Raises:
            RejectedError: it is for int8, and the run has no such file.
        """
        if Target.parse(target).precision != "int8":
            return self.onnx
        if self.int8 is None:
            raise RejectedError(
                f"its run holds no {INT8_ARTIFACT}, which {target} needs: run `dvc repro` with export.int8"
            )
        return self.int8


@dataclass(frozen=True)
class Judged:
    """A version that passed: what its passports say of that."""

    gates: Sequence[GateResult]
    overrides: Sequence[Override]
    limits: GateParams
    approved_at: str  # RFC 3339, UTC: when the alias was seen on it
    metrics: Mapping[str, float] = field(default_factory=dict)  # of its run: what the passport promises comes from them


def judge(
    metrics: Mapping[str, float], version: Version, champion: Champion | None, limits: GateParams
) -> list[GateResult]:
    """All gates that need no engine. Blocked recall against the champion comes first: it says most."""
    return [
        *champion_gates(metrics, champion, limits),
        *gates.accuracy_gates(metrics, limits),
        *gates.driving_gates(metrics, limits),
        *gates.origin_gates(version.tags, limits),
    ]


def fetch(registry: Registry, version: Version) -> Material:
    """What the version's run exported.

    Raises:
        RejectedError: it is missing, altered or malformed.
        OperatorError: MLflow cannot be asked, or the disk is full.
    """
    if not version.release_id:
        raise RejectedError("it has no tag lineage.onnx_sha256: register it with `dvc repro`, not by hand")
    with TemporaryDirectory(prefix="jetloop-release-") as folder:
        fetched = registry.download(version, Path(folder))
        onnx, golden_npz = fetched["export/model.onnx"].read_bytes(), fetched["export/golden.npz"].read_bytes()
        int8 = fetched[INT8_ARTIFACT].read_bytes() if INT8_ARTIFACT in fetched else None
        digested = [("onnx", onnx), ("golden", golden_npz)] + ([("int8", int8)] if int8 is not None else [])
        for name, content in digested:
            _check_digest(version, name, content)
        report = _report(fetched["export/export.json"].read_bytes())
        golden = Golden.read(fetched["export/golden.npz"])
    if (report.onnx_sha256, report.golden_sha256) != (sha256(onnx), sha256(golden_npz)):
        raise RejectedError("export.json describes other files than its run holds: run `dvc repro` again")
    return Material(onnx, int8, golden_npz, golden, report)


def compiled(
    target: str, material: Material, staging: Staging, limits: GateParams, builds: Builds | None = None
) -> Staged:
    """The engine of a target with its report: the one in staging, or one that is compiled and staged now.

    Args:
        builds: what robots built and handed in.

    Raises:
        WaitingForBuild: a robot has to build it, and none has yet.
        RejectedError: it cannot be compiled, or does not run.
        OperatorError: there is no builder, or the database cannot be written.
        OSError: the disk is full.
    """
    onnx = material.onnx_for(target)
    source = (sha256(onnx), sha256(material.golden_npz), target)
    staged = staging.find(*source)
    wants_memory = target in limits.max_memory_mb
    if staged and not (wants_memory and staged.memory_mb is None):
        return staged
    if staged:
        built = staged.built
    else:
        built = builder_of(target, builds)(onnx, material.golden)
        log.info("%s: compiled for %s", source[0][:12], target)
    memory_mb = peak_memory_mb(built.engine, target) if wants_memory else None
    return staging.keep(*source, built, memory_mb)


def judge_engines(engines: Mapping[str, Staged], limits: GateParams) -> list[GateResult]:
    """The gates on what was measured with the engines."""
    found = []
    for target, one in engines.items():
        found += gates.engine_gates(one.built.measured, target, limits, len(one.built.engine), one.memory_mb)
    return found


def release_files(
    model: str, version: Version, engines: Mapping[str, Staged], material: Material, judged: Judged
) -> dict[str, bytes]:
    """Engine, golden frames and passport of each target; for the same engines always the same bytes.

    Raises:
        RejectedError: a tag lineage.* is missing or malformed.
    """
    files: dict[str, bytes] = {}
    for target, one in engines.items():
        files |= _files(model, version, target, one, material, judged)
    return files


def _check_digest(version: Version, name: str, content: bytes) -> None:
    tag = f"lineage.{name}_sha256"
    if sha256(content) != version.tags.get(tag):
        raise RejectedError(
            f"the {name} file of its run is not the one that was registered (sha256 {sha256(content)[:12]}…, "
            f"tag {tag} {version.tags.get(tag, 'missing')[:12]}…): register it again with `dvc repro`"
        )


def _report(content: bytes) -> ExportReport:
    try:
        report = msgspec.json.decode(content, type=ExportReport)
    except msgspec.DecodeError as problem:
        raise RejectedError(f"export.json is malformed ({problem}): run `dvc repro` again") from None
    if report.preprocessing != PREPROCESSING:
        raise RejectedError(
            f"it was exported for the preprocessing `{report.preprocessing}`, robots run `{PREPROCESSING}`: train again"
        )
    return report


def _files(
    model: str, version: Version, target: str, staged: Staged, material: Material, judged: Judged
) -> dict[str, bytes]:
    """Engine, golden frames and passport of one target."""
    engine_path = file_path(version.release_id, target, engine_name(target))
    golden_path = file_path(version.release_id, target, "golden.npz")

    def concerns(gate: str) -> bool:
        return "." not in gate or gate.endswith(f".{target}")

    engine = staged.built.engine
    passport = Passport(
        release_id=version.release_id,
        target=target,
        preprocessing=material.report.preprocessing,
        engine=EngineFile(path=engine_path, sha256=sha256(engine), bytes=len(engine)),
        golden=GoldenFrames(
            path=golden_path,
            sha256=sha256(material.golden_npz),
            bytes=len(material.golden_npz),
            count=len(material.golden.frames),
            tolerance=gates.max_parity_error(target, judged.limits),
        ),
        decision=material.report.decision,
        measured=staged.built.measured,
        gates=[gate for gate in judged.gates if concerns(gate.name)],
        lineage=lineage(model, version),
        approver=version.user or UNKNOWN_APPROVER,
        approved_at=judged.approved_at,
        built_at=staged.built_at,
        engine_key=staged.built.key or msgspec.UNSET,
        overrides=[one for one in judged.overrides if concerns(one.gate)] or msgspec.UNSET,
        expected=promised(judged.metrics, staged.built.measured),
    )
    passport_json = msgspec.json.format(msgspec.json.encode(passport), indent=1)
    return {
        engine_path: engine,
        golden_path: material.golden_npz,
        file_path(version.release_id, target, "passport.json"): passport_json,
    }


def lineage(model: str, version: Version) -> Lineage:
    """What leads from the engine back to the images, from the version's tags.

    Raises:
        RejectedError: a tag is missing or malformed.
    """
    try:
        data = json.loads(version.tags["lineage.data"])
        return msgspec.convert(
            {
                "model_name": model,
                "model_version": version.number,
                "run_id": version.run_id,
                "git_commit": version.tags["lineage.git_commit"],
                "git_dirty": version.tags.get("lineage.git_dirty") == "true",
                "data": data,
                "onnx_sha256": version.tags["lineage.onnx_sha256"],
            },
            Lineage,
        )
    except KeyError as missing:
        raise RejectedError(f"it has no tag {missing}: register it with `dvc repro`, not by hand") from None
    except ValueError as problem:  # JSON's and msgspec's errors are ValueErrors
        raise RejectedError(f"its tags lineage.* are malformed ({problem}): register it with `dvc repro`") from None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
