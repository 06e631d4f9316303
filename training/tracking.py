"""One MLflow run per trained network: the train stage starts it, evaluate, export and register go on with it.

Only calls that an MLflow 2.17 client has (the newest for Python 3.8) against a server of 3.x. Where the runs go:
MLFLOW_TRACKING_URI, else the SQLite store in build/mlflow, which needs no server; `jetloop mlflow` shows it.
"""

import contextlib
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union
from urllib.parse import unquote, urlsplit

import msgspec

from serving.errors import OperatorError, first_line
from serving.settings import convert

LOG = logging.getLogger(__name__)
EXPERIMENT = "collision-avoidance"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
STORE = Path("build/mlflow")
RUN_FILE = Path("build/train/run.json")
FAILED_TAG = "failed"  # why the run, or a stage that went on with it, failed last
# A server that is down is told of within seconds, where MLflow alone would try for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
LAST_TRY_S = 60.0  # how long an open run waits for a server that restarts
# CPU, memory, disk and network are read so often: some points for a training of seconds, and few for one of hours.
SYSTEM_METRICS_EVERY_S = 2.0
# What MLflow's client says when nothing answered, with the reason behind it; an answer that refuses reads otherwise.
_NO_ANSWER = re.compile(r"failed with (timeout )?exception|connection refused", re.IGNORECASE)


