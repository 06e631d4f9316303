"""The Parquet files of an archive: their columns, how events become files, how files are read.

Date and site are in the path alone, as Hive, Spark and Athena expect it. A new column goes to the end of `COLUMNS` with
the next SCHEMA; files that lack it read as null there. Columns are not renamed, and keep their types.
"""

import datetime
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from telemetry.archive_manifest import EVENTS, File
from telemetry.archive_places import Place

SCHEMA = 1
_MOMENT = pa.timestamp("us", "UTC")
COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("robot", pa.string(), nullable=False),
        pa.field("session", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("release", pa.string(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("captured_at", _MOMENT, nullable=False),
        pa.field("sent_at", _MOMENT),
        pa.field("received_at", _MOMENT, nullable=False),
        pa.field("data", pa.string(), nullable=False),  # JSON
    ]
)
PARTITIONS = pa.schema([pa.field("date", pa.date32(), nullable=False), pa.field("site", pa.string(), nullable=False)])
_ORDER = [("date", "ascending"), ("site", "ascending"), ("robot", "ascending"), ("sequence", "ascending")]
_ROWS_OF_A_GROUP = 128 * 1024


def partitions(events: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """Divides events (COLUMNS and `site`) by date and site, each in the order of robot and sequence."""
    dates = events["captured_at"].cast(pa.timestamp("us")).cast(pa.date32())
    ordered = events.append_column("date", dates).sort_by(_ORDER)
    counted = ordered.group_by(["date", "site"], use_threads=False).aggregate([([], "count_all")])
    start = 0
    for row in counted.to_pylist():  # in the order of their first rows
        rows = row["count_all"]
        yield row["date"].isoformat(), row["site"], ordered.slice(start, rows).select(COLUMNS.names)
        start += rows


def write(place: Place, date: str, site: str, events: pa.Table) -> File:
    """Writes one file, which belongs to the archive when a manifest names it.

    Raises:
        OperatorError: the place does not take it.
    """
    made = COLUMNS.with_metadata({"jetloop.schema": str(SCHEMA)})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, made, compression="zstd", use_dictionary=["robot", "session", "type", "release", "engine"]
    ) as writer:
        writer.write_table(events.cast(COLUMNS).replace_schema_metadata(made.metadata), _ROWS_OF_A_GROUP)
    data = sink.getvalue()
    path = f"{EVENTS}date={date}/site={site}/{uuid.uuid4()}.parquet"
    place.put(path, memoryview(data).tobytes())
    return File(path=path, date=date, site=site, rows=events.num_rows, bytes=len(data), schema=SCHEMA)


def read(place: Place, files: Sequence[File]) -> Any:
    """A pyarrow dataset of these files and no others, with the columns `date` and `site`."""
    day, site = ds.field("date"), ds.field("site")
    return ds.FileSystemDataset.from_paths(
        [file.path for file in files],
        schema=pa.schema([*COLUMNS, *PARTITIONS]),
        format=ds.ParquetFileFormat(),
        filesystem=place.filesystem(),
        partitions=[
            (day == pa.scalar(datetime.date.fromisoformat(file.date), pa.date32())) & (site == file.site)
            for file in files
        ],
    )
