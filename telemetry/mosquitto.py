"""`jetloop broker config`: Mosquitto for a fleet, as two files: mosquitto.conf and the access list."""

from collections.abc import Iterable
from pathlib import Path

import click

from serving.contracts.events import MAX_PAYLOAD_BYTES, ROOT
from serving.errors import OperatorError
from serving.files import write_atomic
from telemetry.certificate_folder import CertificateFolder, role_of

CONFIGURATION = """\
# Mosquitto for a jetloop fleet, by `jetloop broker config`. Check it: mosquitto -c mosquitto.conf
# After a change of the access list, of a certificate or of crl.pem: kill -HUP (systemctl reload mosquitto).

listener {port} {host}
cafile {certs}/ca.pem
crlfile {certs}/crl.pem
certfile {broker}/certificate.pem
keyfile {broker}/key.pem

# Who connects is who its certificate says: nobody takes another one's name, or its session.
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {acl}

# Messages wait here for a collector that is away; no limit but memory and disk (the default drops after 1000).
max_queued_messages 0
max_inflight_messages 200
persistent_client_expiration 30d
max_packet_size {max_packet_bytes}

# Saved every two seconds. A kill -9 loses what came since the last save; robots keep each event for `settle_s` (5 s)
# after its acknowledgement and send it again, so nothing is lost. Saving at every change (autosave_on_changes true)
# still loses what is between the acknowledgement and the save, and writes all that waits for each message.
persistence true
persistence_location {state}/
autosave_on_changes false
autosave_interval 1

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
{user}"""

ACCESS_LIST = """\
# Who may read and write what, by `jetloop broker config`. %u is the name in the certificate; a robot's is
# <site>/<robot>, so that {root}/%u is its own place. What is not allowed here is denied. (Mosquitto warns at its
# start that the pattern of the releases holds no %u: it is meant for every robot.)

pattern write {root}/%u/event/+
pattern write {root}/%u/metrics
pattern readwrite {root}/%u/state
pattern read {root}/releases/+
{services}"""

# What the services of each role may do besides.
_ROLE_TOPICS = {
    "collector": (f"read {ROOT}/#",),
    "bridge": (f"read {ROOT}/#",),
    "console": (f"read {ROOT}/#",),
    "releases": (f"readwrite {ROOT}/releases/+",),
    "monitor": ("read $SYS/#", f"read {ROOT}/#"),
    "operator": ("read $SYS/#", f"readwrite {ROOT}/#"),
}
_MAX_PACKET_BYTES = 2 * MAX_PAYLOAD_BYTES  # payload, topic and the stamp


def configuration(certs: Path, state: Path, acl: Path, host: str, port: int, user: str = "") -> str:
    """The text of mosquitto.conf; paths as Mosquitto shall find them."""
    return CONFIGURATION.format(
        port=port,
        host=host,
        certs=certs,
        broker=certs / "broker",
        acl=acl,
        state=state,
        max_packet_bytes=_MAX_PACKET_BYTES,
        user=f"user {user}\n" if user else "",
    )


def access_list(services: Iterable[str]) -> str:
    """The text of the access list: every robot by pattern, each service by its role."""
    blocks = [
        "\n".join(["", f"user {name}", *(f"topic {allowed}" for allowed in _ROLE_TOPICS[role_of(name)]), ""])
        for name in services
    ]
    return ACCESS_LIST.format(root=ROOT, services="".join(blocks))


@click.command(short_help="Write mosquitto.conf and the access list for a fleet.")
@click.option(
    "--certs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/certs"),
    show_default=True,
    help="The folder of `jetloop broker certs`.",
)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/mosquitto"),
    show_default=True,
    help="Where to write mosquitto.conf, acl and the broker's state.",
)
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--port", default=8883, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--user", default="", help="User that Mosquitto becomes when root starts it; it must read the key.")
def command(certs: Path, folder: Path, host: str, port: int, user: str) -> None:
    """Writes what a Mosquitto needs to serve a fleet: TLS, client certificates, access list, persistence.

    \b
    reads   CERTS/issued.json       which services have a certificate
    writes  TO/mosquitto.conf, TO/acl, TO/state/

    A robot writes only below its own jetloop/v1/<site>/<robot>, and reads the release channels. Run it again after a
    new service got its certificate; robots need no line.

    \b
    jetloop broker certs init
    jetloop broker certs broker broker.lab 192.168.1.5
    jetloop broker certs robot lab/jetbot-1 lab/jetbot-2
    jetloop broker certs service collector
    jetloop broker config && mosquitto -c build/mosquitto/mosquitto.conf
    """
    write(CertificateFolder(certs), folder, host, port, user)
    click.echo(
        f"written: {folder / 'mosquitto.conf'}, {folder / 'acl'}; start it: mosquitto -c {folder}/mosquitto.conf"
    )


def write(certificates: CertificateFolder, folder: Path, host: str, port: int, user: str = "") -> Path:
    """Writes both files; returns the path of mosquitto.conf.

    Raises:
        OperatorError: the broker has no certificate yet, or the folder cannot be written.
    """
    if not (certificates.folder / "broker" / "certificate.pem").exists():
        raise OperatorError("the broker has no certificate yet; `jetloop broker certs broker HOST` makes one")
    folder, certs = folder.absolute(), certificates.folder.absolute()
    try:
        (folder / "state").mkdir(parents=True, exist_ok=True)
        text = configuration(certs, folder / "state", folder / "acl", host, port, user)
        write_atomic(folder / "acl", access_list(certificates.services()).encode())
        write_atomic(folder / "mosquitto.conf", text.encode())
    except OSError as problem:
        raise OperatorError(f"{folder} cannot be written: {problem.strerror}") from None
    return folder / "mosquitto.conf"
