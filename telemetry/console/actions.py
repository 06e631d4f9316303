"""What people may do in the console: write a note, ask for the training images nearest to a frame."""

import asyncio
import hmac

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from serving.errors import JetloopError, RejectedError
from telemetry import origin
from telemetry.console import event_page, html
from telemetry.console.access import Limiter, who
from telemetry.console.feed import Feed
from telemetry.console.login import document, form_of
from telemetry.notes import Notes

MAX_FRAME_BYTES = 4 << 20
NOTES, NOTES_S = 30, 60.0  # of one user
NEAREST = 8  # images shown


def add_actions(app: FastAPI, feed: Feed, notes: Notes) -> None:
    """Routes that write, or that compute for a person."""
    often = Limiter(NOTES, NOTES_S)

    @app.post("/notes")
    async def add_note(request: Request) -> Response:
        asked = who(request.scope)
        form = await form_of(request, asked.token)
        if not asked.operates:
            return document("jetloop", html.problem("Only an operator may write notes."), 403)
        if often.wait_s(asked.name):
            return document("jetloop", html.problem("Too many notes in a minute; wait a little."), 429)
        often.count(asked.name)
        subject = form.get("subject", "")
        if not subject.startswith(("robot/", "event/")) or len(subject) > 300:
            raise RejectedError("this note is about nothing that the console knows")
        await asyncio.to_thread(notes.add, subject, asked.name, form.get("text", ""))
        back = form.get("back", "/")
        return RedirectResponse(back if back.startswith(("/robot/", "/event/")) else "/", 303)

    @app.post("/event/{event_id}/nearest")
    async def nearest(request: Request, event_id: str, token: str = "") -> Response:
        if not hmac.compare_digest(token.encode(), who(request.scope).token.encode()):
            raise RejectedError("this form is too old, or not of this console: go back and reload the page")
        frame = await _frame(request)
        picture = await feed.picture()
        row = await feed.ask(lambda store: store.event(event_id))
        body = Markup('<main class="main"><p><a href="/event/{}">Back to the event</a></p>{}</main>')
        try:
            found = origin.trace(row, picture.releases)
            shown = await asyncio.to_thread(_nearest, found, frame, feed.mlflow_url)
        except JetloopError as problem:
            return document("jetloop", body.format(row["id"], html.problem(str(problem))), 400)
        return document("jetloop", body.format(row["id"], shown))


async def _frame(request: Request) -> bytes:
    """The picture that was sent.

    Raises:
        RejectedError: there is none, or it is too large.
    """
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_FRAME_BYTES:
        raise RejectedError(f"a frame has {MAX_FRAME_BYTES >> 20} MB at most")
    async with request.form(max_files=1, max_fields=4) as form:
        sent = form.get("frame")
        if sent is None or isinstance(sent, str):
            raise RejectedError("no frame was sent")
        return await sent.read()


def _nearest(found: origin.Origin, frame: bytes, mlflow_url: str) -> Markup:
    from telemetry import nearest

    if not mlflow_url:
        raise RejectedError("the index lies in MLflow: start the console with --mlflow")
    lineage = found.passport.lineage
    index, model = nearest.fetch(lineage, mlflow_url)
    images = nearest.find(index, model, nearest.read_frame(frame), NEAREST)
    shown = [
        (one.image, one.likeness, one.thumbnail, nearest.get(one.image, index.sessions, lineage)) for one in images
    ]
    return event_page.nearest(shown, len(index.images), index.trained)
