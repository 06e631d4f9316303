"""The version of a store's tables: found out, and brought up to date with alembic's migrations.

A store's version is alembic's (`alembic_version`). A store from before the migrations has the table `schema_version`
instead and is version 0001.
"""

import logging
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from serving.errors import OperatorError
from telemetry import rollups
from telemetry.databases import Lock, lock

log = logging.getLogger("jetloop.store")

FIRST = "0001"


def newest() -> str:
    """The version that this jetloop writes."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def version(connection: sa.Connection) -> str | None:
    """The version of the tables; None while there are none."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells each of its steps
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and sa.inspect(connection).has_table("schema_version"):
        return FIRST
    return found


def upgrade(connection: sa.Connection, name: str) -> None:
    """Makes the tables or brings them up to date, within the caller's transaction; another process meanwhile waits.

    Args:
        connection: in a transaction that may write.
        name: of the store, for messages.

    Raises:
        OperatorError: the tables are of a version that this jetloop does not know.
    """
    lock(connection, Lock.MIGRATION, shared=False)
    before = version(connection)
    if before == newest():
        return
    must_be_known(before, name)
    config = _config()
    config.attributes["connection"] = connection
    if before is None:
        log.info("making the tables of %s, version %s", name, newest())
    else:
        log.info("bringing the tables of %s from version %s to %s", name, before, newest())
        if MigrationContext.configure(connection).get_current_revision() is None:
            command.stamp(config, before)
    command.upgrade(config, "head")
    if before == FIRST:  # from before the rollups
        rollups.rebuild(connection)


def must_be_known(found: str | None, name: str, *, current: bool = False) -> None:
    """Refuses tables that this jetloop cannot work with.

    Args:
        found: `version` of the store.
        name: of the store.
        current: for a reader: an older version is refused too.

    Raises:
        OperatorError: they are newer, or none of ours, or older than a reader can read.
    """
    known = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]
    if found is not None and found not in known:
        raise OperatorError(
            f"the store {name} has tables of version {found}, this jetloop knows versions up to {known[0]}: "
            "use the jetloop that made it, or a newer one"
        )
    if current and found is None:
        raise OperatorError(f"the store {name} has no tables yet; `jetloop collector --store {name}` makes them")
    if current and found != known[0]:
        raise OperatorError(
            f"the store {name} has tables of version {found}, this jetloop reads version {known[0]}: "
            f"`jetloop store upgrade --store {name}`, or start its collector, which does the same"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
