"""`jetloop-robot status | stop | resume | rollback | label | capture`: a person's word to the running daemon."""

import json
from pathlib import Path
from typing import Any, Callable, List, Literal, Tuple, TypeVar

import click

from serving.config import load
from serving.contracts.sessions import LABELS
from serving.errors import OperatorError
from serving.local.endpoint import ask
from serving.local.requests import (
    CaptureBegin,
    CaptureDiscard,
    CaptureFinish,
    GetStatus,
    Label,
    Request,
    Resume,
    Rollback,
    Stop,
    to_plain,
)
from serving.status import StatusFile, read_status

F = TypeVar("F", bound=Callable[..., Any])


def _options(function: F) -> F:
    path = click.Path(path_type=Path, dir_okay=False)
    text = "The settings of this robot."
    with_json = click.option("--json", "as_json", is_flag=True, help="For machines.")(function)
    return click.option("--config", "config_path", type=path, default="robot.toml", show_default=True, help=text)(
        with_json
    )


_text_option = click.option("--text", default="", help="Why, for the log and the event.")


@click.command()
@_options
def status(config_path: Path, as_json: bool) -> None:
    """Tell what the robot on this machine does: mode, release, outbox, images.

    Asks the daemon over its local socket; when it does not run, says what it wrote last into robot.state_dir. Asks
    nothing over the network.

    Example: jetloop-robot status --config robot.toml
    """
    state_dir = Path(load(config_path).robot.state_dir)
    runs = True
    try:
        answer = ask(state_dir, GetStatus())
        if answer.status is None:
            raise OperatorError(answer.said)
        found = answer.status
    except ConnectionError:
        found, runs = read_status(state_dir)
    if as_json:
        click.echo(json.dumps({"runs": runs, "said_s_ago": round(found.age_s(), 1), **to_plain(found)}, indent=2))
        return
    for name, value in _rows(found, runs):
        click.echo(f"{name:<11} {value}")


@click.command()
@_options
@_text_option
@click.option("--planned", is_flag=True, help="The engine is not to blame: its probation goes on.")
def stop(config_path: Path, as_json: bool, text: str, planned: bool) -> None:
    """Motors to zero, until `resume`: also after a restart or a reboot.

    The engine goes on watching, updates and events go on. Without --planned, stopping a robot that drives is an
    intervention: while its engine is on probation, the one before it comes back.

    Example: jetloop-robot stop --text "drove towards the stairs"
    """
    _order(config_path, Stop(text=text, planned=planned), as_json)


@click.command()
@_options
def resume(config_path: Path, as_json: bool) -> None:
    """Drive again after `stop`.

    Example: jetloop-robot resume
    """
    _order(config_path, Resume(), as_json)


@click.command()
@_options
@_text_option
def rollback(config_path: Path, as_json: bool, text: str) -> None:
    """Go back to the engine before, on probation or not; the one that drives now is not taken again.

    Example: jetloop-robot rollback --text "turns away from open doors"
    """
    _order(config_path, Rollback(text=text), as_json)


@click.command()
@click.argument("label", type=click.Choice(LABELS))
@_options
def label(config_path: Path, as_json: bool, label: Literal["blocked", "free"]) -> None:
    """Keep the next frame as an image of this class, in the session under way or a new one.

    Example: jetloop-robot label blocked
    """
    _order(config_path, Label(label=label), as_json)


@click.group()
def capture() -> None:
    """Sessions of labelled images: begin, finish, discard.

    \b
    jetloop-robot capture begin --place kitchen --safety-distance-cm 20
    jetloop-robot label blocked          as often as you like; or the buttons of the page, or its keys b and f
    jetloop-robot capture finish         becomes a zip, and is uploaded
    """


@capture.command()
@_options
@click.option("--place", default="", help="Where; default: capture.place in robot.toml.")
@click.option("--safety-distance-cm", type=click.FloatRange(0, 1000), default=0.0, help="Nearer than this is blocked.")
def begin(config_path: Path, as_json: bool, place: str, safety_distance_cm: float) -> None:
    """Begin a session; the first label does it too, with what robot.toml says.

    Example: jetloop-robot capture begin --place kitchen
    """
    _order(config_path, CaptureBegin(place=place, safety_distance_cm=safety_distance_cm), as_json)


@capture.command()
@_options
def finish(config_path: Path, as_json: bool) -> None:
    """Close the session into captures/<id>.zip, and upload it as [upload] in robot.toml says.

    The zip stays on the robot until it is confirmed where it goes.

    Example: jetloop-robot capture finish
    """
    _order(config_path, CaptureFinish(), as_json)


@capture.command()
@_options
@click.confirmation_option(prompt="Delete the images of the session under way?")
def discard(config_path: Path, as_json: bool) -> None:
    """Delete the session under way.

    Example: jetloop-robot capture discard --yes
    """
    _order(config_path, CaptureDiscard(), as_json)


def _order(config_path: Path, request: Request, as_json: bool) -> None:
    """Asks the daemon, and says what came of it.

    Raises:
        OperatorError: it does not run, or refuses.
    """
    state_dir = Path(load(config_path).robot.state_dir)
    try:
        answer = ask(state_dir, request)
    except ConnectionError as problem:
        raise OperatorError(f"{problem}; `jetloop-robot run` starts it") from None
    if not answer.ok:
        raise OperatorError(answer.said)
    plain = {"ok": True, "said": answer.said, "status": to_plain(answer.status) if answer.status else None}
    click.echo(json.dumps(plain, indent=2) if as_json else answer.said)


def _rows(found: StatusFile, runs: bool) -> List[Tuple[str, str]]:
    state, capture = found.state, found.capture
    seen = found.p_blocked is not None and found.latency_ms is not None
    rows = [
        ("robot", f"{state.site}/{state.robot}, ring {state.ring}"),
        ("daemon", f"runs, process {found.pid}" if runs else "does not run"),
        ("said", f"{found.age_s():.0f} s ago"),
        ("mode", state.mode + (f" ({state.reason})" if state.reason else "")),
        ("decided", f"{found.action}, blocked {found.p_blocked:.0%}, {found.latency_ms:.1f} ms" if seen else "nothing"),
        ("release", state.release or "none"),
        ("engine", state.engine or "none"),
        ("session", state.session),
        ("up", f"{state.uptime_s:.0f} s"),
        ("next event", str(found.next_sequence)),
        ("outbox", f"{state.outbox_depth} waiting"),
    ]
    if capture is not None and (capture.session or capture.waiting or capture.upload):
        under_way = f"{capture.session}: {capture.blocked} blocked, {capture.free} free" if capture.session else "none"
        rows.append(("images", f"{under_way}; {len(capture.waiting)} sessions to upload, {capture.used_mb:.1f} MB"))
        if capture.upload:
            rows.append(("upload", capture.upload))
    return rows + [("trouble", text) for text in found.troubles]
