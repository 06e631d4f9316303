"""MLflow's model registry as the release service needs it: what an alias points to, its files, what became of it.

Every error of MLflow or of the way to it leaves here as an OperatorError, so that the loop may log one line and retry.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException

from serving.contracts import releases
from serving.errors import OperatorError, RejectedError

ARTIFACTS = ("export/model.onnx", "export/golden.npz", "export/export.json")
INT8_ARTIFACT = "export/int8/model.int8.onnx"  # where int8 was worth keeping
_BLOCK_BEGIN, _BLOCK_END = "<!-- jetloop release: written by the release service -->", "<!-- /jetloop release -->"
_BLOCK = re.compile(rf"\n*{re.escape(_BLOCK_BEGIN)}.*?{re.escape(_BLOCK_END)}\n*", re.DOTALL)


@dataclass(frozen=True)
class Version:
    """A version of the registered model, as MLflow knew it when asked."""

    number: str
    run_id: str
    tags: Mapping[str, str]
    user: str

    @property
    def status(self) -> str:
        """As journal.State, or rolled-back; empty when the service never saw it or a person took it away."""
        return self.tags.get("release.status", "")

    @property
    def release_id(self) -> str:
        """The name that its release has or will have; empty when the version has no digest."""
        return releases.release_id(self.number, self.onnx_sha256) if self.onnx_sha256 else ""

    @property
    def onnx_sha256(self) -> str:
        """Digest of its ONNX file; empty when it has no such tag."""
        sha256 = self.tags.get("lineage.onnx_sha256", "")
        return sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else ""


class Registry:
    """The registered model of this fleet on one tracking server."""

    def __init__(self, uri: str, model: str = releases.MODEL_NAME) -> None:
        self.uri = uri
        self.model = model
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def promoted(self, alias: str) -> Version | None:
        """The version that an alias is set on; one request. None when there is no such alias or model yet.

        Raises:
            OperatorError: MLflow cannot be asked.
        """
        with self._asking():
            try:
                found = self.client.get_model_version_by_alias(self.model, alias)
            except MlflowException as problem:
                # No code of its own: `Registered Model with name=… not found`, `Registered model alias … not found`.
                if re.search(r"Registered model .*not found", str(problem), re.IGNORECASE):
                    return None
                raise
        return _version(found)

    def version(self, number: str) -> Version | None:
        """A version by its number; None when it was deleted.

        Raises:
            OperatorError: MLflow cannot be asked.
        """
        with self._asking():
            try:
                return _version(self.client.get_model_version(self.model, number))
            except MlflowException as problem:
                if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def metrics(self, version: Version) -> dict[str, float]:
        """Metrics of the version's run.

        Raises:
            OperatorError: MLflow cannot be asked.
            RejectedError: the run is gone.
        """
        with self._asking():
            try:
                return dict(self.client.get_run(version.run_id).data.metrics)
            except MlflowException as problem:
                if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise RejectedError(f"its run `{version.run_id}` is not in MLflow: run `dvc repro` again") from None
                raise

    def download(self, version: Version, folder: Path) -> dict[str, Path]:
        """Fetches what a release is made of from the version's run.

        Returns:
            ARTIFACTS, and INT8_ARTIFACT where the version has it -> file in `folder`.

        Raises:
            OperatorError: MLflow cannot be asked, or the disk is full.
            RejectedError: the run lacks a file.
        """
        with self._asking():
            present = {artifact.path for artifact in self.client.list_artifacts(version.run_id, "export")}
            missing = [path for path in ARTIFACTS if path not in present]
            if missing:
                raise RejectedError(f"its run holds no {', '.join(missing)}: run `dvc repro`, which logs it")
            wanted = ARTIFACTS + ((INT8_ARTIFACT,) if "lineage.int8_sha256" in version.tags else ())
            # At once: for each MLflow asks five times where it is and what it is, before it fetches it.
            with ThreadPoolExecutor(len(wanted)) as pool:
                fetched = pool.map(
                    lambda path: self.client.download_artifacts(version.run_id, path, str(folder)), wanted
                )
                return {path: Path(file) for path, file in zip(wanted, fetched, strict=True)}

    def tag(self, version: Version, tags: Mapping[str, str | None]) -> None:
        """Sets tags in the order given; None removes one.

        Raises:
            OperatorError: MLflow cannot be told.
        """
        with self._asking():
            for key, value in tags.items():
                if value is None:
                    if key in version.tags:
                        self.client.delete_model_version_tag(self.model, version.number, key)
                elif version.tags.get(key) != value or key == "release.status":
                    self.client.set_model_version_tag(self.model, version.number, key, value)

    def describe(self, version: Version, text: str) -> None:
        """Puts `text` into our own block of the version's description; what people wrote stays.

        Raises:
            OperatorError: MLflow cannot be told.
        """
        with self._asking():
            before = self.client.get_model_version(self.model, version.number).description or ""
            self.client.update_model_version(self.model, version.number, with_block(before, text))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, RequestException) as problem:
            raise OperatorError(f"MLflow at {self.uri} does not answer as it should ({_cause(problem)})") from problem
        except OSError as problem:
            raise OperatorError(
                f"the files of a version cannot be fetched ({problem}): free space in /tmp"
            ) from problem


def _version(found: Any) -> Version:
    tags = dict(found.tags)
    return Version(
        number=str(found.version),
        run_id=tags.get("lineage.run_id") or found.run_id or "",
        tags=tags,
        user=found.user_id or "",
    )


def _cause(problem: Exception) -> str:
    """The end of a chain of HTTP errors, where one is to be seen: `Connection refused`."""
    line = " ".join(str(problem).split())
    errno = re.search(r"\[Errno -?\d+\] ([\w ]+)", line)
    return errno.group(1) if errno else line[:200]


def with_block(description: str, text: str) -> str:
    """A description with our block replaced, or added at its end."""
    human = _BLOCK.sub("\n\n", description).strip()
    block = f"{_BLOCK_BEGIN}\n{text}\n{_BLOCK_END}"
    return f"{human}\n\n{block}" if human else block
