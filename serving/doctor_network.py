"""Checks over the network, for `jetloop-robot doctor`: certificates, the repository of releases, the broker.

A look, no more: whether what the repository serves is signed as it should be is TUF's business, in updater.py.
"""

import datetime
import json
import socket
import ssl
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import List, Optional, Tuple

from serving.config import MqttSettings, RepositorySettings
from serving.doctor import FAIL, OK, WARN, Finding
from serving.errors import OperatorError
from serving.mqtt_tls import tls_context

_SOON = datetime.timedelta(days=30)
_TIMESTAMP_SOON = datetime.timedelta(hours=6)  # signed for a day, anew when half of it is over
_TIMEOUT_S = 5.0
_MAX_METADATA_BYTES = 1 << 20


def certificates(settings: MqttSettings, now: Optional[datetime.datetime] = None) -> Finding:
    """The files that `[mqtt]` names: there, in time, the key for its owner alone."""
    paths = [path for path in (settings.ca, settings.certificate) if path]
    if not paths:
        how = "TLS with the system's authorities" if settings.tls else "the broker is spoken to in the clear"
        return Finding(OK if settings.tls else WARN, "certificates", how, "" if settings.tls else "set mqtt.ca for TLS")
    try:
        tls_context(settings)  # finds what does not belong together
        ends = min(_valid_until(Path(path), now or _now()) for path in paths)
    except OperatorError as problem:
        return Finding(FAIL, "certificates", str(problem), "ask for new ones, or set the clock")
    if settings.key and Path(settings.key).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        return Finding(FAIL, "certificates", f"{settings.key} can be read by others", f"chmod 640 {settings.key}")
    said = f"good until {ends:%Y-%m-%d}"
    if ends - (now or _now()) < _SOON:
        return Finding(WARN, "certificates", said, "have them renewed; the files are read anew at each connect")
    return Finding(OK, "certificates", said)


def root_of_trust(path: Path, now: Optional[datetime.datetime] = None) -> Finding:
    """The root.json that this robot trusts at its first start."""
    todo = "copy metadata/root.json of the repository, from a place you trust, to repository.root"
    try:
        expires = _expires(path.read_bytes(), "root")
    except (OSError, ValueError) as problem:
        return Finding(FAIL, "root of trust", f"{path}: {getattr(problem, 'strerror', None) or problem}", todo)
    said = f"{path}, expires {expires:%Y-%m-%d}"
    if expires < (now or _now()):  # TUF begins with it all the same, and takes its successors from the repository
        return Finding(WARN, "root of trust", f"{said}: expired", "normal after a rotation, as long as updates come")
    return Finding(OK, "root of trust", said)


def repository(settings: RepositorySettings, now: Optional[datetime.datetime] = None) -> Finding:
    """Whether the repository answers, and signs what it serves anew."""
    url = settings.url.rstrip("/") + "/metadata/timestamp.json"
    try:
        with urllib.request.urlopen(url, timeout=min(settings.timeout_s, _TIMEOUT_S)) as answer:
            expires = _expires(answer.read(_MAX_METADATA_BYTES), "timestamp")
    except (OSError, ValueError) as problem:  # URLError and the JSON's error are of these kinds
        why = getattr(problem, "reason", problem)
        return Finding(
            FAIL,
            "repository",
            f"{url}: {getattr(why, 'strerror', None) or why}",
            "check repository.url and the network",
        )
    left = expires - (now or _now())
    said = f"{settings.url}, signed until {expires:%Y-%m-%d %H:%M} UTC"
    if left < datetime.timedelta(0):
        todo = "on the platform: `jetloop release serve` signs it anew; robots refuse what is out of date"
        return Finding(FAIL, "repository", f"{said}: expired", todo)
    if left < _TIMESTAMP_SOON:
        return Finding(
            WARN, "repository", said, "on the platform: does `jetloop release serve` run? It signs this anew"
        )
    return Finding(OK, "repository", said)


def broker(settings: MqttSettings) -> Finding:
    """Whether the broker answers, with TLS where it is set. Says nothing of passwords: no session is begun."""
    address = f"{settings.host}:{settings.port}"
    try:
        context = tls_context(settings)
        with socket.create_connection((settings.host, settings.port), timeout=_TIMEOUT_S) as plain:
            if context is None:
                return Finding(OK, "broker", f"{address}, in the clear")
            with context.wrap_socket(plain, server_hostname=settings.host) as channel:
                return Finding(OK, "broker", f"{address}, {channel.version()}")
    except OperatorError as problem:
        return Finding(FAIL, "broker", str(problem), "see certificates")
    except ssl.SSLError as problem:
        why = problem.reason or problem
        return Finding(FAIL, "broker", f"{address}: {why}", "check mqtt.ca, mqtt.host and the clock")
    except OSError as problem:
        todo = "check mqtt.host, mqtt.port and the network; events wait in the outbox"
        return Finding(FAIL, "broker", f"{address}: {problem.strerror or problem}", todo)


def _expires(content: bytes, kind: str) -> datetime.datetime:
    """When signed TUF metadata expires.

    Raises:
        ValueError: it is no metadata of that kind.
    """
    try:
        signed = json.loads(content)["signed"]
        if signed["_type"] != kind:
            raise ValueError(f"its type is {signed['_type']}")
        expires = datetime.datetime.fromisoformat(signed["expires"])
        return expires if expires.tzinfo else expires.replace(tzinfo=datetime.timezone.utc)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as problem:
        raise ValueError(f"this is no {kind} metadata of a TUF repository ({problem})") from None


def _valid_until(path: Path, now: datetime.datetime) -> datetime.datetime:
    """The first end of a PEM file's certificates.

    Raises:
        OperatorError: it cannot be read, is none, or does not hold now.
    """
    from cryptography import x509

    try:
        found: List[x509.Certificate] = x509.load_pem_x509_certificates(path.read_bytes())
        times: List[Tuple[datetime.datetime, datetime.datetime]] = [
            (one.not_valid_before_utc, one.not_valid_after_utc) for one in found
        ]
    except OSError as problem:
        raise OperatorError(f"{path}: {problem.strerror}") from None
    except ValueError as problem:
        raise OperatorError(f"{path}: this is no certificate in PEM: {problem}") from None
    begins, ends = max(begin for begin, _ in times), min(end for _, end in times)
    if ends < now:
        raise OperatorError(f"{path}: expired on {ends:%Y-%m-%d}")
    if begins > now:
        raise OperatorError(f"{path}: begins on {begins:%Y-%m-%d}, and here it is {now:%Y-%m-%d}")
    return ends


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
