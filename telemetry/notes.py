"""What people write beside a robot or an event: who, when, what. The one table that the console writes.

It lies in the event store's database, and is made when the first note is written. Notes are never changed.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from serving.contracts.events import utc_now, uuid7
from serving.errors import OperatorError, RejectedError
from telemetry.databases import make_engine
from telemetry.store import open_reader
from telemetry.store_reading import described
from telemetry.tables import UtcDateTime

MAX_TEXT = 1000  # characters
_metadata = sa.MetaData()

notes = sa.Table(
    "notes",
    _metadata,
    sa.Column("id", sa.String(36), primary_key=True),  # UUIDv7
    sa.Column("subject", sa.String(300), nullable=False, index=True),  # `robot/<site>/<robot>` or `event/<id>`
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("author", sa.String(100), nullable=False),
    sa.Column("text", sa.String(MAX_TEXT), nullable=False),
)


class Notes:
    """Of one store. Connects when it is used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._writer: sa.Engine | None = None
        self._reader: sa.Engine | None = None

    def add(self, subject: str, author: str, text: str) -> None:
        """Keeps a note.

        Raises:
            RejectedError: it is empty or too long.
            OperatorError: the store cannot be written.
        """
        text = text.strip().replace("\0", "")
        if not text or len(text) > MAX_TEXT:
            raise RejectedError(f"a note has 1 to {MAX_TEXT} characters, this one has {len(text)}")
        row = {"id": uuid7(), "subject": subject, "at": utc_now(), "author": author[:100], "text": text}
        try:
            if self._writer is None:
                open_reader(self._url).close()  # a note makes no store where there is none
                writer = make_engine(self._url, create=True)
                _metadata.create_all(writer)
                self._writer = writer
            with self._writer.begin() as connection:
                connection.execute(notes.insert().values(row))
        except sa.exc.SQLAlchemyError as problem:
            raise OperatorError(f"the note was not kept, the store does not take it: {described(problem)}") from None

    def of(self, subject: str, limit: int = 50) -> list[Mapping[str, Any]]:
        """The notes of a robot or an event, newest first.

        Raises:
            OperatorError: the store does not answer.
        """
        try:
            if self._reader is None:
                self._reader = make_engine(self._url, create=False)
            if not sa.inspect(self._reader).has_table(notes.name):
                return []
            query = sa.select(notes).where(notes.c.subject == subject).order_by(notes.c.id.desc()).limit(limit)
            with self._reader.begin() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except sa.exc.SQLAlchemyError as problem:
            raise OperatorError(f"the notes cannot be read: {described(problem)}") from None


def subject_of_robot(site: str, robot: str) -> str:
    return f"robot/{site}/{robot}"


def subject_of_event(event_id: str) -> str:
    return f"event/{event_id}"
