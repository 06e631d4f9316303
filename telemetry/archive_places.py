"""Where an archive lies: a folder, or S3. Both hold whole files that never change, and give out a name once.

Paths are relative to the archive, with `/`. Nothing here knows what the files mean.
"""

import datetime
import os
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from serving.contracts.events import utc_now
from serving.errors import OperatorError
from serving.files import sync_folder

_T = TypeVar("_T")
_ATTEMPTS = 8  # of one request to S3, with growing pauses
_TIMEOUT_S = 20.0
_AT_ONCE = 1000  # keys of one DeleteObjects
_TEMPORARY = ".new-"


@dataclass(frozen=True)
class Found:
    """A file that is there."""

    path: str
    bytes: int
    changed_at: datetime.datetime


class Place(Protocol):
    """Every method raises OperatorError when the place does not answer, is full, or may not be read or written."""

    name: str

    def list(self, under: str) -> list[Found]:
        """All files below a path."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None when there is none."""

    def put(self, path: str, data: bytes) -> None:
        """Writes a file of a name that nobody else uses; it is durable when this returns."""

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file, durably, only if there is none of that name; False when there is. Of several one succeeds."""

    def delete(self, paths: Iterable[str]) -> None:
        """Removes files; one that is not there is no error."""

    def filesystem(self) -> Any:
        """For pyarrow, with this place as its root."""


def place_of(url: str, endpoint: str = "") -> Place:
    """The place that a command line names: a folder, or `s3://BUCKET/PREFIX`.

    Raises:
        OperatorError: it is neither.
    """
    if url.startswith("s3://"):
        return S3(url, endpoint)
    if "://" in url or not url:
        raise OperatorError(f"an archive is a folder or s3://BUCKET/PREFIX, not `{url}`")
    return Folder(Path(url))


class Folder:
    """A folder of a file system that has hard links: they make a name appear once, with all of its content."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root = root.absolute()

    def list(self, under: str) -> list[Found]:
        def look() -> list[Found]:
            files = []
            for folder, _, names in os.walk(self._root / under):
                for name in names:
                    path = Path(folder, name)
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # somebody swept it
                        continue
                    at = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
                    files.append(Found(path.relative_to(self._root).as_posix(), status.st_size, at))
            return files

        return self._do(look)

    def read(self, path: str) -> bytes | None:
        def look() -> bytes | None:
            try:
                return (self._root / path).read_bytes()
            except FileNotFoundError:
                return None

        return self._do(look)

    def put(self, path: str, data: bytes) -> None:
        self._do(lambda: self._write(path, data, os.replace))

    def create(self, path: str, data: bytes) -> bool:
        def link(beside: Path, target: Path) -> None:
            os.link(beside, target)
            beside.unlink()

        try:
            self._do(lambda: self._write(path, data, link))
        except FileExistsError:
            return False
        return True

    def delete(self, paths: Iterable[str]) -> None:
        def remove() -> None:
            for path in paths:
                (self._root / path).unlink(missing_ok=True)

        self._do(remove)

    def filesystem(self) -> Any:
        import pyarrow.fs

        return pyarrow.fs.SubTreeFileSystem(str(self._root), pyarrow.fs.LocalFileSystem())

    def _write(self, path: str, data: bytes, appear: Callable[[Path, Path], Any]) -> None:
        target = self._root / path
        self._make(target.parent)
        beside = target.with_name(f"{_TEMPORARY}{uuid.uuid4()}")
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            appear(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def _make(self, folder: Path) -> None:
        """Makes a folder, with its name durable in each one above."""
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)

    def _do(self, what: Callable[[], _T]) -> _T:
        try:
            return what()
        except FileExistsError:
            raise
        except OSError as problem:
            raise OperatorError(
                f"the archive {self.name} does not work: {problem.strerror or problem}"
                f"{f' ({problem.filename})' if problem.filename else ''}; nothing of it is lost, mend it and run again"
            ) from None


class S3:
    """A bucket, below a prefix. Keys come from where boto3 looks for them: the environment, ~/.aws, the machine's role.

    Needs s3:ListBucket on the bucket, s3:GetObject, PutObject and DeleteObject on the objects.
    """

    def __init__(self, url: str, endpoint: str) -> None:
        import boto3
        import botocore.config

        self.name = url.rstrip("/")
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint = endpoint
        if not self._bucket:
            raise OperatorError(f"`{url}` names no bucket; it is s3://BUCKET/PREFIX")
        limits = botocore.config.Config(
            connect_timeout=_TIMEOUT_S,
            read_timeout=_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        self._session = boto3.session.Session()
        self._region = self._session.region_name or "us-east-1"
        self._client = self._do(
            lambda: self._session.client("s3", endpoint_url=endpoint or None, region_name=self._region, config=limits)
        )

    def list(self, under: str) -> list[Found]:
        def look() -> list[Found]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + under
            )
            found = (one for page in pages for one in page.get("Contents", []))
            return [Found(one["Key"][len(self._prefix) :], one["Size"], one["LastModified"]) for one in found]

        return self._do(look)

    def read(self, path: str) -> bytes | None:
        def look() -> bytes | None:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)
            except self._client.exceptions.NoSuchKey:
                return None
            return bytes(answer["Body"].read())

        return self._do(look)

    def put(self, path: str, data: bytes) -> None:
        self._do(lambda: self._client.put_object(Bucket=self._bucket, Key=self._prefix + path, Body=data))

    def create(self, path: str, data: bytes) -> bool:
        """A second attempt after an answer that got lost says False too: look whether it is one's own."""
        from botocore.exceptions import ClientError

        at = {"Bucket": self._bucket, "Key": self._prefix + path}

        def write() -> bool:
            try:
                self._client.put_object(**at, Body=data, IfNoneMatch="*")
            except ClientError as problem:
                if problem.response["Error"]["Code"] in ("PreconditionFailed", "412"):
                    return False
                if problem.response["Error"]["Code"] in ("ConditionalRequestConflict", "409"):  # two at this moment
                    time.sleep(0.2)
                    return self.read(path) is None and write()
                raise
            return True

        return self._do(write)

    def delete(self, paths: Iterable[str]) -> None:
        keys = [{"Key": self._prefix + path} for path in paths]
        for start in range(0, len(keys), _AT_ONCE):
            some = {"Objects": keys[start : start + _AT_ONCE], "Quiet": True}
            answer = self._do(lambda some=some: self._client.delete_objects(Bucket=self._bucket, Delete=some))  # type: ignore[misc]
            for error in answer.get("Errors", []):
                raise OperatorError(f"{self.name}: {error['Key']} cannot be deleted: {error.get('Message', '')}")

    def filesystem(self) -> Any:
        import pyarrow.fs

        keys = self._session.get_credentials()
        known = keys.get_frozen_credentials() if keys is not None else None
        parsed = urllib.parse.urlsplit(self._endpoint)
        where = {"endpoint_override": parsed.netloc, "scheme": parsed.scheme} if self._endpoint else {}
        files = pyarrow.fs.S3FileSystem(
            access_key=known.access_key if known else None,
            secret_key=known.secret_key if known else None,
            session_token=known.token if known else None,
            region=self._region,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
            request_timeout=_TIMEOUT_S,
            **where,
        )
        return pyarrow.fs.SubTreeFileSystem(f"{self._bucket}/{self._prefix}".rstrip("/"), files)

    def _do(self, what: Callable[[], _T]) -> _T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return what()
        except (BotoCoreError, ClientError) as problem:
            raise OperatorError(f"the archive {self.name} does not work: {problem}; run it again later") from None


def age(found: Found) -> datetime.timedelta:
    return utc_now() - found.changed_at
