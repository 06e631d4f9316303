"""SQL over an archive: DuckDB, with the view `events` of the files that the newest manifest names, and nothing else."""

import contextlib
from collections.abc import Iterator
from typing import Any

from serving.errors import OperatorError, RejectedError
from telemetry import archive_files
from telemetry.archive_manifest import newest
from telemetry.archive_places import Place

_ROWS = 5000  # of a batch of results
_CLOSED = {  # nothing is fetched, written or loaded, whatever the query says
    "TimeZone": "'UTC'",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "lock_configuration": "true",
}


def query(place: Place, sql: str) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Runs one query.

    Args:
        place: of the archive.
        sql: in DuckDB's dialect, over the view `events`.

    Returns:
        The names of the columns, and the rows as they come.

    Raises:
        OperatorError: there is no archive, or it does not work.
        RejectedError: DuckDB does not understand the query.
    """
    import duckdb

    current = newest(place)
    if current is None:
        raise OperatorError(f"there is no archive at {place.name}; `jetloop archive run --to {place.name}` makes it")
    connection = duckdb.connect()
    connection.register("events", archive_files.read(place, current.files))
    for name, value in _CLOSED.items():
        connection.execute(f"SET {name} = {value}")
    with _told(place):
        relation = connection.sql(sql)
        if relation is None:
            raise RejectedError("this is no query: it gives no rows")
        reader = relation.to_arrow_reader(_ROWS)
    return reader.schema.names, _rows(place, connection, reader)


def _rows(place: Place, _connection: Any, reader: Any) -> Iterator[dict[str, Any]]:
    """The connection is held for as long as rows are read."""
    with _told(place):
        for batch in reader:
            yield from batch.to_pylist()


@contextlib.contextmanager
def _told(place: Place) -> Iterator[None]:
    """What goes wrong in DuckDB or below it, in the words of this house."""
    import duckdb

    try:
        yield
    except (OSError, duckdb.Error) as problem:
        line = " ".join(str(problem).split())
        if isinstance(problem, OSError) or "IOError" in line or "FileNotFoundError" in line:
            raise OperatorError(f"the archive {place.name} cannot be read: {line}") from None
        raise RejectedError(line) from None
