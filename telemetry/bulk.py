"""Many rows into a table with one statement, as fast as SQLite and PostgreSQL take them.

SQLAlchemy's own way took most of the time of a batch (`python -m tests.bench.store`). SQLite gets an executemany of
the driver, PostgreSQL one INSERT from arrays in its binary form, so that the number of rows does not change the text.
"""

import datetime
import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from telemetry import tables

_json = msgspec.json.Encoder()

Values = Sequence[Any]


def insert(
    connection: sa.Connection, table: sa.Table, names: tuple[str, ...], rows: Sequence[Values], then: str
) -> "sa.CursorResult[Any]":
    """Inserts rows.

    Args:
        connection: in a transaction.
        table: of tables.py.
        names: of the columns, in the order of the values.
        rows: one or more; moments are aware, JSON is given as Python has it.
        then: what follows in the statement, such as ON CONFLICT.

    Returns:
        What the database answers; on SQLite `rowcount` alone means something.
    """
    sqlite = connection.dialect.name == "sqlite"
    text, converters = _statement(table, names, then, sqlite)
    columns = [
        list(column) if convert is None else [None if value is None else convert(value) for value in column]
        for convert, column in zip(converters, zip(*rows, strict=True), strict=True)
    ]
    if sqlite:
        return connection.exec_driver_sql(text, list(zip(*columns, strict=True)))
    return connection.exec_driver_sql(text, tuple(columns))


def sqlite_text(moment: datetime.datetime) -> str:
    """As `tables.UtcDateTime` writes it."""
    return moment.astimezone(datetime.UTC).isoformat(" ", "microseconds")[:-6]


@functools.cache
def _statement(
    table: sa.Table, names: tuple[str, ...], then: str, sqlite: bool
) -> tuple[str, list[Callable[[Any], Any] | None]]:
    """The statement, and how each column's values are made ready for it (None: they are)."""
    kinds = [table.c[name].type for name in names]
    encoders: list[Callable[[Any], Any] | None] = [_encode if isinstance(kind, sa.JSON) else None for kind in kinds]
    quoted = ", ".join(f'"{name}"' for name in names)
    if sqlite:
        moments: list[Callable[[Any], Any] | None] = [
            sqlite_text if isinstance(kind, tables.UtcDateTime) else None for kind in kinds
        ]
        marks = ", ".join("?" * len(names))
        return f"INSERT INTO {table.name} ({quoted}) VALUES ({marks}) {then}", [
            one or other for one, other in zip(encoders, moments, strict=True)
        ]
    types = [_array_of(kind) for kind in kinds]
    arrays = ", ".join(f"%b::{kind}[]" for kind in types)
    values = ", ".join(
        f'"{name}"::json' if encode else f'"{name}"' for name, encode in zip(names, encoders, strict=True)
    )
    return (
        f"INSERT INTO {table.name} ({quoted}) SELECT {values} FROM unnest({arrays}) AS new ({quoted}) {then}",
        encoders,
    )


def _array_of(kind: "sa.types.TypeEngine[Any]") -> str:
    """The type in which PostgreSQL gets the values of a column. No length: too long is an error, never cut off."""
    if isinstance(kind, (sa.String, sa.JSON)):
        return "text"
    return str(kind.compile(dialect=postgresql.dialect()))


def _encode(value: Any) -> str:
    return _json.encode(value).decode()
