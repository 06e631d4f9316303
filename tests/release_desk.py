"""The release service without its process: a folder, a registry in a file, and `reconcile` called by the test.

Everything but MLflow is real: the database, the gates, ONNX Runtime, the signed repository.
"""

from pathlib import Path

from pipelines.params import GateParams
from pipelines.release.database import Database
from pipelines.release.journal import Attempt, Journal
from pipelines.release.keys import Keys
from pipelines.release.repository import Repository
from pipelines.release.service import Records, Service, Wanted
from serving.contracts.releases import Channel
from tests.simulators.registry_file import FileRegistry

TARGET = "cpu-ort-fp32"


def limits(**changes: object) -> GateParams:
    values = {"min_balanced_accuracy": 0.8, "min_blocked_recall": 0.85, "max_parity_error": 0.01}
    return GateParams(**{**values, "max_latency_ms": {TARGET: 2000.0}, **changes})  # type: ignore[arg-type]


class Desk:
    """A service that has just started on a folder; make another one to start it again."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder / "release"
        self.registry = FileRegistry(folder / "registry")
        if not self.folder.exists():
            keys = Keys.generate()
            keys.save(self.folder / "keys")
            Repository.create(self.folder, keys)
        self.limits = limits(**changes)
        self.rung: list[Channel] = []
        self.repository = Repository.open(self.folder, Keys.load(self.folder / "keys"))
        self.repository.sweep()
        self.database = Database.open(self.folder)
        self.records = Records.of(self.folder, self.database)
        wanted = Wanted(("champion", "canary"), (TARGET,), lambda: self.limits)
        self.service = Service(self.registry, self.repository, self.records, wanted, self.rung.append)  # type: ignore[arg-type]

    @property
    def journal(self) -> Journal:
        return self.records.journal

    def promote(self, version: str | None, alias: str = "champion") -> None:
        self.registry.set_alias(alias, version)

    def release(self, version: str, alias: str = "champion") -> None:
        self.promote(version, alias)
        self.service.reconcile()

    def tags(self, version: str) -> dict[str, str]:
        found = self.registry.version(version)
        assert found
        return dict(found.tags)

    def status(self, version: str) -> str:
        return self.tags(version).get("release.status", "")

    def channel(self, name: str = "champion") -> Channel | None:
        return Repository.open(self.folder, Keys({})).channel(name)

    def states(self, attempt: Attempt | None = None) -> list[str]:
        """Of an attempt, or of the newest."""
        return [move.state for move in self.journal.moves(attempt or self.journal.attempts()[-1])]

    def told(self) -> list[tuple[str, str, str, int | None]]:
        """All attempts: channel, version, state, sequence."""
        return [(one.channel, one.version, one.state.value, one.sequence) for one in self.journal.attempts()]
