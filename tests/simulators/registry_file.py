"""MLflow's registry as the release service sees it (pipelines/release/registry.py), in one JSON file.

For tests that end the service hundreds of times: what it was told outlives it, each call is one atomic write, and no
server is needed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.release.registry import Version, with_block
from tests.simulators.promotions import GOOD_METRICS, export, lineage_tags

MODEL = "collision-avoidance"


class FileRegistry:
    """Versions, aliases, tags and descriptions in `folder/registry.json`."""

    model = MODEL

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "registry.json"
        if not self._file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._write({"versions": {}, "aliases": {}})

    # What people do

    def add(self, metrics: Mapping[str, float] | None = None, off_by: float = 0.0, **tags: str) -> str:
        """A new version with a network of its own; tags with `_` for the first dot."""
        state = self._read()
        number = str(len(state["versions"]) + 1)
        report = export(self._folder / f"run-{number}" / "export", seed=int(number), off_by=off_by)
        own = {key.replace("_", ".", 1): value for key, value in tags.items()}
        state["versions"][number] = {
            "tags": lineage_tags(report, f"run-{number}") | own,
            "metrics": dict(GOOD_METRICS if metrics is None else metrics),
            "description": "",
        }
        self._write(state)
        return number

    def set_alias(self, alias: str, version: str | None) -> None:
        state = self._read()
        state["aliases"].pop(alias, None)
        if version is not None:
            state["aliases"][alias] = version
        self._write(state)

    def delete_tag(self, version: str, tag: str) -> None:
        state = self._read()
        state["versions"][version]["tags"].pop(tag, None)
        self._write(state)

    def delete(self, version: str) -> None:
        state = self._read()
        del state["versions"][version]
        self._write(state)

    def description(self, version: str) -> str:
        return str(self._read()["versions"][version]["description"])

    # What the service calls

    def promoted(self, alias: str) -> Version | None:
        number = self._read()["aliases"].get(alias)
        return self.version(number) if number else None

    def version(self, number: str) -> Version | None:
        found = self._read()["versions"].get(number)
        return Version(number, f"run-{number}", found["tags"], "") if found else None

    def metrics(self, version: Version) -> dict[str, float]:
        return dict(self._read()["versions"][version.number]["metrics"])

    def download(self, version: Version, folder: Path) -> dict[str, Path]:
        run = self._folder / version.run_id
        return {f"export/{path.name}": path for path in (run / "export").iterdir()}

    def tag(self, version: Version, tags: Mapping[str, str | None]) -> None:
        for key, value in tags.items():  # one after the other, as MLflow's API has it
            state = self._read()
            state["versions"][version.number]["tags"].pop(key, None)
            if value is not None:
                state["versions"][version.number]["tags"][key] = value
            self._write(state)

    def describe(self, version: Version, text: str) -> None:
        state = self._read()
        known = state["versions"][version.number]
        known["description"] = with_block(known["description"], text)
        self._write(state)

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self._file.read_text()))

    def _write(self, state: dict[str, Any]) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        os.rename(draft, self._file)
