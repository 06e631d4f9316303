"""`jetloop release init` and `jetloop release keys`: making the signing keys, and changing which of them count."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.errors import OperatorError

if TYPE_CHECKING:
    from pipelines.release.keys import Keys
    from pipelines.release.repository import Repository

F = TypeVar("F", bound=Callable[..., Any])

_folder_type = click.Path(path_type=Path, file_okay=False)
_folder = click.option(
    "--folder",
    type=_folder_type,
    default="build/release",
    show_default=True,
    help="Release folder: keys, repository, history.",
)
_offline = click.option(
    "--offline",
    type=_folder_type,
    multiple=True,
    help="Folder with offline keys, such as a stick; once for each person.  [default: FOLDER/keys/offline]",
)
_count = click.IntRange(1, 16)
_WARN_DAYS = 30  # as the service does in its log


@click.command()
@_folder
@click.option("--root-keys", type=_count, default=1, show_default=True, help="How many root keys to make.")
@click.option("--root-threshold", type=_count, default=1, show_default=True, help="How many of them must sign.")
@click.option("--targets-keys", type=_count, default=1, show_default=True, help="The same for `targets`.")
@click.option("--targets-threshold", type=_count, default=1, show_default=True)
@_offline
@click.option(
    "--passphrase", is_flag=True, help="Ask for a passphrase for each --offline folder, and encrypt its keys."
)
def init(
    folder: Path,
    root_keys: int,
    root_threshold: int,
    targets_keys: int,
    targets_threshold: int,
    offline: tuple[Path, ...],
    passphrase: bool,
) -> None:
    """Makes the signing keys and an empty signed repository in FOLDER. Overwrites nothing.

    \b
    FOLDER/metadata/root.json   copy it to every robot: it is what they trust
    FOLDER/keys/offline         root and targets: keep them elsewhere, needed about once a year
    FOLDER/keys/online          releases, snapshot, timestamp: the service signs with them

    JETLOOP_OFFLINE_PASSPHRASE and JETLOOP_ONLINE_PASSPHRASE, where set, encrypt the key files.

    \b
    Example, three people of whom any two decide:
    jetloop release init --folder /srv/jetloop --root-keys 3 --root-threshold 2 \\
        --offline /media/anna --offline /media/ben --offline /media/carla --passphrase
    """
    from pipelines.release.keys import Keys
    from pipelines.release.repository import Repository

    for role, keys_of, threshold in (("root", root_keys, root_threshold), ("targets", targets_keys, targets_threshold)):
        if threshold > keys_of:
            raise OperatorError(f"--{role}-threshold {threshold} asks for more than the {keys_of} keys of {role}")
    if (folder / "metadata").exists() or (folder / "keys").exists():
        raise OperatorError(
            f"{folder} holds keys or a repository already: nothing is overwritten, choose another --folder"
        )
    keys = Keys.generate({"root": root_keys, "targets": targets_keys})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        keys.save(folder / "keys", offline, _Asked() if passphrase else None)
        Repository.create(folder, keys, {"root": root_threshold, "targets": targets_threshold})
    except OSError as problem:
        raise OperatorError(f"{folder} cannot be written ({problem.strerror}): choose another --folder") from None
    places = ", ".join(str(place) for place in offline) or f"{folder}/keys/offline"
    click.echo(f"made    {folder}/metadata   an empty repository")
    click.echo(f"robots  copy {folder}/metadata/root.json to each: it is what they trust")
    click.echo(f"safe    move {places} to a place that is not on this machine, and keep a second copy")


@click.group("keys")
def group() -> None:
    """Which keys count: list them, replace them, revoke one, sign root and targets anew.

    All but `list` want the release service stopped, for they hold its lock, and the offline keys plugged in. Start it
    again afterwards; robots follow by themselves at their next look.
    """


@group.command("list")
@_folder
def list_keys(folder: Path) -> None:
    """Shows each role's keys, how many must sign, and until when its metadata is good. Reads FOLDER/metadata alone.

    Example: jetloop release keys list --folder /srv/jetloop
    """
    from pipelines.release import repository_state

    state = repository_state.load(folder)
    click.echo(f"{'role':<10} {'version':>7}  must sign   signed until, and the ids of its keys")
    for role, end in state.expires().items():
        days = (end - repository_state.now()).days
        trusted = state.role(role)
        must = f"{trusted.threshold} of {len(trusted.keyids)}"
        hint = f"   {days} days left: `jetloop release keys renew {role}`"
        late = role in ("root", "targets") and days < _WARN_DAYS
        version = getattr(state, role).signed.version
        click.echo(f"{role:<10} {version:>7}  {must:<10}  {end:%Y-%m-%d %H:%M} UTC{hint if late else ''}")
        for keyid in trusted.keyids:
            click.echo(f"{'':<32}{keyid}")


@group.command()
@click.argument("role", type=click.Choice(["root", "targets", "releases", "snapshot", "timestamp"]))
@_folder
@_offline
def rotate(role: str, folder: Path, offline: tuple[Path, ...]) -> None:
    """Replaces the keys of ROLE that are here by new ones, each in the folder of the old one.

    Root signs new keys of root, targets, snapshot and timestamp; targets signs those of releases. A new offline key is
    written beside the old one; the old file gets the ending .retired: destroy it.

    \b
    Example: jetloop release keys rotate snapshot --folder /srv/jetloop --offline /media/stick
    """
    from pipelines.release.repository_keys import Change

    with _opened(folder, offline) as (repository, offline_keys, online_keys):
        held = (offline_keys | online_keys).all()
        old = [keyid for keyid in repository.state.role(role).keyids if keyid in held]
        if not old:
            raise OperatorError(f"no key of {role} is here to be replaced; a lost one is replaced by `keys revoke`")
        files = (offline_keys | online_keys).files
        new = _NewKeys()
        added = [new.made(role, files[keyid].parent) for keyid in old]
        _replace(repository, {role: Change(old, added)}, new, offline_keys, online_keys)


@group.command()
@click.argument("keyids", metavar="KEYID...", nargs=-1, required=True)
@_folder
@_offline
def revoke(keyids: tuple[str, ...], folder: Path, offline: tuple[Path, ...]) -> None:
    """Takes lost or stolen keys out of all roles and puts new ones in their place, all at once.

    KEYID is a key's id, or its first 8 digits. Of a machine that was broken into, revoke every key it held. The new key
    of an offline role goes into the first --offline folder. What the old keys alone had signed is worth nothing to
    robots from their next look on. The list of releases in FOLDER is signed anew: if a key was stolen, look through
    `jetloop release status` first, and restore FOLDER/metadata from a copy if you find what you do not know.

    \b
    Example: jetloop release keys revoke 1f2e3d4c --folder /srv/jetloop --offline /media/anna --offline /media/ben
    """
    from pipelines.release import repository_keys
    from pipelines.release.keys import OFFLINE
    from pipelines.release.repository_keys import Change

    with _opened(folder, offline) as (repository, offline_keys, online_keys):
        places = offline or (folder / "keys" / "offline",)
        changes, new = {}, _NewKeys()
        for role, removed in repository_keys.found(repository.state, keyids).items():
            place = places[0] if role in OFFLINE else folder / "keys" / "online"
            changes[role] = Change(removed, [new.made(role, place) for _ in removed])
        _replace(repository, changes, new, offline_keys, online_keys)


@group.command()
@click.argument("role", type=click.Choice(["root", "targets"]))
@_folder
@_offline
def renew(role: str, folder: Path, offline: tuple[Path, ...]) -> None:
    """Signs root or targets anew for another year, with the same keys. The service renews the other roles itself.

    Example: jetloop release keys renew root --folder /srv/jetloop --offline /media/stick
    """
    from pipelines.release import repository_keys

    with _opened(folder, offline) as (repository, offline_keys, online_keys):
        repository_keys.renew(repository, role, offline_keys, online_keys)
        click.echo(f"{role} is signed until {repository.expires()[role]:%Y-%m-%d}; start the service again")


@contextlib.contextmanager
def _opened(folder: Path, offline: tuple[Path, ...]) -> "Iterator[tuple[Repository, Keys, Keys]]":
    """The repository under its lock, with the offline and the online keys that are here."""
    from pipelines.release import durable, repository_state
    from pipelines.release.keys import ONLINE, Keys
    from pipelines.release.repository import Repository

    repository_state.load(folder)
    with durable.locked(folder / "lock"):
        present = [role for role in ONLINE if any((folder / "keys" / "online").glob(f"{role}*.pem"))]
        online_keys = Keys.load(folder / "keys", present)
        offline_keys = Keys.load_offline(offline or (folder / "keys" / "offline",))
        try:
            yield Repository.open(folder, Keys({})), offline_keys, online_keys
        except OSError as problem:
            raise OperatorError(f"{folder} or a key folder cannot be written ({problem}): mend that first") from None


class _NewKeys:
    """Keys that were made, and are written once it is sure that the metadata can be signed."""

    def __init__(self) -> None:
        self._made: list[tuple[str, Path, Any]] = []

    def made(self, role: str, place: Path) -> Any:
        from pipelines.release.keys import new_signer

        self._made.append((role, place, new_signer()))
        return self._made[-1][2]

    def save(self) -> None:
        """A folder whose keys are encrypted gets no key that is not."""
        from pipelines.release.keys import environment_passphrase, save_beside

        for role, place, signer in self._made:
            encrypted = any(b"ENCRYPTED" in path.read_bytes() for path in place.glob("*.pem"))
            ask = _Asked() if encrypted and not environment_passphrase(place / f"{role}.pem") else None
            click.echo(f"new key {save_beside(signer, role, place, ask)}")


def _replace(repository: "Repository", changes: Any, new: _NewKeys, offline_keys: "Keys", online_keys: "Keys") -> None:
    """New keys are on the disk first: whatever kills this, the metadata never trusts a key that nobody has."""
    from pipelines.release import repository_keys

    repository_keys.change(repository, changes, offline_keys, online_keys, before_publishing=new.save)
    for role, one in changes.items():
        for keyid in one.removed:
            retired = (offline_keys | online_keys).retire(keyid)
            where = f"{retired}: destroy it, and all copies" if retired else "it is not here: destroy it where it is"
            click.echo(f"revoked {role} {keyid[:8]}…   {where}")
    click.echo("robots follow at their next look; start the service again")


class _Asked:
    """One passphrase for each folder, asked twice when it is first needed; for the offline keys alone."""

    def __init__(self) -> None:
        self._known: dict[Path, bytes] = {}

    def __call__(self, path: Path) -> bytes:
        from pipelines.release.keys import OFFLINE, environment_passphrase

        if path.name.split(".")[0].split("-")[0] not in OFFLINE:
            return environment_passphrase(path)
        if path.parent not in self._known:
            text = f"new passphrase for the keys in {path.parent}"
            answer = click.prompt(text, hide_input=True, confirmation_prompt=True, err=True)
            self._known[path.parent] = str(answer).encode()
        return self._known[path.parent]
