"""What the tests of the updater share: a signed repository behind a web server, and one robot's updater."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from serving.config import RepositorySettings
from serving.errors import RejectedError
from serving.slots import Candidate, Slots
from serving.updater import Updater
from tests.test_link_parts import TARGET, Server, channel_of, files_of, is_whole


class Lab:
    """A release repository, a web server in front of it, and one robot's updater."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = Keys.generate()
        self.repository = Repository.create(folder / "repository", self.keys)
        self.metadata = folder / "repository" / "metadata"
        self.server = Server(folder / "repository")
        self.activated: list[str] = []
        self.refusals: list[tuple[str, str, str]] = []
        self.reject = ""  # why the robot refuses what it is given
        self.robot()

    def robot(self, **changes: object) -> None:
        """The robot starts (again), on the same disk."""
        chosen = RepositorySettings(url=self.server.url, root=str(self.metadata / "1.root.json"), timeout_s=2)
        self.slots = Slots(self.folder / "slots")
        self.slots.current()
        self.updater = Updater(
            msgspec.structs.replace(chosen, **changes),
            TARGET,
            "champion",
            self.slots,
            self.activate,
            lambda *refusal: self.refusals.append(refusal),
        )

    def activate(self, candidate: Candidate) -> None:
        assert is_whole(candidate)
        if self.reject:
            raise RejectedError(self.reject)
        self.activated.append(candidate.passport.lineage.model_version)

    def publish(self, version: int, sequence: int) -> None:
        self.repository.publish(files_of(version), [channel_of(version, sequence)])

    def running(self) -> str | None:
        """What the robot would boot with."""
        current = Slots(self.folder / "slots").current()
        return current.passport.lineage.model_version if current else None


@contextlib.contextmanager
def made_lab(folder: Path) -> Iterator[Lab]:
    """A lab; its updater and server are ended."""
    made = Lab(folder)
    try:
        yield made
    finally:
        made.updater.stop()
        made.server.close()
