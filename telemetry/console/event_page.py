"""One event's page: what it says, where it comes from, notes, and the training images nearest to a frame."""

from markupsafe import Markup

from serving.errors import JetloopError
from telemetry import origin
from telemetry.console import events_page, html, robot_page
from telemetry.console.access import Who
from telemetry.console.feed import Feed
from telemetry.notes import Notes, subject_of_event

_UPLOAD = (
    '<h2>Nearest training images</h2><div class="card"><p class="note">{}</p>'
    '<form method="post" action="/event/{}/nearest?token={}" enctype="multipart/form-data" class="add-note">'
    '<input type="file" name="frame" accept="image/jpeg,image/png" required aria-label="Frame">'
    "<button>Find</button></form></div>"
)
_NO_FRAME = (
    "Robots send no images, so this event carries none. Give the frame (from the robot's disk, or the camera's "
    "recording), and the images of this model's training that its network finds most alike are shown."
)


async def page(feed: Feed, notes: Notes, who: Who, event_id: str) -> Markup:
    """All of the page; where something is not known, why."""
    picture = await feed.picture()
    try:
        row = await feed.ask(lambda store: store.event(event_id))
        written = await feed.ask(lambda _: notes.of(subject_of_event(row["id"])))
    except JetloopError as problem:
        return Markup("<h1>Event</h1>") + html.problem(str(problem))
    head = Markup('<div class="head"><h1 class="mono">{}</h1>{}</div>').format(row["id"], html.chip(row["type"]))
    parts = [head, Markup('<div class="card">{}</div><h2>Where it comes from</h2>').format(events_page.facts(row))]
    try:
        found = origin.trace(row, picture.releases)
        steps = origin.steps(found, feed.releases_url, feed.mlflow_url)
        parts.append(Markup('<div class="card">{}</div>').format(events_page.origin(steps)))
        parts.append(Markup(_UPLOAD).format(_NO_FRAME, row["id"], who.token))
    except JetloopError as problem:
        parts.append(html.problem(picture.releases_error or str(problem)))
    form = (subject_of_event(row["id"]), f"/event/{row['id']}", who.token)
    parts += [Markup("<h2>Notes</h2>"), robot_page.notes(written, *form, operates=who.operates)]
    return html.join(parts)


def nearest(images: list[tuple[str, float, bytes, str]], indexed: int, trained: int) -> Markup:
    """The images found: (name, likeness 0..1, JPEG, command that gets it), the most alike first."""
    import base64

    form = (
        '<figure class="card"><img alt="" src="data:image/jpeg;base64,{}">'
        "<figcaption>{} <b>{:.3f}</b>{}</figcaption></figure>"
    )
    shown = (
        Markup(form).format(
            base64.b64encode(jpeg).decode(),
            html.mono(name),
            likeness,
            Markup('<code class="get">{}</code>').format(get),
        )
        for name, likeness, jpeg, get in images
    )
    text = f"Cosine of the network's last features, of {indexed:,} indexed of {trained:,} training images."
    return html.note(text) + Markup('<div class="nearest">{}</div>').format(html.join(shown))
