"""How robots ask what is to be built, and hand engines in: two routes of the release service.

    GET /api/builds                           [{release_id, target, builder}]; only a hint, orders are signed
    PUT /api/builds/<release_id>/<target>     the engine; the report and its signature are in the header

The signature in the header is checked before a byte of the body is read, and no more is taken than it announced.
"""

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from pipelines.params import GateParams
from pipelines.release.builds import Builds, NotTaken
from serving.contracts.builds import (
    BUILDER_HEADER,
    BUILDS_PATH,
    MAX_REPORT_BYTES,
    REPORT_HEADER,
    SIGNATURE_HEADER,
    BuildReport,
    from_header,
)
from serving.files import sync_file

log = logging.getLogger(__name__)

MAX_UPLOAD_S = 900.0  # half a gigabyte over a robot's Wi-Fi


def build_routes(builds: Builds, limits: Callable[[], GateParams], wake: Callable[[], None]) -> list[BaseRoute]:
    """The routes.

    Args:
        limits: the gates in force: parity and latency are judged when an engine is handed in.
        wake: called when one was taken.
    """

    async def listed(_: Request) -> Response:
        found = await run_in_threadpool(builds.listed)
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def put(request: Request) -> Response:
        try:
            raw, report = await run_in_threadpool(_verified, builds, request, limits())
            await _receive(builds, request, raw, report)
        except NotTaken as problem:
            log.warning("a build from %s is not taken: %s", request.client.host if request.client else "?", problem)
            return JSONResponse({"error": str(problem)}, status_code=problem.status)
        except OSError as problem:
            log.error("a build cannot be kept: %s", problem)
            return JSONResponse({"error": f"it cannot be kept: {problem.strerror}"}, status_code=507)
        wake()
        return Response(status_code=204)

    return [
        Route(BUILDS_PATH, listed, methods=["GET"]),
        Route(BUILDS_PATH + "/{release_id}/{target}", put, methods=["PUT"]),
    ]


def _verified(builds: Builds, request: Request, limits: GateParams) -> tuple[bytes, BuildReport]:
    texts = [request.headers.get(name, "") for name in (REPORT_HEADER, SIGNATURE_HEADER)]
    if len(texts[0]) > MAX_REPORT_BYTES * 4 // 3 + 4:
        raise NotTaken(413, f"a report has at most {MAX_REPORT_BYTES} bytes")
    try:
        raw, signature = (from_header(text) for text in texts)
    except ValueError:
        raise NotTaken(401, f"{REPORT_HEADER} or {SIGNATURE_HEADER} is not base64") from None
    report = builds.verify(request.headers.get(BUILDER_HEADER, ""), raw, signature, limits)
    asked = (request.path_params["release_id"], request.path_params["target"])
    if asked != (report.release_id, report.target):
        raise NotTaken(422, f"the report is about {report.target} of {report.release_id}")
    if request.headers.get("content-length", str(report.engine_bytes)) != str(report.engine_bytes):
        raise NotTaken(422, f"the report is about an engine of {report.engine_bytes} bytes")
    return raw, report


async def _receive(builds: Builds, request: Request, raw: bytes, report: BuildReport) -> None:
    """Takes the body into a file of its own, and keeps it when it is what the report says."""
    with tempfile.NamedTemporaryFile(dir=builds.incoming(), delete=False) as file:
        place = Path(file.name)
        try:
            digest, received = hashlib.sha256(), 0
            async with asyncio.timeout(MAX_UPLOAD_S):
                async for part in request.stream():
                    received += len(part)
                    if received > report.engine_bytes:
                        raise NotTaken(413, f"more than the {report.engine_bytes} bytes of the report")
                    digest.update(part)
                    file.write(part)
            if digest.hexdigest() != report.engine_sha256:
                raise NotTaken(422, "the engine is not the one of the report: it came damaged or cut off")
            file.flush()
            await run_in_threadpool(sync_file, place)
            await run_in_threadpool(builds.keep, report, raw, place)
        except (ClientDisconnect, TimeoutError):
            raise NotTaken(408, f"it broke off after {received} of {report.engine_bytes} bytes") from None
        finally:
            place.unlink(missing_ok=True)
