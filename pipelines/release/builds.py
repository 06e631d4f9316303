"""What robots build for a release: the orders that are open, the reports that came, and whether to believe them.

    FOLDER/builders/<name>.pub                   ed25519 keys of the robots that may hand engines in
    FOLDER/builds/<release_id>/<target>/         order.json, then engine and report.json

The first robot of a kind builds, its twins take what it built: an engine is found again by target, ONNX file and golden
frames. An order becomes a signed target of the repository; a report counts when its signature, its digests and the
machine that it names fit the order, and what it measured is within the limits of params.yaml. HTTP is in builds_web.py.
"""

import hashlib
import logging
import os
import re
import threading
import time
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pipelines.params import GateParams
from pipelines.release import durable, gates
from pipelines.release.builders_rtx import build_rtx
from pipelines.release.built import Built, Golden
from pipelines.release.journal import Waiting
from serving.contracts.builds import ONNX_FILE, ORDER_FILE, PREBUILT_FILE, BuildOrder, BuildReport, OpenBuild
from serving.contracts.builds import signed_content as signed
from serving.contracts.names import NAME_PATTERN
from serving.contracts.releases import EngineFile, Target, file_path
from serving.contracts.targets import MEASURED, TargetKind, kind_of
from serving.errors import RejectedError
from serving.preprocess import PREPROCESSING

log = logging.getLogger(__name__)

OPEN_DAYS = 30  # an order that nobody took in so long is not listed any more
_ENGINE, _REPORT = "engine", "report.json"


class WaitingForBuild(Waiting):
    """The version is good so far; a board has to build or measure the engine of one of its targets."""

    def __init__(self, target: str, onnx: bytes, golden: Golden, prebuilt: bytes | None = None) -> None:
        doing = "measure" if prebuilt else "build"
        super().__init__(f"waiting for a robot of kind {target} to {doing} it: `jetloop-robot build`")
        self.target, self.onnx, self.golden, self.prebuilt = target, onnx, golden, prebuilt


class NotTaken(RejectedError):
    """A report that is not believed, with the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Builds:
    """Orders and builds of one release folder; any thread may call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "builds"
        self._keys = folder / "builders"
        self._lock = threading.Lock()

    def find(self, target: str, onnx: bytes, golden: Golden) -> Built | None:
        """What a robot of this kind built of this ONNX file and measured with these golden frames, for any release."""
        wanted = (_sha256(onnx), _sha256(golden.npz))
        for place in sorted(self._folder.glob(f"*/{target}/{_REPORT}")):
            report = msgspec.json.decode(place.read_bytes(), type=BuildReport)
            if (report.key.onnx_sha256, report.golden_sha256) != wanted:
                continue
            engine = place.with_name(_ENGINE).read_bytes()
            if _sha256(engine) == report.engine_sha256:
                return Built(engine, report.measured, report.key)
            log.error("%s is not the engine that was handed in: it has to be built again", place.with_name(_ENGINE))
            place.unlink()
        return None

    def prebuilt(self, target: str, onnx: bytes) -> bytes | None:
        """The engine of an order that only lacks its measuring: built once, so that the order stays the same."""
        for place in sorted(self._folder.glob(f"*/{target}/{ORDER_FILE}")):
            order = msgspec.json.decode(place.read_bytes(), type=BuildOrder)
            if order.prebuilt and order.onnx.sha256 == _sha256(onnx):
                engine = place.with_name(PREBUILT_FILE).read_bytes()
                if _sha256(engine) == order.prebuilt.sha256:
                    return engine
        return None

    def request(self, release_id: str, waiting: WaitingForBuild) -> dict[str, bytes]:
        """Opens an order, or finds it open.

        Returns:
            Target path -> content, to be signed and published: what a robot needs to build.

        Raises:
            OSError: the disk is full.
        """
        files: dict[str, bytes] = {}

        def described(name: str, content: bytes) -> EngineFile:
            path = file_path(release_id, waiting.target, name)
            files[path] = content
            return EngineFile(path=path, sha256=_sha256(content), bytes=len(content))

        order = BuildOrder(
            release_id=release_id,
            target=waiting.target,
            preprocessing=PREPROCESSING,
            opset=_opset(waiting.onnx),
            onnx=described(ONNX_FILE, waiting.onnx),
            golden=described("golden.npz", waiting.golden.npz),
            prebuilt=described(PREBUILT_FILE, waiting.prebuilt) if waiting.prebuilt else None,
        )
        files[file_path(release_id, waiting.target, ORDER_FILE)] = content = msgspec.json.encode(order)
        place = self._place(release_id, waiting.target)
        if not (place / ORDER_FILE).is_file():
            if waiting.prebuilt:
                durable.write(place / PREBUILT_FILE, waiting.prebuilt)
            durable.write(place / ORDER_FILE, content)
            log.info("%s: %s", release_id, waiting)
        return files

    def listed(self) -> list[OpenBuild]:
        """The orders of the last month, newest first, with who built them."""
        oldest_s = time.time() - OPEN_DAYS * 86400
        orders = [(path.stat().st_mtime, path) for path in self._folder.glob(f"*/*/{ORDER_FILE}")]
        found = []
        for changed_s, path in sorted(orders, reverse=True):
            if changed_s > oldest_s:
                release_id, target = path.parts[-3:-1]
                report = self._report(path.parent)
                found.append(OpenBuild(release_id=release_id, target=target, builder=report.builder if report else ""))
        return found

    def verify(self, builder: str, raw: bytes, signature: bytes, limits: GateParams) -> BuildReport:
        """Judges a report before the engine is taken.

        Raises:
            NotTaken: nobody knows the builder, the signature is wrong, nobody asked for it, it does not fit the order
                or the target, or what it measured is over a limit; with the reason.
        """
        try:
            self._key(builder).verify(signature, signed(raw))
        except InvalidSignature:
            raise NotTaken(401, f"the report is not signed with the key of {builder}") from None
        try:
            report = msgspec.json.decode(raw, type=BuildReport)
        except msgspec.DecodeError as problem:
            raise NotTaken(422, f"the report cannot be read: {problem}") from None
        if report.builder != builder:
            raise NotTaken(401, f"{builder} signed a report of {report.builder}")
        place = self._place(report.release_id, report.target)
        if not (place / ORDER_FILE).is_file():
            raise NotTaken(404, f"nobody asked for {report.target} of {report.release_id}")
        order = msgspec.json.decode((place / ORDER_FILE).read_bytes(), type=BuildOrder)
        wrong = misfit(report, order) or _over_limit(report, limits)
        if wrong:
            raise NotTaken(422, wrong)
        self._not_built_yet(place, report)
        return report

    def keep(self, report: BuildReport, raw: bytes, engine: Path) -> None:
        """Keeps a verified report and its engine, which is moved from where it was received.

        Raises:
            NotTaken: another robot was first.
            OSError: the disk is full.
        """
        place = self._place(report.release_id, report.target)
        with self._lock:
            self._not_built_yet(place, report)
            os.replace(engine, place / _ENGINE)
            durable.write(place / _REPORT, raw)
        log.info("%s: %s was built by %s", report.release_id, report.target, report.builder)

    def incoming(self) -> Path:
        """The folder for engines on their way in, on the same disk."""
        (self._folder / "incoming").mkdir(parents=True, exist_ok=True)
        return self._folder / "incoming"

    def sweep(self) -> None:
        """Removes what a service that was killed left on its way in. Only for the process that holds the lock."""
        for left in self.incoming().iterdir():
            left.unlink()

    def _not_built_yet(self, place: Path, report: BuildReport) -> None:
        there = self._report(place)
        if there and there.engine_sha256 != report.engine_sha256:
            raise NotTaken(409, f"{there.builder} has built it already; robots of this kind take that engine")

    def _report(self, place: Path) -> BuildReport | None:
        try:
            return msgspec.json.decode((place / _REPORT).read_bytes(), type=BuildReport)
        except FileNotFoundError:
            return None

    def _place(self, release_id: str, target: str) -> Path:
        return self._folder / release_id / target

    def _key(self, builder: str) -> Ed25519PublicKey:
        file = self._keys / f"{builder}.pub"
        if not re.match(NAME_PATTERN, builder) or not file.is_file():
            raise NotTaken(401, f"no builder of the name {builder[:100]!r} is known: bring its key into {self._keys}")
        try:
            key = load_pem_public_key(file.read_bytes())
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise NotTaken(401, f"{file} holds no ed25519 public key: `jetloop-robot build --new-key` prints one")
        return key


