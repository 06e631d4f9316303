"""The champion in the suite: its drives through the same rooms, to compare a new network with.

If the champion was driven in this very suite when it was made, its episodes are taken from its MLflow run; otherwise
its ONNX file is fetched and driven now. Either is kept in build/cache/simulate, named by network, suite and simulator.
Imports little, as pipelines/simulate.py does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from serving.contracts.releases import Decision, ExportReport
from serving.errors import RejectedError
from simulator.settings import SuiteSettings
from simulator.suite import Episode, key, read_counts, write_counts
from training.tracking import reaching, tracking_uri

if TYPE_CHECKING:  # imports mlflow, which the processes that only drive need not wait for
    from pipelines.release.registry import Registry, Version

CACHE = Path("build/cache/simulate")
EPISODES = "simulate/episodes.csv"  # artifact of a run
DRIVEN_TAG = "simulate.driven"  # of a run: the key of the drive that its episodes are of

Drive = Callable[[Path, Decision], list[Episode]]


class Champion(NamedTuple):
    """The version with the alias `champion`, and how it drove."""

    version: str
    episodes: list[Episode]  # without the ways driven


def promoted() -> "tuple[Registry, Version] | None":
    """The version that the alias `champion` is on; None if there is none yet.

    Raises:
        OperatorError: MLflow cannot be asked.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar a file, of files that are small
    from pipelines.release.registry import Registry

    registry = Registry(tracking_uri())
    found = registry.promoted("champion")
    return None if found is None else (registry, found)


def drive_champion(registry: "Registry", version: "Version", suite: SuiteSettings, drive: Drive) -> Champion:
    """How the champion drives in this suite, remembered or found out now.

    Args:
        registry: where it is registered.
        version: the champion.
        suite: the suite.
        drive: drives an ONNX file with a decision through the suite.

    Raises:
        OperatorError: MLflow cannot be asked.
        RejectedError: its run lacks a file, or holds something else in its place.
    """
    from pipelines.images_table import write_text

    with TemporaryDirectory(prefix="jetloop-champion-") as scratch:
        files = registry.download(version, Path(scratch))
        model, report_file = files["export/model.onnx"], files["export/export.json"]
        report = _report(report_file)
        name = key(report.onnx_sha256, report.decision, suite)
        kept = CACHE / f"{name}.csv"
        if not kept.exists():
            with reaching(registry.uri):
                driven = registry.client.get_run(version.run_id).data.tags.get(DRIVEN_TAG)
                if driven == name:
                    path = registry.client.download_artifacts(version.run_id, EPISODES, scratch)
            if driven == name:
                episodes = read_counts(Path(path).read_text())
            else:
                episodes = drive(model, report.decision)
            write_text(kept, write_counts(episodes))
        return Champion(version.number, read_counts(kept.read_text()))


def _report(path: Path) -> ExportReport:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportReport)
    except msgspec.DecodeError as problem:
        raise RejectedError(f"export.json of its run is malformed ({problem})") from None
