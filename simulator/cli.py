"""`jetloop simulate`: sessions and pictures out of the arena, networks that drive in it, fleets that only speak."""

import os
import threading
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from serving.errors import OperatorError
from simulator.arena import Arena
from simulator.fleet_command import fleet
from simulator.sessions import SAFETY_DISTANCES_M, make_session
from simulator.settings import FIRST_JUDGING_SEED
from simulator.topview import draw

_DISTANCE = click.FloatRange(*SAFETY_DISTANCES_M)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Makes labelled sessions in the arena, and lets networks drive in it.

    How a network drives through a whole suite of rooms is a stage of the pipeline: `dvc repro simulate`.
    """


group.add_command(fleet)


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@group.command(context_settings={"show_default": True})
@click.option("--out", type=_FOLDER, default="data/sessions", help="Folder for the zips; made if it is not there.")
@click.option("--sessions", "count", type=click.IntRange(1, 1000), default=4, help="How many, each a room of its own.")
@click.option("--images", type=click.IntRange(2, 5000), default=120, help="Per session; half of them blocked.")
@click.option(
    "--seed", type=click.IntRange(0), default=1, help="Of the first session; the next take those that follow."
)
@click.option("--safety-distance", type=_DISTANCE, default=0.35, help="Metres ahead of the robot: nearer is blocked.")
@click.option("--source", default="arena", help="Pretended person or place; also begins the names.")
@click.option(
    "--site",
    type=click.IntRange(0),
    help="Seed of one lab: its rooms share floor, walls, light and camera. None: no two do.",
)
@click.option("--quality", type=click.IntRange(1, 95), default=85, help="Of the JPEGs.")
@click.option("--force", is_flag=True, help="Replace sessions that are there already.")
def sessions(
    out: Path,
    count: int,
    images: int,
    seed: int,
    safety_distance: float,
    source: str,
    site: int | None,
    quality: int,
    force: bool,
) -> None:
    """Write labelled sessions: OUT/SOURCE-SEED.zip, ready for the pipeline.

    Each holds blocked/*.jpg, free/*.jpg and session.json. The same options give the same bytes.

    \b
    Example: jetloop simulate sessions --out data/sessions --sessions 4 --images 120 --seed 1
    """
    if seed + count > FIRST_JUDGING_SEED:
        raise OperatorError(
            f"rooms from seed {FIRST_JUDGING_SEED} on are kept for judging networks; take a lower --seed"
        )
    _make_folder(out)
    names = {number: f"{source}-{number}" for number in range(seed, seed + count)}
    there = [f"{name}.zip" for name in names.values() if (out / f"{name}.zip").exists()]
    if there and not force:
        raise OperatorError(f"{out} already holds {', '.join(there)}; give --force to replace, or another --seed")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("sessions", total=count * images)
        for number, name in names.items():
            progress.update(bar, description=name)
            make_session(
                out / f"{name}.zip",
                session_id=name,
                source=source,
                seed=number,
                images=images,
                safety_distance_m=safety_distance,
                quality=quality,
                site=site,
                progress=lambda _: progress.advance(bar),
            )
    last = f" to {source}-{seed + count - 1}" if count > 1 else ""
    click.echo(f"{count} sessions of {images} images in {out}: {source}-{seed}{last}")


@group.command(context_settings={"show_default": True})
@click.option("--seed", type=click.IntRange(0), default=1, help="Of the arena.")
@click.option("--out", type=_FILE, default="build/frame.png", help="PNG to write.")
@click.option("--safety-distance", type=_DISTANCE, default=0.35, help="Metres ahead of the robot: nearer is blocked.")
def frame(seed: int, out: Path, safety_distance: float) -> None:
    """Write one PNG: what the robot sees at its start, and beside it the room from above.

    \b
    Example: jetloop simulate frame --seed 3 --out build/frame.png
    """
    from PIL import Image

    arena = Arena(seed)
    label, side = arena.label(safety_distance), 448
    picture = Image.new("RGB", (2 * side, side))
    picture.paste(Image.fromarray(arena.render()).resize((side, side)))
    picture.paste(draw(arena.room, arena.pose, label, safety_distance, side), (side, 0))
    _make_folder(out.parent)
    try:
        picture.save(out, "PNG")
    except OSError as problem:
        raise OperatorError(f"cannot write {out}: {problem.strerror}; choose a file you may write with --out") from None
    click.echo(f"{out}: arena {seed}, {label}, {arena.clearance_m():.2f} m to the first thing ahead")


@group.command(context_settings={"show_default": True})
@click.option(
    "--model", type=_FILE, default="build/export/model.onnx", help="ONNX file; export.json beside it is read."
)
@click.option("--seed", type=click.IntRange(0), default=FIRST_JUDGING_SEED, help="Of the arena.")
@click.option("--port", type=click.IntRange(0, 65535), default=8600, help="On loopback; 0 takes a free one.")
@click.option("--open", "in_browser", is_flag=True, help="Open the page in the browser.")
def watch(model: Path, seed: int, port: int, in_browser: bool) -> None:
    """Serve a page that shows a network drive: what the robot sees and says, and the room from above. Ctrl-C ends it.

    \b
    Example: jetloop simulate watch --model build/export/model.onnx --seed 9000003 --open
    """
    from simulator.drive import Network
    from simulator.settings import SuiteSettings
    from simulator.suite import start_arena
    from simulator.watch import Screen, serve

    screen = Screen(start_arena(seed, 0), Network(model), SuiteSettings())
    try:
        with serve(screen, f"{model.name} in room {seed}", port) as server:
            address = f"http://127.0.0.1:{server.server_address[1]}/"
            click.echo(f"{address} shows {model} in room {seed}; Ctrl-C ends it")
            if in_browser:
                click.launch(address)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            screen.wait()
    finally:
        screen.close()


@group.command(context_settings={"show_default": True})
@click.argument("models", type=_FILE, nargs=-1, required=True, metavar="MODEL_A MODEL_B ...")
@click.option("--drives", type=click.IntRange(2, 500), default=30, help="At a wall or a thing, for each network.")
@click.option("--out", type=_FILE, default="build/distances.png", help="PNG to write.")
def distances(models: tuple[Path, ...], drives: int, out: Path) -> None:
    """Drive networks at the same walls and things, and draw at what distance each turns away.

    export.json beside each ONNX file says from which probability it turns. Networks trained on images that were sorted
    at 0.41 m and at 0.10 m (`jetloop simulate sessions --safety-distance`) show what that choice does.

    \b
    Example: jetloop simulate distances far/model.onnx near/model.onnx
    """
    from simulator.distances import Approach, compare, draw, told
    from simulator.drive import Network
    from simulator.settings import LoopSettings

    networks = [Network(model) for model in models]
    found: list[list[Approach]] = [[] for _ in models]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("drives", total=drives * len(models))
        for number, approach in compare(networks, drives, LoopSettings()):
            found[number].append(approach)
            progress.advance(bar)
    for model, approaches in zip(models, found, strict=True):
        click.echo(told(str(model), approaches))
    draw([str(model) for model in models], found, out)
    click.echo(out)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "not writable")
    except OSError as problem:
        raise OperatorError(f"cannot write in {folder}: {problem.strerror}; choose another folder with --out") from None
