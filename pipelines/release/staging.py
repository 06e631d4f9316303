"""Engines that are compiled and measured and not yet signed: a service that starts again does not compile them again.

    FOLDER/staging/<sha256>     the engine; its report is in the release database, found by what it was compiled from

An engine whose bytes are not those that were measured is compiled again.
"""

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipelines.release import durable
from pipelines.release.built import Built
from pipelines.release.database import Database
from pipelines.release.journal import utc_now
from serving.contracts.releases import EngineKey, Measured

log = logging.getLogger(__name__)

KEPT_S = 30 * 86400.0  # of a version that was refused: it may be judged again


@dataclass(frozen=True)
class Staged:
    """An engine in staging."""

    built: Built
    memory_mb: float | None  # peak of a process that runs it; None where it was not measured
    built_at: str  # RFC 3339, UTC


class Staging:
    """The engines of a release folder that wait to be signed."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder = folder / "staging"
        self._database = database

    def find(self, onnx_sha256: str, golden_sha256: str, target: str) -> Staged | None:
        """What was compiled from this ONNX file for a target and measured on these golden frames.

        Raises:
            OperatorError: the database is damaged.
        """
        sql = "SELECT * FROM engine WHERE onnx_sha256 = ? AND golden_sha256 = ? AND target = ?"
        found = self._database.rows(sql, onnx_sha256, golden_sha256, target)
        if not found:
            return None
        row = found[0]
        try:
            engine = (self._folder / row["engine_sha256"]).read_bytes()
        except FileNotFoundError:
            engine = b""
        if hashlib.sha256(engine).hexdigest() != row["engine_sha256"]:
            log.warning("the engine for %s in %s is missing or altered: compiling it again", target, self._folder)
            return None
        measured = msgspec.json.decode(row["measured"], type=Measured)
        key = msgspec.json.decode(row["engine_key"], type=EngineKey | None)
        return Staged(Built(engine, measured, key), row["memory_mb"], row["built_at"])

    def keep(self, onnx_sha256: str, golden_sha256: str, target: str, built: Built, memory_mb: float | None) -> Staged:
        """Keeps an engine with its report: first the file, then what names it.

        Raises:
            OSError: the disk is full.
            OperatorError: the same, for the database.
        """
        digest = hashlib.sha256(built.engine).hexdigest()
        durable.write(self._folder / digest, built.engine)
        now = utc_now()
        measured, key = (msgspec.json.encode(part).decode() for part in (built.measured, built.key))
        with self._database.changing() as db:
            db.execute(
                "INSERT OR REPLACE INTO engine VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (onnx_sha256, golden_sha256, target, digest, measured, key, memory_mb, now),
            )
        return Staged(built, memory_mb, now)

    def sweep(self, now_s: float | None = None) -> None:
        """Removes what is too old to be asked for again, and files that nothing names. For the holder of the lock."""
        now_s = time.time() if now_s is None else now_s
        oldest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s - KEPT_S))
        with self._database.changing() as db:
            db.execute("DELETE FROM engine WHERE built_at < ?", (oldest,))
        named = {row["engine_sha256"] for row in self._database.rows("SELECT engine_sha256 FROM engine")}
        for file in self._folder.glob("*"):
            if file.name not in named:
                file.unlink()
