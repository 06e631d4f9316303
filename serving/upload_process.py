"""`python -m serving.upload_process FILE`: one attempt to bring one file away; settings come as JSON on stdin.

Exit code 0: it is there, every byte of it. 1: try again later. 2 (REFUSED): another file of that name is there. The
last line on stderr says why. Who starts it again is upload.py.
"""

import fcntl
import os
import sys
from pathlib import Path
from typing import IO

import msgspec

from serving import files
from serving.config import UploadSettings
from serving.errors import JetloopError, OperatorError, RejectedError

REFUSED = 2
_LOWEST_PRIORITY = 19


def upload(path: Path, settings: UploadSettings) -> None:
    """Brings a file to `settings.url`/<its name>, going on where an earlier attempt broke off.

    Raises:
        OperatorError: the network, the server, or what is missing here; try again later.
        RejectedError: another file of that name is there.
    """
    try:
        with path.open("rb") as file:
            _alone(file, path)
            digest = files.sha256_of(path)
            if settings.url.startswith("s3://"):
                from serving import upload_s3

                upload_s3.upload(file, path.name, digest, settings)
            else:
                from serving import upload_http

                upload_http.upload(file, path.name, digest, settings)
    except OSError as problem:
        raise OperatorError(f"{path}: {problem.strerror or problem}") from None


def _alone(file: IO[bytes], path: Path) -> None:
    """A daemon that was killed leaves its last attempt running; two at a time would only disturb each other."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OperatorError(f"{path.name} is being uploaded by an earlier process") from None


def main() -> int:
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)
    try:
        upload(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=UploadSettings))
    except RejectedError as problem:
        print(problem, file=sys.stderr)
        return REFUSED
    except JetloopError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
