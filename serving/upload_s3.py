"""One file to S3, in parts: what an earlier attempt brought there is not sent again. Needs boto3 (`jetloop[s3]`).

The bucket itself remembers which parts it has, so nothing is kept here. `If-None-Match: *` makes the object appear
once, and never in the place of another. Keys come from where boto3 looks for them: the environment, ~/.aws.

The robot needs s3:PutObject, GetObject, AbortMultipartUpload and ListMultipartUploadParts on the objects, and
ListBucketMultipartUploads on the bucket.
"""

import base64
import hashlib
import math
import os
from typing import IO, Any, Dict, List

from serving.config import UploadSettings
from serving.errors import OperatorError, RejectedError

_DIGEST = "sha256"  # the object's metadata
_MAX_PARTS = 10_000  # S3's own limit


def upload(file: IO[bytes], name: str, digest: str, settings: UploadSettings) -> None:
    """Brings a file there.

    Args:
        file: opened for reading bytes.
        name: the last part of its key.
        digest: its SHA-256, in hexadecimal digits.

    Raises:
        OperatorError: boto3 is missing, or S3 does not answer as it should; try again later.
        RejectedError: another object has that key.
    """
    try:
        import boto3
        import botocore.config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise OperatorError("upload.url begins with s3://, which needs boto3: pip install 'jetloop[s3]'") from None
    limits = botocore.config.Config(
        connect_timeout=settings.timeout_s, read_timeout=settings.timeout_s, retries={"total_max_attempts": 2}
    )
    bucket, _, folder = settings.url.removeprefix("s3://").partition("/")
    key = "/".join(filter(None, (folder.strip("/"), name)))
    try:
        client = boto3.client("s3", endpoint_url=settings.endpoint or None, config=limits)
        _Object(client, bucket, key, digest).bring(file, int(settings.part_mb * 1e6))
    except (BotoCoreError, ClientError) as problem:
        raise OperatorError(f"s3://{bucket}/{key}: {problem}") from None


class _Object:
    def __init__(self, client: Any, bucket: str, key: str, digest: str) -> None:
        self._client = client
        self._at = {"Bucket": bucket, "Key": key}
        self._digest = digest

    def bring(self, file: IO[bytes], part_bytes: int) -> None:
        size = os.fstat(file.fileno()).st_size
        if self._is_there(size):
            return
        part_bytes = max(part_bytes, math.ceil(size / _MAX_PARTS))
        try:
            if size <= part_bytes:
                self._put(file)
            else:
                self._put_parts(file, size, part_bytes)
        except self._client.exceptions.ClientError as problem:
            if _code(problem) not in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                raise
        if not self._is_there(size):
            raise OperatorError(f"s3://{self._at['Bucket']}/{self._at['Key']} did not appear; trying again")

    def _is_there(self, size: int) -> bool:
        """Whether this file is there.

        Raises:
            RejectedError: another one is.
        """
        try:
            found = self._client.head_object(**self._at)
        except self._client.exceptions.ClientError as problem:
            if _code(problem) in ("404", "NoSuchKey", "NotFound", "403"):  # 403: who may not list is not told
                return False
            raise
        if found["ContentLength"] != size or found["Metadata"].get(_DIGEST) != self._digest:
            raise RejectedError(f"another object is at s3://{self._at['Bucket']}/{self._at['Key']} already")
        return True

    def _put(self, file: IO[bytes]) -> None:
        file.seek(0)
        self._client.put_object(
            **self._at,
            Body=file.read(),
            IfNoneMatch="*",
            Metadata={_DIGEST: self._digest},
            ChecksumSHA256=base64.b64encode(bytes.fromhex(self._digest)).decode(),
            ContentType="application/zip",
        )

    def _put_parts(self, file: IO[bytes], size: int, part_bytes: int) -> None:
        upload = {**self._at, "UploadId": self._begun() or self._begin()}
        there = self._parts(upload)
        parts = []
        for number in range(1, math.ceil(size / part_bytes) + 1):
            file.seek((number - 1) * part_bytes)
            data = file.read(part_bytes)
            etag = there.get(number, "")
            if etag.strip('"') != hashlib.md5(data, usedforsecurity=False).hexdigest():
                etag = self._client.upload_part(**upload, PartNumber=number, Body=data)["ETag"]
            parts.append({"PartNumber": number, "ETag": etag})
        try:
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except self._client.exceptions.ClientError as problem:
            if _code(problem) in ("PreconditionFailed", "412"):
                self._client.abort_multipart_upload(**upload)
            raise

    def _begun(self) -> str:
        """The upload that an earlier attempt began; empty if there is none. Should there be two, the newest."""
        found: List[Dict[str, Any]] = []
        for page in self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._at["Bucket"], Prefix=self._at["Key"]
        ):
            found += [one for one in page.get("Uploads", []) if one["Key"] == self._at["Key"]]
        found.sort(key=lambda one: str(one.get("Initiated", "")))
        for old in found[:-1]:
            self._client.abort_multipart_upload(**self._at, UploadId=old["UploadId"])
        return str(found[-1]["UploadId"]) if found else ""

    def _begin(self) -> str:
        begun = self._client.create_multipart_upload(
            **self._at, Metadata={_DIGEST: self._digest}, ContentType="application/zip"
        )
        return str(begun["UploadId"])

    def _parts(self, upload: Dict[str, str]) -> Dict[int, str]:
        """What is there already: number of the part -> its ETag."""
        pages = self._client.get_paginator("list_parts").paginate(**upload)
        return {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}


def _code(problem: Any) -> str:
    return str(problem.response.get("Error", {}).get("Code", ""))
