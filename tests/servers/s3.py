"""A real S3 server (SeaweedFS) on loopback, which anybody may read and write."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.conftest import need, start, wait_for


class S3(NamedTuple):
    client: Any  # boto3's
    endpoint: str
    bucket: str

    def read(self, key: str) -> bytes:
        """Content of an object."""
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def keys(self, prefix: str = "") -> list[str]:
        """Names of all objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """One server for a module, with the bucket `jetloop`; tests use prefixes of their own."""
    program = need("weed")
    import boto3
    import botocore.config

    folder = tmp_path_factory.mktemp("seaweed")
    base = random.SystemRandom().randrange(20_000, 30_000, 10)  # its gRPC ports lie 10,000 above
    ports = zip(("master.port", "volume.port", "filer.port", "s3.port"), range(base, base + 4), strict=True)
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [*(f"-{name}={port}" for name, port in ports), "-volume.max=20", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "jetloop")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    process = start(command, folder / "log")
    endpoint = f"http://127.0.0.1:{base + 3}"
    quick = botocore.config.Config(connect_timeout=1, read_timeout=3, retries={"total_max_attempts": 1})
    client = boto3.client("s3", endpoint_url=endpoint, config=quick)

    def ready() -> bool:
        with contextlib.suppress(Exception):
            client.create_bucket(Bucket="jetloop")
        with contextlib.suppress(Exception):
            client.put_object(Bucket="jetloop", Key="ready", Body=b"ready")
            return True
        return False

    try:
        wait_for(ready, 40, f"SeaweedFS taking an object ({folder / 'log'})")
        yield S3(client, endpoint, "jetloop")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        patch.undo()
