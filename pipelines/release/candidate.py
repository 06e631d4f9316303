"""From a promoted version to the files of a release: fetch, check digests, gates, build, gates again, passports.

Nothing here publishes or tags: the outcome is a `Candidate` to publish, or `Refused` with the reason.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from pipelines.params import GateParams
from pipelines.release import gates
from pipelines.release.build import Built, Golden, builder_of
from pipelines.release.registry import INT8_ARTIFACT, Registry, Version
from serving.contracts.releases import (
    EngineFile,
    ExportReport,
    GateResult,
    GoldenFrames,
    Lineage,
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
class Candidate:
    """What passed every gate and may be published."""

    files: dict[str, bytes]  # target path -> content
    gates: list[GateResult]


@dataclass(frozen=True)
class _Material:
    """What a run exported, checked against the digests in the version's tags."""

    onnx: bytes
    int8: bytes | None  # the same network in QDQ form, where the version has one
    golden_npz: bytes
    golden: Golden
    report: ExportReport


def prepare(
    registry: Registry, version: Version, targets: Sequence[str], limits: GateParams, approved_at: str, now: str
) -> Candidate:
    """Judges a version and builds its engines.

    Args:
        targets: what to build for; each has a builder here.
        approved_at: when the alias was seen on the version, RFC 3339 UTC.
        now: RFC 3339 UTC.

    Raises:
        Refused: a gate fails, or what the version's run holds is missing, altered or malformed.
        OperatorError: MLflow cannot be asked, the disk is full, there is no builder.
    """
    try:
        metrics = registry.metrics(version)
        judged = gates.accuracy_gates(metrics, limits) + gates.driving_gates(metrics, limits)
        if gates.failures(judged):
            raise Refused(gates.failures(judged), judged)  # before anything is fetched or built
        with TemporaryDirectory(prefix="jetloop-release-") as folder:
            material = _fetch(registry, version, Path(folder))
        built = {}
        for target in targets:
            built[target] = builder_of(target)(_onnx_for(target, material), material.golden)
            log.info("version %s: built for %s", version.number, target)
            judged += gates.engine_gates(built[target].measured, target, limits)
        if gates.failures(judged):
            raise Refused(gates.failures(judged), judged)
        files: dict[str, bytes] = {}
        for target, one in built.items():
            files |= _files(registry.model, version, target, one, material, judged, limits, approved_at, now)
        return Candidate(files, judged)
    except Refused:
        raise
    except RejectedError as problem:
        raise Refused(str(problem)) from None


def _onnx_for(target: str, material: _Material) -> bytes:
    if Target.parse(target).precision != "int8":
        return material.onnx
    if material.int8 is None:
        raise RejectedError(f"its run holds no {INT8_ARTIFACT}, which {target} needs: run `dvc repro` with export.int8")
    return material.int8


def _fetch(registry: Registry, version: Version, folder: Path) -> _Material:
    if not version.release_id:
        raise RejectedError("it has no tag lineage.onnx_sha256: register it with `dvc repro`, not by hand")
    fetched = registry.download(version, folder)
    onnx, golden_npz = fetched["export/model.onnx"].read_bytes(), fetched["export/golden.npz"].read_bytes()
    int8 = fetched[INT8_ARTIFACT].read_bytes() if INT8_ARTIFACT in fetched else None
    digested = [("onnx", onnx), ("golden", golden_npz)] + ([("int8", int8)] if int8 is not None else [])
    for name, content in digested:
        if _sha256(content) != version.tags.get(f"lineage.{name}_sha256"):
            raise RejectedError(
                f"the {name} file of its run is not the one that was registered (sha256 {_sha256(content)[:12]}…, "
                f"tag lineage.{name}_sha256 {version.tags.get(f'lineage.{name}_sha256', 'missing')[:12]}…): "
                "register it again with `dvc repro`"
            )
    report = _report(fetched["export/export.json"].read_bytes())
    golden = Golden.read(fetched["export/golden.npz"])
    if (report.onnx_sha256, report.golden_sha256) != (_sha256(onnx), _sha256(golden_npz)):
        raise RejectedError("export.json describes other files than its run holds: run `dvc repro` again")
    return _Material(onnx, int8, golden_npz, golden, report)


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
    model: str,
    version: Version,
    target: str,
    built: Built,
    material: _Material,
    judged: Sequence[GateResult],
    limits: GateParams,
    approved_at: str,
    now: str,
) -> dict[str, bytes]:
    """Engine, golden frames and passport of one target."""
    engine_path = file_path(version.release_id, target, engine_name(target))
    golden_path = file_path(version.release_id, target, "golden.npz")
    passport = Passport(
        release_id=version.release_id,
        target=target,
        preprocessing=material.report.preprocessing,
        engine=EngineFile(path=engine_path, sha256=_sha256(built.engine), bytes=len(built.engine)),
        golden=GoldenFrames(
            path=golden_path,
            sha256=_sha256(material.golden_npz),
            bytes=len(material.golden_npz),
            count=len(material.golden.frames),
            tolerance=gates.max_parity_error(target, limits),
        ),
        decision=material.report.decision,
        measured=built.measured,
        gates=[gate for gate in judged if "." not in gate.name or gate.name.endswith(f".{target}")],
        lineage=lineage(model, version),
        approver=version.user or UNKNOWN_APPROVER,
        approved_at=approved_at,
        built_at=now,
    )
    passport_json = msgspec.json.format(msgspec.json.encode(passport), indent=1)
    return {
        engine_path: built.engine,
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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