def build_elsewhere(kind: TargetKind, builds: Builds | None, onnx: bytes, golden: Golden) -> Built:
    """What a robot built or measured for this target; a builder of build.py.

    Raises:
        WaitingForBuild: none has yet.
        RejectedError: it cannot be built.
        OperatorError: what builds it here is not installed.
    """
    found = builds.find(kind.name, onnx, golden) if builds else None
    if found:
        return found
    prebuilt = None
    if kind.built == MEASURED:
        prebuilt = (builds.prebuilt(kind.name, onnx) if builds else None) or build_rtx(kind, onnx)
    raise WaitingForBuild(kind.name, onnx, golden, prebuilt)


def misfit(report: BuildReport, order: BuildOrder) -> str:
    """Why a report does not fit what was ordered; empty when it does."""
    kind, target, key = kind_of(order.target), Target.parse(order.target), report.key
    wanted_engine = order.prebuilt.sha256 if order.prebuilt else report.engine_sha256
    for what, found, wanted in (
        ("release", report.release_id, order.release_id),
        ("target", report.target, order.target),
        ("ONNX file", key.onnx_sha256, order.onnx.sha256),
        ("golden frames", report.golden_sha256, order.golden.sha256),
        ("engine", report.engine_sha256, wanted_engine),
        ("board", key.board, target.board),
        ("compute capability", key.compute_capability, kind.compute_capability),
        ("precision", key.precision, target.precision),
    ):
        if found != wanted:
            return f"the report is about the {what} {found or 'none'}, ordered is {wanted or 'none'}"
    if target.runtime_version and not f"{key.runtime_version}.".startswith(f"{target.runtime_version}."):
        return f"it was built with version {key.runtime_version}, the target names {target.runtime_version}"
    return ""


def _over_limit(report: BuildReport, limits: GateParams) -> str:
    measured, target = report.measured, report.target
    parity = gates.at_most("parity", measured.parity_max_abs, gates.max_parity_error(target, limits), "of a logit")
    latency = gates.at_most("latency", measured.latency_p99_ms, limits.max_latency_ms.get(target), "ms, p99")
    return gates.failures([parity, latency])


def _opset(onnx: bytes) -> int:
    from google.protobuf.message import DecodeError
    from onnx import load_from_string

    try:
        opsets = [one.version for one in load_from_string(onnx).opset_import if one.domain in ("", "ai.onnx")]
    except DecodeError:
        opsets = []
    if not opsets:
        raise RejectedError("the model is no ONNX file: export it again with `dvc repro`")
    return int(max(opsets))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
