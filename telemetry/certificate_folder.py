"""The folder in which `jetloop broker certs` keeps a fleet's certificates: who has which, and what was revoked.

    ca.pem                           every authority trusted now: for the broker, each robot, each service
    crl.pem                          what was revoked, a list for each of them: for the broker
    broker/certificate.pem, key.pem
    robots/<site>/<robot>/certificate.pem, key.pem
    services/<name>/certificate.pem, key.pem
    authorities/<n>/certificate.pem, key.pem      the newest signs; the keys never leave this machine
    issued.json                      every certificate that was made

What is in a certificate is in certificates.py.
"""

import datetime
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from serving.contracts.names import NAME_PATTERN
from serving.errors import OperatorError
from serving.files import write_atomic
from telemetry.certificates import (
    MAX_COMMON_NAME,
    Pair,
    make_authority,
    make_client,
    make_revocations,
    make_server,
)

BROKER = "broker"
ROLES = ("collector", "bridge", "console", "releases", "monitor", "operator")
_NAME = re.compile(NAME_PATTERN)


class Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One certificate that was made."""

    name: str  # `broker`, `<site>/<robot>`, or a service's
    serial: str  # hexadecimal
    authority: int
    ends: datetime.datetime
    revoked: datetime.datetime | None = None

    def holds(self) -> bool:
        return self.revoked is None and self.ends > _now()


class _Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    schema: int = 1
    trusted: list[int]  # authorities, oldest first
    issued: list[Issued] = []


class CertificateFolder:
    """One fleet's certificates.

    Raises:
        OperatorError: there is no such folder yet, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._book = msgspec.json.decode((folder / "issued.json").read_bytes(), type=_Book)
        except FileNotFoundError:
            raise OperatorError(f"{folder} holds no certificates yet; begin with `jetloop broker certs init`") from None
        except (OSError, ValueError) as problem:
            raise OperatorError(f"{folder / 'issued.json'} cannot be read: {problem}; restore it from a copy") from None

    @classmethod
    def create(cls, folder: Path, days: float) -> "CertificateFolder":
        """Begins a folder with its first authority.

        Raises:
            OperatorError: there is one already, or the folder cannot be written.
        """
        if (folder / "issued.json").exists():
            raise OperatorError(f"{folder} holds an authority already; `jetloop broker certs rotate` makes the next")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(folder / "issued.json", msgspec.json.encode(_Book(trusted=[])))
        except OSError as problem:
            raise OperatorError(f"{folder} cannot be written: {problem.strerror}") from None
        made = cls(folder)
        made.rotate(days)
        return made

    @property
    def issued(self) -> list[Issued]:
        return list(self._book.issued)

    @property
    def trusted(self) -> list[int]:
        return list(self._book.trusted)

    def services(self) -> list[str]:
        """Names of the services that have a certificate which holds."""
        return sorted({one.name for one in self._book.issued if one.holds() and role_of(one.name)})

    def place(self, name: str) -> Path:
        """The folder with a name's certificate.pem and key.pem."""
        if name == BROKER:
            return self.folder / BROKER
        return self.folder / ("robots" if "/" in name else "services") / name

    def issue(self, name: str, days: float, hosts: Sequence[str] = ()) -> Path:
        """Makes a certificate and key in the name's folder; the ones before stay good until they end or are revoked.

        Args:
            name: `broker`, `<site>/<robot>`, or a service: a role, or `<role>-<anything>`.
            days: how long it holds.
            hosts: of the broker: the names and addresses under which clients reach it.

        Returns:
            The folder with certificate.pem and key.pem.

        Raises:
            OperatorError: no such name can be, or the folder cannot be written.
        """
        check_name(name)
        authority = self._authority(self._book.trusted[-1])
        pair = make_server(authority, name, hosts, days) if name == BROKER else make_client(authority, name, days)
        self._write(self.place(name), pair)
        self._enter(name, pair)
        return self.place(name)

    def revoke(self, name: str) -> int:
        """Revokes every certificate of a name that still holds; the broker has to read crl.pem again.

        Raises:
            OperatorError: there is none.
        """
        now = _now()
        hit = [one for one in self._book.issued if one.name == name and one.holds()]
        if not hit:
            raise OperatorError(f"`{name}` has no certificate that holds; `jetloop broker certs list` names them")
        self._save(
            self._book.trusted,
            [msgspec.structs.replace(one, revoked=now) if one in hit else one for one in self._book.issued],
        )
        self._publish()
        return len(hit)

    def rotate(self, days: float) -> int:
        """Makes the next authority, which signs from now on; those before stay trusted until `retire`."""
        number = max(self._book.trusted, default=0) + 1
        self._write(self._place_of(number), make_authority(f"jetloop authority {number} {_now():%Y-%m-%d}", days))
        self._save([*self._book.trusted, number], self._book.issued)
        self._publish()
        return number

    def retire(self, force: bool = False) -> list[str]:
        """Ends the trust in all authorities but the newest.

        Returns:
            The names whose certificates hold no more; empty unless forced.

        Raises:
            OperatorError: somebody has only a certificate of an old authority yet.
        """
        newest = self._book.trusted[-1]
        renewed = {one.name for one in self._book.issued if one.holds() and one.authority == newest}
        behind = sorted({one.name for one in self._book.issued if one.holds()} - renewed)
        if behind and not force:
            raise OperatorError(
                f"{', '.join(behind[:5])}{' …' if len(behind) > 5 else ''}: not renewed since the rotation; issue them "
                "anew and bring them where they belong, or give --force to lock them out"
            )
        self._save([newest], self._book.issued)
        self._publish()
        return behind

    def _publish(self) -> None:
        """Writes ca.pem and crl.pem anew."""
        authorities = {number: self._authority(number) for number in self._book.trusted}
        lists = [make_revocations(authority, self._revoked_by(number)) for number, authority in authorities.items()]
        self._put(self.folder / "crl.pem", b"".join(lists))
        self._put(self.folder / "ca.pem", b"".join(one.certificate_pem for one in authorities.values()))

    def _revoked_by(self, number: int) -> list[tuple[int, datetime.datetime]]:
        mine = [one for one in self._book.issued if one.authority == number]
        return [(int(one.serial, 16), one.revoked) for one in mine if one.revoked is not None]

    def _enter(self, name: str, pair: Pair) -> None:
        entry = Issued(
            name=name,
            serial=f"{pair.certificate.serial_number:x}",
            authority=self._book.trusted[-1],
            ends=pair.certificate.not_valid_after_utc,
        )
        self._save(self._book.trusted, [*self._book.issued, entry])

    def _save(self, trusted: list[int], issued: list[Issued]) -> None:
        self._book = _Book(trusted=trusted, issued=issued)
        self._put(self.folder / "issued.json", msgspec.json.format(msgspec.json.encode(self._book)))

    def _place_of(self, number: int) -> Path:
        return self.folder / "authorities" / str(number)

    def _authority(self, number: int) -> Pair:
        place = self._place_of(number)
        try:
            return Pair.from_pem((place / "certificate.pem").read_bytes(), (place / "key.pem").read_bytes())
        except (OSError, ValueError) as problem:
            raise OperatorError(f"the authority in {place} cannot be read: {problem}; restore it from a copy") from None

    def _write(self, place: Path, pair: Pair) -> None:
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as problem:
            raise OperatorError(f"{place} cannot be written: {problem.strerror}") from None
        self._put(place / "key.pem", pair.key_pem, private=True)
        self._put(place / "certificate.pem", pair.certificate_pem)

    @staticmethod
    def _put(path: Path, data: bytes, private: bool = False) -> None:
        before = os.umask(0o077 if private else 0o022)
        try:
            write_atomic(path, data)
        except OSError as problem:
            raise OperatorError(f"{path} cannot be written: {problem.strerror}") from None
        finally:
            os.umask(before)


def role_of(name: str) -> str:
    """A service's role: `collector` of `collector` and of `collector-2`; empty for what is no service."""
    return next((role for role in ROLES if name == role or name.startswith(f"{role}-")), "") if "/" not in name else ""


def check_name(name: str) -> None:
    """Lets through who may have a certificate.

    Raises:
        OperatorError: the name is none.
    """
    levels = name.split("/")
    known = name == BROKER or len(levels) == 2 or bool(role_of(name))
    if not known or not all(_NAME.match(level) for level in levels):
        raise OperatorError(
            f"`{name}` is neither a robot, <site>/<robot>, nor a service: {', '.join(ROLES)}, or <one of them>-<name>"
        )
    if len(name) > MAX_COMMON_NAME:
        raise OperatorError(f"`{name}` is {len(name)} characters long; a certificate takes {MAX_COMMON_NAME}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
