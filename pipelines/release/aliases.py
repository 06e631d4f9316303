"""What people set: each change of an alias, seen by looking at MLflow or heard of by its webhook, once.

Looking is what counts: the registry says which version an alias is on now. A webhook only adds what looking may miss:
that the alias was on another version in between two looks, so that one which comes back counts as newly asked for.
"""

import time
from typing import Any

from pipelines.release.database import Database

LATE_S = 600.0  # a delivery this late after its change was seen still is of that change: MLflow tries again for minutes
KEPT_S = 7 * 86400.0  # deliveries are remembered for so long; a replayed one is no longer accepted after five minutes


class Aliases:
    """Changes of aliases in a release database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def hear(self, delivery_id: str, channel: str, version: str, now_s: float | None = None) -> bool:
        """Takes down what a genuine webhook says; from any thread.

        Returns:
            False when this delivery was taken down before.
        """
        now_s = time.time() if now_s is None else now_s
        with self._database.changing() as db:
            db.execute("DELETE FROM heard WHERE looked = 1 AND heard_unix_s < ?", (now_s - KEPT_S,))
            sql = "INSERT OR IGNORE INTO heard (delivery_id, channel, version, heard_unix_s) VALUES (?, ?, ?, ?)"
            return db.execute(sql, (delivery_id, channel, version, now_s)).rowcount == 1

    def heard_so_far(self) -> int:
        """A mark; take it before looking at MLflow: what was heard by then is in what MLflow says."""
        found = self._database.rows("SELECT coalesce(max(id), 0) AS mark FROM heard")
        return int(found[0]["mark"])

    def look(self, channel: str, version: str, mark: int, now_s: float | None = None) -> int:
        """Takes down that an alias is on a version (empty: on none).

        Args:
            mark: of `heard_so_far`, from before MLflow was asked.

        Returns:
            The number of the change that brought it there: the same one as at the last look, unless the alias moved in
            between.
        """
        now_s = time.time() if now_s is None else now_s
        last = self._database.rows("SELECT * FROM alias_change WHERE channel = ? ORDER BY id DESC LIMIT 1", channel)
        heard = self._database.rows("SELECT * FROM heard WHERE looked = 0 AND channel = ? AND id <= ?", channel, mark)
        moved = not last or last[0]["version"] != version or self._was_elsewhere(channel, version, heard)
        if not moved and not heard:
            return int(last[0]["id"])
        with self._database.changing() as db:
            db.execute("UPDATE heard SET looked = 1 WHERE channel = ? AND id <= ?", (channel, mark))
            if not moved:
                return int(last[0]["id"])
            sql = "INSERT INTO alias_change (channel, version, seen_unix_s) VALUES (?, ?, ?)"
            number = db.execute(sql, (channel, version, now_s)).lastrowid
            assert number is not None
            return number

    def _was_elsewhere(self, channel: str, version: str, heard: list[Any]) -> bool:
        """Whether a webhook tells of another version that looking did not see."""
        for one in heard:
            if one["version"] != version:
                sql = "SELECT 1 FROM alias_change WHERE channel = ? AND version = ? AND seen_unix_s > ?"
                if not self._database.rows(sql, channel, one["version"], one["heard_unix_s"] - LATE_S):
                    return True
        return False
