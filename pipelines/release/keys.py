"""The keys that sign releases: ed25519, one for each TUF role, as PEM files of mode 0600.

    <folder>/offline/root.pem, targets.pem              say which keys count; kept in a safe, needed about once a year
    <folder>/online/releases.pem, snapshot.pem, timestamp.pem   what the release service signs with

Whoever takes the online keys can release until the offline keys replace them; whoever takes the offline keys owns
the fleet.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported without __all__

from serving.errors import OperatorError

OFFLINE = ("root", "targets")
ONLINE = ("releases", "snapshot", "timestamp")


class Keys:
    """Signers by role. A service holds the online ones alone; making a repository takes all of them."""

    def __init__(self, signers: Mapping[str, CryptoSigner]) -> None:
        self._signers = dict(signers)

    def __contains__(self, role: str) -> bool:
        return role in self._signers

    def signer(self, role: str) -> CryptoSigner:
        """The signer of a role.

        Raises:
            OperatorError: its key is not on this machine.
        """
        if role not in self._signers:
            raise OperatorError(f"the key of the role `{role}` is not here: bring {role}.pem back into the key folder")
        return self._signers[role]

    @classmethod
    def generate(cls) -> "Keys":
        """New keys for all roles, in memory only."""
        return cls({role: CryptoSigner.generate_ed25519() for role in OFFLINE + ONLINE})

    def save(self, folder: Path) -> None:
        """Writes each key as `offline/<role>.pem` or `online/<role>.pem`, readable by this user alone.

        Raises:
            OperatorError: a key is already there; keys are never overwritten.
        """
        for role, signer in self._signers.items():
            path = _path(folder, role)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_secret(path, signer.private_bytes)

    @classmethod
    def load(cls, folder: Path, roles: Iterable[str] = ONLINE) -> "Keys":
        """Reads the keys of `roles` from a folder that `save` wrote.

        Raises:
            OperatorError: a key is missing, unreadable, or readable by other users.
        """
        return cls({role: _read(_path(folder, role)) for role in roles})


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


def _path(folder: Path, role: str) -> Path:
    return folder / ("offline" if role in OFFLINE else "online") / f"{role}.pem"


def _read(path: Path) -> CryptoSigner:
    try:
        if path.stat().st_mode & 0o077:
            raise OperatorError(f"{path} can be read by other users: `chmod 600 {path}`")
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except FileNotFoundError:
        raise OperatorError(
            f"there is no key {path}: bring it back, or make a folder with `jetloop release init`"
        ) from None
    except (OSError, ValueError) as problem:
        raise OperatorError(f"{path} cannot be used as a key ({problem}): restore it from your copy") from None
