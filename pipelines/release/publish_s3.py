"""The signed repository on S3: a bucket that any web server's client may read, brought to the state of the folder.

Files first, then metadata, then timestamp.json, which alone makes a publication visible. Every name but that one is
written once (If-None-Match), and timestamp.json only over the one that was looked at (If-Match): of two services that
publish to one place by mistake the second loses, and nothing of the first is harmed. Killed at any moment, the next
call sends what is missing. Keys come from where boto3 looks for them: the environment, ~/.aws, the machine's role.

The service needs s3:GetObject and s3:PutObject on the objects, and s3:ListBucket on the bucket; robots s3:GetObject.
"""

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Timestamp  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.serialization import DeserializationError

from pipelines.release.repository_state import State
from serving.errors import OperatorError

ATTEMPTS = 6
_FIRST_PAUSE_S = 0.2  # doubles; all attempts together take about 6 s, then the service's own loop goes on
_TIMESTAMP = "metadata/timestamp.json"
_FOR_EVER, _ASK_FIRST = "public, max-age=31536000, immutable", "no-cache"

T = TypeVar("T")

log = logging.getLogger(__name__)


class Bucket:
    """A place in a bucket; a Mirror of repository.py. Call it from one thread.

    Args:
        url: s3://bucket/prefix.
        endpoint: of another S3 than Amazon's, such as http://seaweed:8333; empty: Amazon's.
        timeout_s: of connecting, and of each wait for data.

    Raises:
        OperatorError: the URL is none.
    """

    def __init__(self, url: str, endpoint: str = "", timeout_s: float = 20.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise OperatorError(f"--publish {url}: this is not s3://bucket/prefix")
        self.url = url.rstrip("/")
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._client: Any = None
        self._brought: tuple[bytes, int] | None = None  # timestamp.json and the version of root

    def bring(self, folder: Path, state: State) -> None:
        """Brings the bucket to what a repository folder holds; asks nothing when this process did so already.

        Raises:
            OperatorError: S3 does not answer as it should, or somebody else publishes there.
        """
        timestamp = (folder / _TIMESTAMP).read_bytes()
        wanted = (timestamp, state.root.signed.version)
        if self._brought == wanted:
            return
        found, etag = self._read(_TIMESTAMP)
        if found != timestamp and found is not None:
            self._check_ours(found, folder, state)
        there = self._names()
        for name in state.files().values():
            if f"targets/{name}" not in there:
                self._send(folder / "targets" / name, f"targets/{name}")
        for name in state.parts():
            if f"metadata/{name}" not in there:
                self._send(folder / "metadata" / name, f"metadata/{name}")
        roots = [name for name in state.roots() if f"metadata/{name}" not in there]
        if roots and not _verifies_by_root_before(folder, state):
            roots = self._send_roots(folder, roots)
        if found != timestamp:
            self._send(folder / _TIMESTAMP, _TIMESTAMP, etag)
        self._send_roots(folder, roots)
        self._brought = wanted
        log.info("%s holds timestamp %d", self.url, state.timestamp.signed.version)

    def _check_ours(self, found: bytes, folder: Path, state: State) -> None:
        """Whether what the bucket shows was published from this folder: metadata that was signed is never removed.

        Raises:
            OperatorError: it was not.
        """
        try:
            theirs = Metadata[Timestamp].from_bytes(found).signed
            snapshot = folder / "metadata" / f"{theirs.snapshot_meta.version}.snapshot.json"
            theirs.snapshot_meta.verify_length_and_hashes(snapshot.read_bytes())
            if theirs.version < state.timestamp.signed.version:
                return
            problem = f"it is at timestamp {theirs.version}, this folder at {state.timestamp.signed.version}"
        except (OSError, RepositoryError, DeserializationError) as caught:
            problem = str(caught)
        raise OperatorError(
            f"{self.url} holds what was not published from {folder} ({problem}): stop the other service, or publish "
            "to another place; if this folder was restored from an older copy, take the newest one"
        )

    def _send_roots(self, folder: Path, names: list[str]) -> list[str]:
        for name in names:
            self._send(folder / "metadata" / name, f"metadata/{name}")
        return []

    def _send(self, source: Path, name: str, etag: str | None = None) -> None:
        """Writes one object in the place of none, or of the one that has `etag`.

        Raises:
            OperatorError: there is another one.
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        cache = _ASK_FIRST if name == _TIMESTAMP else _FOR_EVER
        kind = "application/json" if name.endswith(".json") else "application/octet-stream"

        def put(client: Any) -> bool:
            with source.open("rb") as body:
                at = self._at(name)
                client.put_object(**at, Body=body, CacheControl=cache, ContentType=kind, **condition)
            return True

        if self._asked(put, name, refused=("PreconditionFailed", "ConditionalRequestConflict", "412")) is None:
            found, _ = self._read(name)  # an attempt whose answer was lost may have written it
            if found != source.read_bytes():
                raise OperatorError(
                    f"{self.url}/{name} was written by another service meanwhile: stop that one; if it never finished, "
                    "remove this object"
                )

    def _read(self, name: str) -> tuple[bytes | None, str | None]:
        """Content and ETag of an object; None where there is none."""

        def get(client: Any) -> tuple[bytes, str]:
            answer = client.get_object(**self._at(name))
            return bytes(answer["Body"].read()), str(answer["ETag"])

        return self._asked(get, name, refused=("NoSuchKey", "404")) or (None, None)

    def _names(self) -> set[str]:
        """What the bucket holds: an object is whole or not there."""
        start = f"{self._prefix}/" if self._prefix else ""

        def names(client: Any) -> set[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            return {found["Key"].removeprefix(start) for page in pages for found in page.get("Contents", [])}

        return self._asked(names, "", refused=()) or set()

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{name}" if self._prefix else name}

    def _asked(self, request: Callable[[Any], T], name: str, refused: tuple[str, ...]) -> T | None:
        """Makes a request, again while S3 is busy or away.

        Args:
            refused: error codes that are an answer; they give None.

        Raises:
            OperatorError: any other error, or S3 stays away.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return request(self._connected())
            except (BotoCoreError, ClientError) as caught:
                problem = caught
            status = 0
            if isinstance(problem, ClientError):
                code = str(problem.response.get("Error", {}).get("Code", ""))
                if code in refused:
                    return None
                status = problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if isinstance(problem, ClientError) and status < 500 and status != 429:
                break
            if attempt < ATTEMPTS:
                log.warning("%s/%s: %s; trying again in %.1f s", self.url, name, problem, pause_s)
                time.sleep(pause_s * random.uniform(0.8, 1.2))
                pause_s *= 2
        raise OperatorError(f"{self.url}/{name}: {problem}; check the bucket, its rights and the network")

    def _connected(self) -> Any:
        if self._client is None:
            import boto3
            import botocore.config

            limits = botocore.config.Config(
                connect_timeout=self._timeout_s, read_timeout=self._timeout_s, retries={"total_max_attempts": 1}
            )
            self._client = boto3.client("s3", endpoint_url=self._endpoint or None, config=limits)
        return self._client


def _verifies_by_root_before(folder: Path, state: State) -> bool:
    """Whether robots that know only the root before the newest may already be shown this timestamp.

    So it is right after a rotation (repository_keys.py signs with old and new keys); then the timestamp goes first, so
    that no robot sees a root whose keys have signed nothing yet.
    """
    before = folder / "metadata" / f"{state.root.signed.version - 1}.root.json"
    if not before.exists():
        return False
    root = Metadata[Root].from_file(str(before)).signed
    timestamp = state.timestamp
    return bool(root.get_verification_result("timestamp", timestamp.signed_bytes, timestamp.signatures))
