"""The keys that sign releases: ed25519, for each TUF role one or several, as PEM files of mode 0600.

    <folder>/offline/root.pem, targets.pem              say which keys count; kept in a safe, needed about once a year
    <folder>/online/releases.pem, snapshot.pem, timestamp.pem   what the release service signs with

A second key of a role in the same folder is `<role>-<start of its id>.pem`; one that was replaced ends in `.retired`.
Files may be encrypted: JETLOOP_ONLINE_PASSPHRASE and JETLOOP_OFFLINE_PASSPHRASE, or a question at the terminal.

Whoever takes the online keys can release until the offline keys replace them; whoever takes the offline keys owns
the fleet.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import click
from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported without __all__

from serving.errors import OperatorError
from serving.files import sync_folder

OFFLINE = ("root", "targets")
ONLINE = ("releases", "snapshot", "timestamp")
ROLES = OFFLINE + ONLINE

Ask = Callable[[Path], bytes]


class Keys:
    """Signers by role. A service holds the online ones alone; making a repository takes all of them.

    Args:
        signers: role -> its signers, in any number.
        files: key id -> the file it came from; empty for keys that were made in memory.
    """

    def __init__(self, signers: Mapping[str, Sequence[CryptoSigner]], files: Mapping[str, Path] | None = None) -> None:
        self._signers = {role: list(some) for role, some in signers.items() if some}
        self.files = dict(files or {})

    def __contains__(self, role: str) -> bool:
        return role in self._signers

    def signers(self, role: str) -> list[CryptoSigner]:
        """The signers of a role.

        Raises:
            OperatorError: none of its keys is on this machine.
        """
        if role not in self._signers:
            raise OperatorError(f"the key of the role `{role}` is not here: bring {role}.pem back into the key folder")
        return list(self._signers[role])

    def all(self) -> dict[str, CryptoSigner]:
        """Key id -> signer, over all roles."""
        return {signer.public_key.keyid: signer for some in self._signers.values() for signer in some}

    def __or__(self, other: "Keys") -> "Keys":
        """The keys of both."""
        merged = {role: [*self._signers.get(role, []), *other._signers.get(role, [])] for role in ROLES}
        distinct = {role: list({s.public_key.keyid: s for s in some}.values()) for role, some in merged.items()}
        return Keys(distinct, self.files | other.files)

    @classmethod
    def generate(cls, counts: Mapping[str, int] | None = None) -> "Keys":
        """New keys for all roles, in memory only; one for each role, or as many as `counts` says."""
        return cls({role: [new_signer() for _ in range((counts or {}).get(role, 1))] for role in ROLES})

    def save(self, folder: Path, offline: Sequence[Path] = (), passphrase: Ask | None = None) -> None:
        """Writes the keys, readable by this user alone.

        Args:
            folder: gets `online/`, and `offline/` unless that is given.
            offline: folders for the offline keys, such as one stick a person: they are dealt out in turn.
            passphrase: asked for each file; empty bytes, or no function: the file is not encrypted.

        Raises:
            OperatorError: a key is already there; keys are never overwritten.
        """
        for role, some in self._signers.items():
            places = [folder / "online"] if role in ONLINE else list(offline or [folder / "offline"])
            for number, signer in enumerate(some):
                place = places[number % len(places)]
                path = place / f"{role}.pem"
                if number >= len(places):
                    path = place / f"{role}-{signer.public_key.keyid[:8]}.pem"
                _save(signer, path, passphrase)

    @classmethod
    def load(cls, folder: Path, roles: Iterable[str] = ONLINE, passphrase: Ask | None = None) -> "Keys":
        """Reads the keys of `roles` from a folder that `save` wrote.

        Raises:
            OperatorError: a key is missing, unreadable, readable by other users, or the passphrase is wrong.
        """
        keys = cls({})
        for role in roles:
            place = folder / ("offline" if role in OFFLINE else "online")
            keys |= _in_folder(place, role, passphrase or known_passphrase, required=True)
        return keys

    @classmethod
    def load_offline(cls, folders: Iterable[Path], passphrase: Ask | None = None) -> "Keys":
        """Reads all offline keys that lie in some folders, each of one person.

        Raises:
            OperatorError: a folder holds none, or as `load`.
        """
        keys = cls({})
        for folder in folders:
            found = cls({})
            for role in OFFLINE:
                found |= _in_folder(folder, role, passphrase or known_passphrase, required=False)
            if not found.all():
                raise OperatorError(f"{folder} holds no root*.pem or targets*.pem: name the folder with the keys")
            keys |= found
        return keys

    def retire(self, keyid: str) -> Path | None:
        """Takes a key that was replaced out of use; its new name, or None when its file is not here."""
        path = self.files.get(keyid)
        if path is None:
            return None
        retired = path.with_name(f"{path.stem}-{keyid[:8]}.retired")
        path.rename(retired)
        sync_folder(path.parent)
        return retired


def new_signer() -> CryptoSigner:
    """A new ed25519 key, in memory only."""
    return CryptoSigner.generate_ed25519()


def save_beside(signer: CryptoSigner, role: str, folder: Path, passphrase: Ask | None = None) -> Path:
    """Writes a further key of a role into a folder; gives its file.

    Raises:
        OperatorError: that file is there already.
    """
    path = folder / f"{role}-{signer.public_key.keyid[:8]}.pem"
    _save(signer, path, passphrase)
    return path


def known_passphrase(path: Path) -> bytes:
    """The passphrase of a key file: from the environment, else from the person at the terminal.

    Raises:
        OperatorError: neither has it.
    """
    given = environment_passphrase(path)
    if given:
        return given
    if sys.stdin.isatty():
        return str(click.prompt(f"passphrase of {path}", hide_input=True, err=True)).encode()
    raise OperatorError(f"{path} is encrypted: set {_variable(path)}")


def environment_passphrase(path: Path) -> bytes:
    """What the environment says for a key file; empty: nothing."""
    return os.environ.get(_variable(path), "").encode()


def write_secret(path: Path, content: bytes) -> None:
    """Writes a new file that only this user can read.

    Raises:
        OperatorError: the file exists already.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OperatorError(f"{path} exists already and is not overwritten: choose another folder") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _variable(path: Path) -> str:
    online = path.name.split(".")[0].split("-")[0] in ONLINE
    return "JETLOOP_ONLINE_PASSPHRASE" if online else "JETLOOP_OFFLINE_PASSPHRASE"


def _save(signer: CryptoSigner, path: Path, passphrase: Ask | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = signer.private_bytes
    secret = (passphrase or environment_passphrase)(path)
    if secret:
        content = serialization.load_pem_private_key(content, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(secret),
        )
    write_secret(path, content)


def _in_folder(folder: Path, role: str, passphrase: Ask, required: bool) -> Keys:
    paths = [path for path in (folder / f"{role}.pem", *sorted(folder.glob(f"{role}-*.pem"))) if path.exists()]
    if required and not paths:
        raise OperatorError(
            f"there is no key {folder / role}.pem: bring it back, or make a folder with `jetloop release init`"
        )
    signers = [_read(path, passphrase) for path in paths]
    return Keys({role: signers}, {s.public_key.keyid: path for s, path in zip(signers, paths, strict=True)})


def _read(path: Path, passphrase: Ask) -> CryptoSigner:
    try:
        if path.stat().st_mode & 0o077:
            raise OperatorError(f"{path} can be read by other users: `chmod 600 {path}`")
        content = path.read_bytes()
        secret = passphrase(path) if b"ENCRYPTED" in content else None
        return CryptoSigner(serialization.load_pem_private_key(content, secret))
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be used as a key ({problem}): restore it from your copy") from None
