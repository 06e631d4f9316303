"""Where the MQTT broker is and who we are to it: the options that collector, bridge and release service share."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import click
import paho.mqtt.client as paho

from serving.errors import OperatorError

PASSWORD_VARIABLE = "JETLOOP_MQTT_PASSWORD"
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class Broker:
    """One broker, and by what we are known to it."""

    host: str
    port: int = 1883
    tls: bool = False
    ca: str = ""  # PEM file; empty: the system's authorities
    certificate: str = ""  # PEM file of ours
    key: str = ""  # PEM file
    username: str = ""
    password: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def prepare(self, client: paho.Client) -> None:
        """Gives a client that is not connected yet TLS and credentials; reads the files, so renewed ones are used.

        Raises:
            OperatorError: a file cannot be read, or is no certificate or key.
        """
        if self.username:
            client.username_pw_set(self.username, self.password or None)
        if not self.tls:
            return
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as problem:
            files = ", ".join(filter(None, (self.ca, self.certificate, self.key)))
            raise OperatorError(f"{files or 'the system authorities'}: not usable for TLS: {problem}") from None
        client.tls_set_context(context)


def parse_broker(address: str, ca: str = "", certificate: str = "", key: str = "") -> Broker:
    """Reads HOST, HOST:PORT, mqtt://[USER@]HOST[:PORT] or mqtts://[USER@]HOST[:PORT].

    Args:
        address: the port is 1883, with mqtts 8883, when it is left out.
        ca, certificate, key: PEM files; any of them asks for TLS.

    Raises:
        OperatorError: this is no address, or the files do not go with it.
    """
    wrong = OperatorError(f"--mqtt {address} is not HOST:PORT or mqtts://HOST:PORT, such as 127.0.0.1:1883")
    try:
        parts = urlsplit(address if "://" in address else f"mqtt://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in _PORTS or not host or port == 0 or parts.path.strip("/") or parts.netloc.endswith(":"):
        raise wrong
    if parts.password is not None:
        raise OperatorError(f"--mqtt holds a password that others can read: set {PASSWORD_VARIABLE} instead")
    if bool(certificate) != bool(key):
        raise OperatorError("--certificate and --key go together: give both or none")
    if address.startswith("mqtt://") and (ca or certificate):
        raise OperatorError(f"--mqtt {address} is not encrypted, and --ca or --certificate was given: write mqtts://")
    tls = parts.scheme == "mqtts" or bool(ca or certificate)
    return Broker(
        host=host,
        port=port or _default_port(parts, tls),
        tls=tls,
        ca=ca,
        certificate=certificate,
        key=key,
        username=parts.username or "",
        password=os.environ.get(PASSWORD_VARIABLE, ""),
    )


def _default_port(parts: SplitResult, tls: bool) -> int:
    return _PORTS["mqtts" if tls else parts.scheme]


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --ca, --certificate and --key to a command, as the arguments `ca`, `certificate` and `key`."""
    pem = click.Path(dir_okay=False)
    for name, line in (
        ("--key", "PEM file: the key of --certificate."),
        ("--certificate", "PEM file: our own, of `jetloop broker certs service`."),
        ("--ca", "PEM file: the authority that signed the broker's certificate. Without it, the system's."),
    ):
        command = click.option(name, type=pem, default="", help=line)(command)
    return command
