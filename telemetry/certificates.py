"""Certificates for a broker, its robots and its services: what is in them. Nothing here touches a file.

Elliptic keys (P-256), which every TLS library of the last ten years takes. A robot's name is `<site>/<robot>`: put
for %u into Mosquitto's access list it is the robot's own place among the topics, so no robot needs a line there.
"""

import datetime
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MAX_COMMON_NAME = 64  # characters, X.520
_BACKDATED = datetime.timedelta(days=1)  # for robots whose clock is behind


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> "Pair":
        """Reads both.

        Raises:
            ValueError: this is no certificate, or no elliptic key.
        """
        loaded = serialization.load_pem_private_key(key, password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("not an elliptic key")
        return cls(x509.load_pem_x509_certificate(certificate), loaded)


def make_authority(name: str, days: float) -> Pair:
    """An authority that signs for `days` from now; `name` must differ from that of every other one."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def make_client(authority: Pair, name: str, days: float) -> Pair:
    """A certificate by which a robot or service shows the broker who it is."""
    return _leaf(authority, name, days, ExtendedKeyUsageOID.CLIENT_AUTH, [])


def make_server(authority: Pair, name: str, hosts: Sequence[str], days: float) -> Pair:
    """A certificate by which the broker shows who it is.

    Args:
        hosts: the DNS names and IP addresses under which clients connect.
    """
    return _leaf(authority, name, days, ExtendedKeyUsageOID.SERVER_AUTH, hosts)


def make_revocations(authority: Pair, revoked: Iterable[tuple[int, datetime.datetime]]) -> bytes:
    """The authority's list of revoked certificates, PEM.

    It holds as long as the authority: a broker whose list has run out refuses everybody, and a list that somebody must
    remember to renew would do that one day.

    Args:
        revoked: serial number and time of each.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(_now() - _BACKDATED)
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(_issuer(authority), critical=False)
    )
    for serial, at in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _leaf(authority: Pair, name: str, days: float, purpose: x509.ObjectIdentifier, hosts: Sequence[str]) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject(name), authority.certificate.subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(_issuer(authority), critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(_now(), _now() + datetime.timedelta(days=days)) - _BACKDATED)
        .not_valid_after(_now() + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _issuer(authority: Pair) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
