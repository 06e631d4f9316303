"""ActiveMQ Classic with deploy/activemq/activemq.xml on a free loopback port, with TLS, users and access rights."""

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12

from telemetry.certificate_folder import CertificateFolder
from tests.conftest import ROOT, end, free_port, listens, need, start, wait_for

_LIB = Path("/usr/share/activemq/lib")
_JAVA = Path("/usr/share/java")
_MORE = ("slf4j-api", "slf4j-simple", "mqtt-client", "hawtdispatch", "hawtdispatch-transport")
PASSWORD = "for-tests"


class ActiveMQ:
    """One broker, on one port over restarts; its state under `folder`."""

    durable = True  # over kill -9
    denies = True

    def __init__(self, folder: Path) -> None:
        if not (_LIB / "activemq-mqtt.jar").exists():
            need("activemq-with-mqtt")
        self.folder, self.port = folder, free_port()
        self.certificates = CertificateFolder.create(folder / "certs", 30)
        self.certificates.issue("broker", 7, ["127.0.0.1"])
        _keystore(self.certificates.folder / "broker", folder / "broker.p12")
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        settings = {
            "activemq.home": "/usr/share/activemq",
            "activemq.base": self.folder,
            "activemq.data": self.folder / "data",
            "jetloop.host": "127.0.0.1",
            "jetloop.port": self.port,
            "jetloop.keystore": self.folder / "broker.p12",
            "jetloop.keystore.password": PASSWORD,
            "jetloop.password.robots": PASSWORD,
            "jetloop.password.services": PASSWORD,
        }
        command = [need("java"), "-Xms64m", "-Xmx256m", *(f"-D{name}={value}" for name, value in settings.items())]
        command += ["-cp", _class_path(), "org.apache.activemq.console.Main", "start"]
        self.process = start([*command, f"xbean:file:{ROOT}/deploy/activemq/activemq.xml"], self.folder / "log")
        wait_for(lambda: listens(self.port), 60, what=f"ActiveMQ listening ({self.folder / 'log'})")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None:
            end(self.process)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificates.folder / "ca.pem"))


def _class_path() -> str:
    """Of Debian's packages, without log4j 1.2, which nothing needs."""
    jars = [*_LIB.glob("*.jar"), *(_LIB / "optional").glob("*.jar")]
    kept = [str(jar) for jar in jars if "log4j" not in jar.name and "slf4j" not in jar.name]
    return ":".join([*kept, *(str(_JAVA / f"{name}.jar") for name in _MORE)])


def _keystore(place: Path, target: Path) -> None:
    """PKCS12 of a PEM certificate and its key."""
    chain = x509.load_pem_x509_certificates((place / "certificate.pem").read_bytes())
    key = load_pem_private_key((place / "key.pem").read_bytes(), None)
    sealed = BestAvailableEncryption(PASSWORD.encode())
    target.write_bytes(pkcs12.serialize_key_and_certificates(b"broker", key, chain[0], chain[1:], sealed))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def activemq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActiveMQ]:
    """One for all tests of a worker: it takes seconds to start. Tests use topics of robots of their own."""
    server = ActiveMQ(tmp_path_factory.mktemp("activemq"))
    try:
        server.begin()
        yield server
    finally:
        server.close()
