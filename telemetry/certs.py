"""`jetloop broker certs`: the commands. What they do to the folder is in certificate_folder.py."""

import datetime
from pathlib import Path

import click

from telemetry.certificate_folder import BROKER, ROLES, CertificateFolder

_folder = click.option(
    "--certs",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/certs"),
    show_default=True,
    help="The folder of authority and certificates. Keep it, and copies of it, as you keep a key.",
)
_days = click.option(
    "--days", type=click.FloatRange(min=0.001), default=365.0, show_default=True, help="How long it holds."
)
_years = click.option(
    "--years", type=click.FloatRange(min=0.01), default=10.0, show_default=True, help="How long it signs."
)


@click.group(short_help="A local authority, and certificates for broker, robots, services.")
def group() -> None:
    """Makes, renews and revokes the certificates by which broker, robots and services know each other.

    \b
    jetloop broker certs init                                    once: the authority
    jetloop broker certs broker broker.lab 192.168.1.5           the names under which the broker is reached
    jetloop broker certs robot lab/jetbot-1                      then copy ca.pem and its folder to the robot
    jetloop broker certs service collector
    jetloop broker certs revoke lab/jetbot-1                     it was stolen; then reload the broker

    Issuing again renews: the old certificate holds until it ends. A new authority, without stopping the fleet:
    rotate; bring ca.pem to the broker and all others; issue all anew and bring them; retire.
    """


@group.command()
@_folder
@_years
def init(folder: Path, years: float) -> None:
    """Begins a folder with its authority.

    Example: jetloop broker certs init --certs build/certs
    """
    CertificateFolder.create(folder, years * 365.25)
    click.echo(f"made: {folder / 'ca.pem'}, which everybody gets; the key in {folder / 'authorities'} stays here")


@group.command()
@click.argument("hosts", nargs=-1, required=True)
@_folder
@_days
def broker(hosts: tuple[str, ...], folder: Path, days: float) -> None:
    """Makes the broker's certificate, for the names and addresses under which clients reach it.

    Example: jetloop broker certs broker broker.lab 192.168.1.5
    """
    _tell(CertificateFolder(folder).issue(BROKER, days, hosts))


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="SITE/ROBOT...")
@_folder
@_days
def robot(names: tuple[str, ...], folder: Path, days: float) -> None:
    """Makes a certificate for each robot, named as in its robot.toml.

    Example: jetloop broker certs robot lab/jetbot-1 lab/jetbot-2
    """
    certificates = CertificateFolder(folder)
    for name in names:
        if "/" not in name:
            raise click.BadParameter(f"{name} is not SITE/ROBOT, such as lab/jetbot-1")
        _tell(certificates.issue(name, days))


@group.command()
@click.argument("names", nargs=-1, required=True, metavar=f"[{'|'.join(ROLES)}][-NAME]...")
@_folder
@_days
def service(names: tuple[str, ...], folder: Path, days: float) -> None:
    """Makes a certificate for each service; its role says what it may read and write.

    Several of one role get names of their own, such as bridge-1 and bridge-2. Then run `jetloop broker config` again.

    Example: jetloop broker certs service collector console
    """
    certificates = CertificateFolder(folder)
    for name in names:
        if "/" in name or name == BROKER:
            raise click.BadParameter(f"{name} is no service; there are {', '.join(ROLES)}")
        _tell(certificates.issue(name, days))


@group.command()
@click.argument("name")
@_folder
def revoke(name: str, folder: Path) -> None:
    """Revokes all certificates of a robot or service, and writes crl.pem anew.

    The broker refuses them once it has the new crl.pem and was reloaded (kill -HUP). Who is connected stays connected:
    restart the broker to put it out at once. Robots keep what they have to say meanwhile.

    Example: jetloop broker certs revoke lab/jetbot-1
    """
    count = CertificateFolder(folder).revoke(name)
    click.echo(f"revoked: {count} of {name}; now bring {folder / 'crl.pem'} to the broker and reload it (kill -HUP)")


@group.command()
@_folder
@_years
def rotate(folder: Path, years: float) -> None:
    """Makes a new authority beside the old one: both are trusted, the new one signs.

    Example: jetloop broker certs rotate
    """
    number = CertificateFolder(folder).rotate(years * 365.25)
    click.echo(
        f"authority {number} signs from now on; bring {folder / 'ca.pem'} and crl.pem to the broker, ca.pem to all "
        "others, issue their certificates anew, then `jetloop broker certs retire`"
    )


@group.command()
@click.option("--force", is_flag=True, help="Also when somebody is then locked out.")
@_folder
def retire(force: bool, folder: Path) -> None:
    """Ends the trust in every authority but the newest, once all have certificates of that one.

    Example: jetloop broker certs retire
    """
    locked_out = CertificateFolder(folder).retire(force)
    click.echo(f"written: {folder / 'ca.pem'}, {folder / 'crl.pem'}; bring them to the broker, ca.pem to all others")
    if locked_out:
        click.echo(f"locked out: {', '.join(locked_out)}")


@group.command(name="list")
@_folder
def list_command(folder: Path) -> None:
    """Lists who has which certificate, and until when.

    Example: jetloop broker certs list
    """
    certificates = CertificateFolder(folder)
    click.echo(f"trusted authorities: {', '.join(map(str, certificates.trusted))} (the last one signs)")
    for one in sorted(certificates.issued, key=lambda one: (one.name, one.ends)):
        end = "revoked" if one.revoked else "ended" if not one.holds() else f"{_days_left(one.ends)} days left"
        click.echo(f"{one.name:<40} {one.ends:%Y-%m-%d}  {end:<15} authority {one.authority}, serial {one.serial}")


def _days_left(ends: datetime.datetime) -> int:
    return (ends - datetime.datetime.now(datetime.UTC)).days


def _tell(place: Path) -> None:
    click.echo(f"made: {place / 'certificate.pem'}, {place / 'key.pem'}")
