"""Engines of SQLAlchemy for the event store: SQLite with what durability needs, PostgreSQL as it is."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving.errors import OperatorError


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
        return sa.create_engine(parsed, pool_pre_ping=True)
    except (sa.exc.ArgumentError, ValueError):
        raise OperatorError(f"--store {url} is not a URL such as sqlite:///build/events.db") from None
    except ImportError as problem:
        raise OperatorError(f"--store {url}: its driver is not installed ({problem.name}): pip install it") from None


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
    engine = sa.create_engine(url.set(database=str(path)), connect_args={"timeout": 5.0})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver thinks
        cursor = connection.cursor()
        if create:
            cursor.execute("PRAGMA journal_mode=WAL")  # readers do not stop the writer
            cursor.execute("PRAGMA synchronous=FULL")
        else:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if create else "BEGIN")

    return engine