class Unreachable(OperatorError):
    """The server did not answer; it may restart, and answer the same call later."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """build/train/run.json: the run that the later stages go on with."""

    run_id: str
    tracking_uri: str
    experiment: str


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the store in build/mlflow."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE / 'mlflow.db'}"


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns what MLflow raises into one line.

    Raises:
        OperatorError: the store refuses what was asked, or (`Unreachable`) does not answer.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as problem:
        said = first_line(problem)[:300]
        family = Unreachable if uri.startswith("http") and _NO_ANSWER.search(str(problem)) else OperatorError
        raise family(
            f"MLflow at {uri}: {said}. Start it (`jetloop mlflow`), or mend or unset MLFLOW_TRACKING_URI"
        ) from None


def connect() -> Any:
    """An `MlflowClient` for the store.

    Raises:
        OperatorError: MLflow is not installed.
    """
    for name, value in {**PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        Path(uri[len("sqlite:///") :]).parent.mkdir(parents=True, exist_ok=True)
    try:
        from mlflow import MlflowClient, set_tracking_uri
    except ImportError as problem:
        raise OperatorError(f"MLflow is not installed ({problem}); `pip install .[train]`") from None
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new SQLite store tells of each table
    with reaching(uri):
        set_tracking_uri(uri)
        return MlflowClient(tracking_uri=uri)


class Run:
    """A run that is open. A server that restarts costs no training: metrics wait in memory, other calls for a minute.

    Use as a context manager: an exception marks the run as failed, Ctrl-C as killed, with the reason as a tag. While a
    run that was started here is open, MLflow's own thread logs what the machine does, as `system/…`.
    """

    def __init__(self, client: Any, file: RunFile, started: bool = False, failed: bool = False) -> None:
        self.client = client
        self.file = file
        self._started = started  # here, and not by an earlier stage
        self._failed = failed  # an earlier try of a stage
        self._system: Any = None
        self._waiting: List[Any] = []

    @property
    def id(self) -> str:
        return self.file.run_id

    @classmethod
    def start(cls, name: str, tags: Dict[str, str]) -> "Run":
        """Starts a new run.

        Raises:
            OperatorError: the store does not answer.
        """
        client = connect()
        uri, experiment = tracking_uri(), os.environ.get(EXPERIMENT_VARIABLE) or EXPERIMENT
        with reaching(uri):
            run = client.create_run(_experiment_id(client, experiment, uri), tags=tags, run_name=name)
        return cls(client, RunFile(run_id=run.info.run_id, tracking_uri=uri, experiment=experiment), started=True)

    @classmethod
    def resume(cls, path: Path = RUN_FILE) -> "Run":
        """Goes on with the run that the train stage started.

        Raises:
            OperatorError: there is none, or the store does not answer or does not know it.
        """
        from mlflow.exceptions import MlflowException

        try:
            file = convert(json.loads(path.read_text(encoding="utf-8")), RunFile, str(path))
        except (OSError, ValueError) as problem:
            raise OperatorError(f"{path} cannot be read ({problem}); run `dvc repro train` first") from None
        client = connect()
        with reaching(tracking_uri()):
            try:
                found = client.get_run(file.run_id)
            except MlflowException as problem:
                if getattr(problem, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise OperatorError(
                    f"run {file.run_id} of {path} is not in {tracking_uri()}, it was made in {file.tracking_uri}; "
                    "set MLFLOW_TRACKING_URI to that, or train anew: `dvc repro --force train`"
                ) from None
        return cls(client, file, failed=FAILED_TAG in found.data.tags)

    def __enter__(self) -> "Run":
        if self._started:
            self._system = _log_system_metrics(self.id)
        return self

    def __exit__(self, kind: Any, problem: Optional[BaseException], _: Any) -> None:
        if self._system is not None:
            self._system.finish()
        if problem is None:
            self._end()
            return
        interrupted = isinstance(problem, KeyboardInterrupt)
        reason = "interrupted" if interrupted else str(problem)[:500] or type(problem).__name__
        with contextlib.suppress(OperatorError), reaching(tracking_uri()):  # the first error is the one to tell
            self.client.set_tag(self.id, FAILED_TAG, reason)
            self.client.set_terminated(self.id, "KILLED" if interrupted else "FAILED")

    def params(self, params: Dict[str, object]) -> None:
        from mlflow.entities import Param

        logged = [Param(name, str(value)) for name, value in params.items()]
        self._patiently(lambda: self.client.log_batch(self.id, params=logged))

    def tags(self, tags: Dict[str, str]) -> None:
        from mlflow.entities import RunTag

        logged = [RunTag(name, value) for name, value in tags.items()]
        self._patiently(lambda: self.client.log_batch(self.id, tags=logged))

    def metrics(self, metrics: Dict[str, float], step: int = 0) -> None:
        """Logs the metrics now, or with the next ones if the server does not answer. NaN is left out."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now_ms, step) for name, value in metrics.items() if value == value]
        try:
            self._flush()
        except OperatorError as problem:
            LOG.warning("%d metrics wait: %s", len(self._waiting), problem)

    def artifact(self, path: Path, folder: str) -> None:
        """Copies a file, or all of a folder, to `folder` of the run's artifacts."""
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        self._patiently(lambda: log(self.id, str(path), folder))

    def text(self, text: str, artifact: str) -> None:
        self._patiently(lambda: self.client.log_text(self.id, text, artifact))

    def dataset(self, name: str, digest: str, path: Path, context: str, profile: Dict[str, Union[int, str]]) -> None:
        """Names a set of images that the run used, by its DVC hash; the UI lists it under Datasets."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": str(path)})
        used = Dataset(name, digest[:36], "local", source, profile=json.dumps(profile))
        inputs = [DatasetInput(used, [InputTag("mlflow.data.context", context)])]
        self._patiently(lambda: self.client.log_inputs(self.id, inputs))

    def _flush(self) -> None:
        with reaching(tracking_uri()):
            self.client.log_batch(self.id, metrics=self._waiting)
        self._waiting = []

    def _end(self) -> None:
        self._patiently(self._flush)
        if self._failed:
            self._patiently(lambda: self.client.delete_tag(self.id, FAILED_TAG))
        self._patiently(lambda: self.client.set_terminated(self.id))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LAST_TRY_S
        while True:
            try:
                with reaching(tracking_uri()):
                    return call()
            except Unreachable as problem:
                if time.monotonic() > deadline:
                    raise
                LOG.warning("trying again for %.0f s: %s", deadline - time.monotonic(), problem)
                time.sleep(2.0)


def _log_system_metrics(run_id: str) -> Any:
    """Starts MLflow's monitor, whose `finish` ends it. None where it is switched off or, with a word, lacks psutil."""
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("true", "1"):
        return None
    try:
        import psutil
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    except ImportError as problem:
        LOG.warning("the run will have no system metrics (%s); `pip install psutil` adds them", problem)
        return None
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells of its start and its end
    psutil.cpu_percent()  # counts from the call before, and the first has none
    monitor = SystemMetricsMonitor(run_id, sampling_interval=SYSTEM_METRICS_EVERY_S)
    monitor.start()
    return monitor


def _experiment_id(client: Any, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without a server the client writes artifacts itself: beside the database, where `jetloop mlflow` serves them.
        local = uri.startswith("sqlite:///")
        if not local:
            return str(client.create_experiment(name))
        folder = Path(uri[len("sqlite:///") :]).resolve().parent / "artifacts"
        folder.mkdir(exist_ok=True)
        return str(client.create_experiment(name, artifact_location=folder.as_uri()))
    if found.lifecycle_stage != "active":
        raise OperatorError(
            f"the experiment {name} is deleted in MLflow; restore it there or set {EXPERIMENT_VARIABLE} to another name"
        )
    location = str(found.artifact_location)
    if location.startswith("file:") and not Path(unquote(urlsplit(location).path)).is_dir():
        # Made without a server: whoever logs to it writes to that folder, which is on the machine that made it.
        raise OperatorError(
            f"the experiment {name} keeps its artifacts in {location}, which is not on this machine; "
            f"set {EXPERIMENT_VARIABLE} to another name, and the server will keep them"
        )
    return str(found.experiment_id)
