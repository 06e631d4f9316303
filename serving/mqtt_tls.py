"""TLS towards the broker: the context, and what this robot's own certificate says.

The files are read at each connect: certificates that were renewed are used without a restart.
"""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from serving.config import MqttSettings
from serving.errors import OperatorError

if TYPE_CHECKING:
    from cryptography import x509


def tls_context(settings: MqttSettings) -> Optional[ssl.SSLContext]:
    """The context that `[mqtt]` asks for; None for a connection in the clear.

    Raises:
        OperatorError: a file cannot be read, or is no certificate or key.
    """
    if not (settings.tls or settings.ca):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as problem:
        files = ", ".join(filter(None, (settings.ca, settings.certificate, settings.key)))
        raise OperatorError(f"[mqtt] {files or 'ca'}: not usable for TLS: {problem}") from None
    return context


def refuse_foreign_certificate(settings: MqttSettings, site: str, robot: str) -> None:
    """Finds a certificate that was made for another robot.

    MQTT 3.1.1 has no answer for "denied": a broker that takes names from certificates hangs up at the first message
    (Mosquitto 2.0), or acknowledges all and throws it away. Names that are not `<site>/<robot>` are somebody else's
    scheme, and pass.

    Raises:
        OperatorError: it names another robot; nothing must be sent with it.
    """
    name = _common_name(settings.certificate)
    if "/" in name and name != f"{site}/{robot}":
        raise OperatorError(
            f"[mqtt] {settings.certificate} is the certificate of {name}, and this robot is {site}/{robot}: the broker "
            "would take nothing from it; install its own"
        )


def described_certificate(settings: MqttSettings) -> str:
    """Whose certificate is shown to the broker, and until when it holds."""
    if not settings.certificate:
        return "no certificate is set in [mqtt]"
    ends = _certificate(settings.certificate).not_valid_after_utc
    return f"the certificate is of {_common_name(settings.certificate)}, good until {ends:%Y-%m-%d %H:%M} UTC"


def _certificate(path: str) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError) as problem:
        raise OperatorError(f"[mqtt] {path}: not usable for TLS: {problem}") from None


def _common_name(path: str) -> str:
    from cryptography.x509.oid import NameOID

    if not path:
        return ""
    names = _certificate(path).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
