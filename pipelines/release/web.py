"""The release service's HTTP: the signed repository as static files, the webhook, what was released.

Nothing here is trusted by robots but what is signed, so plain HTTP is enough for them; keys are in no served folder.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from pipelines.release import metrics, webhook
from serving.errors import JetloopError, RejectedError

log = logging.getLogger(__name__)

MAX_WEBHOOK_BYTES = 64 * 1024
_MUTABLE = ("timestamp.json", "root.json")  # every other name begins with a version or a digest


async def _body(request: Request) -> bytes:
    """The body, as long as it is of a size that MLflow sends: anybody may call, before any signature is checked."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_WEBHOOK_BYTES:
            raise RejectedError(f"more than {MAX_WEBHOOK_BYTES} bytes")
    return body


class SignedFiles(StaticFiles):
    """Static files (with ranges and ETags) that caches may keep for ever, except the two that change in place."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        mutable = Path(full_path).name in _MUTABLE
        response.headers["Cache-Control"] = "no-cache" if mutable else "public, max-age=31536000, immutable"
        return response


def create_app(
    folder: Path,
    told: Callable[[webhook.Delivery], None],
    secret: str | None,
    model: str,
    releases: Callable[[], Iterable[dict[str, Any]]],
    health: Callable[[], dict[str, Any]],
    more: Sequence[BaseRoute] = (),
) -> Starlette:
    """The ASGI application.

    Args:
        folder: of the repository; its `metadata` and `targets` are served.
        told: called in a thread when MLflow says that an alias was set.
        secret: shared with MLflow; None serves no webhook.
        model: registered model whose aliases count.
        releases: newest first, for `/api/releases`.
        health: for `/healthz`; `ok` decides the status code.
        more: routes of other parts.
    """

    async def on_webhook(request: Request) -> Response:
        assert secret is not None
        try:
            body = await _body(request)
            webhook.verify(secret, request.headers, body, time.time())
        except RejectedError as problem:
            log.warning("webhook from %s refused: %s", request.client.host if request.client else "?", problem)
            return JSONResponse({"error": str(problem)}, status_code=401)
        delivery = webhook.delivery_of(request.headers, body, model)
        if delivery:
            await run_in_threadpool(told, delivery)
        return Response(status_code=204)

    async def list_releases(_: Request) -> Response:
        listed = await run_in_threadpool(lambda: list(releases()))
        return Response(msgspec.json.encode(listed), media_type="application/json")

    async def healthz(_: Request) -> Response:
        state = health()
        return JSONResponse(state, status_code=200 if state["ok"] else 503)

    async def show_metrics(_: Request) -> Response:
        page = await run_in_threadpool(lambda: metrics.metrics(releases(), health()["ok"]))
        return Response(page, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def failed(_: Request, problem: Exception) -> Response:
        log.error("%s", problem)
        return JSONResponse({"error": str(problem)}, status_code=503)

    routes: list[BaseRoute] = [
        *more,
        Route("/api/releases", list_releases),
        Route("/healthz", healthz),
        Route("/metrics", show_metrics),
        Mount("/metadata", SignedFiles(directory=folder / "metadata")),
        Mount("/targets", SignedFiles(directory=folder / "targets")),
    ]
    if secret is not None:
        routes.append(Route("/webhooks/mlflow", on_webhook, methods=["POST"]))
    return Starlette(routes=routes, exception_handlers={JetloopError: failed})
