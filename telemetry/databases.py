"""Engines of SQLAlchemy for the event store, and what SQLite and PostgreSQL spell or lock differently.

SQLite gets what durability needs; PostgreSQL is taken as it is.
"""

import enum
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serving.errors import OperatorError

SQLITE_TIMEOUT_S = 5.0  # for another process's transaction to end


class Lock(enum.IntEnum):
    """What processes on one PostgreSQL keep each other from, until the transaction ends."""

    MIGRATION = 0x6A65746C_01  # upgrading the tables
    WRITING = 0x6A65746C_02  # adding events: collectors share it, who needs none of them in between does not


def lock(connection: sa.Connection, what: Lock, *, shared: bool) -> None:
    """Waits for a lock and holds it until the transaction ends. On SQLite only one writes at a time anyway."""
    if connection.dialect.name == "postgresql":
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        connection.exec_driver_sql(f"SELECT {function}({int(what)})")


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """INSERT with ON CONFLICT, which SQLAlchemy keeps with each dialect."""
    return {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name].insert(table)


def make_engine(url: str, *, create: bool) -> sa.Engine:
    """Connects to nothing yet.

    Args:
        url: of SQLAlchemy.
        create: for the writer; SQLite then makes the file. Without it connections only read.

    Raises:
        OperatorError: the URL is none of a known kind, or the file's folder or the file itself is not there.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise OperatorError(f"--store {url}: a store is sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME")
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed, create=create)
        return _postgresql_engine(parsed, create=create)
    except (sa.exc.ArgumentError, ValueError):
        raise OperatorError(f"--store {url} is not a URL such as sqlite:///build/events.db") from None
    except ImportError as problem:
        raise OperatorError(f"--store {url}: its driver is not installed ({problem.name}): pip install it") from None


def _postgresql_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    if not create:

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            connection.read_only = True

    return engine


def _sqlite_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise OperatorError("--store sqlite:// names no file; use sqlite:///build/events.db")
    path = Path(url.database).absolute()
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise OperatorError(f"{path.parent} cannot be made ({problem.strerror}); give another --store") from None
    elif not path.exists():
        raise OperatorError(f"there is no store {path} yet; `jetloop collector --store sqlite:///{path}` makes it")
    engine = sa.create_engine(url.set(database=str(path)), connect_args={"timeout": SQLITE_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver thinks
        cursor = connection.cursor()
        if create:
            _write_ahead(cursor)
            cursor.execute("PRAGMA synchronous=FULL")
        else:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if create else "BEGIN")

    return engine


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Turns SQLite's write-ahead log on: readers then do not stop the writer. The file stays in that mode.

    SQLite does not wait for a lock in this one statement, however long the connection's timeout is
    (https://www.sqlite.org/c3ref/busy_handler.html: no waiting where it could be for each other), so the waiting is
    here: several that open a new store at once would else fail.

    Raises:
        sqlite3.OperationalError: another kept it locked for the whole of `SQLITE_TIMEOUT_S`, or it cannot be written.
    """
    deadline = time.monotonic() + SQLITE_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
