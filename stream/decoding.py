"""Bytes to frames, with every way a peer can get it wrong named.

Messages are read many at a time. What our own writer has sealed is cut and joined as it lies; the rest goes through
pyarrow, one by one, which survives any bytes.
"""

import functools
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl
import pyarrow as pa
from crc32c import crc32c
from pyarrow import ipc

from idlewatt.stream.encoding import END_OF_STREAM, SEAL, named
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.joined_batches import Layout, Layouts, join, repeated
from idlewatt.stream.records import NAME_KEY, SCHEMAS, VERSION_KEY, Schema
from idlewatt.stream.rosters import Rosters

_CONTINUATION: Final = b"\xff\xff\xff\xff"
# the end of the stream, and the seal: rows, mark, checksum
_TAIL: Final = struct.Struct("<8sI4sI")
_POLARS_TYPES: Final[dict[pa.DataType, pl.DataType]] = {
    pa.int64(): pl.Int64(),
    pa.float64(): pl.Float64(),
    pa.large_string(): pl.String(),
    pa.bool_(): pl.Boolean(),
    pa.large_list(pa.large_string()): pl.List(pl.String()),
}


@functools.cache
def frame_schema(schema: Schema) -> pl.Schema:
    """The schema as polars types, in the order of the row's fields."""
    return pl.Schema({field.name: _POLARS_TYPES[field.type] for field in schema.arrow})


def empty_frame(schema: Schema) -> pl.DataFrame:
    """A frame of the schema with no rows."""
    return pl.DataFrame(schema=frame_schema(schema))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of all messages of one schema, in the order of the messages."""

    # with all wanted columns; or with those that are no names and `entity`, the place of a row's names in the rosters
    frame: pl.DataFrame
    # which message each row came in: its place in the sequence that was decoded
    message: pl.Series
    # all of them, also those without rows
    messages: list[int]


def schema_of(message: bytes) -> Schema:
    """What kind of rows the message has. Raises UnreadableMessageError like decode()."""
    return _stream(_schema_message(message)).schema


def decode(message: bytes) -> tuple[Schema, pl.DataFrame]:
    """Decode one message into its schema and a frame with exactly that schema's columns.

    Unknown columns are dropped, missing optional ones are null. Raises UnreadableMessageError with reason
    not_arrow, checksum, unknown_schema, schema_version, missing_column, column_type or null_value.
    """
    found, faults = decode_all([message])
    for fault in faults.values():
        raise fault
    ((schema, rows),) = found.items()
    return schema, rows.frame


def decode_all(
    messages: Sequence[bytes],
    wanted: Mapping[Schema, Sequence[str]] | None = None,
    rosters: Mapping[Schema, Rosters] | None = None,
) -> tuple[Mapping[Schema, Rows], Mapping[int, UnreadableMessageError]]:
    """decode() of many messages: rows by schema, and what is wrong with those messages that cannot be read, by place.

    `wanted`: the columns that the caller needs; without it, and of other schemas, all. `rosters`: of kinds of rows
    whose names are wanted there and not in each row.
    """
    sealed: dict[Layouts, list[tuple[int, Layout, Sequence[bytes], bytes]]] = defaultdict(list)
    foreign: list[tuple[int, Schema]] = []
    faults: dict[int, UnreadableMessageError] = {}
    columns = {schema: tuple(names) for schema, names in (wanted or {}).items()}
    kept = rosters or {}
    stream: _Stream | None = None
    for place, message in enumerate(messages):
        try:
            # most messages begin like the one before
            if stream is None or not message.startswith(stream.head):
                stream = _stream(_schema_message(message))
                layouts = _layouts(
                    stream, columns.setdefault(stream.schema, tuple(stream.schema.arrow.names))
                )
            layout = _sealed_layout(message, layouts)
        except UnreadableMessageError as fault:
            faults[place] = fault
        else:
            if layouts is None or layout is None:
                foreign.append((place, stream.schema))
            else:
                # now that its checksum has brought the message into the processor's cache
                digest = layouts.roster(message, layout) if layouts.names else b""
                sealed[layouts].append((place, layout, layout.cut(message), digest))
    parts: dict[Schema, list[_Part]] = defaultdict(list)
    for layouts, found in sealed.items():
        schema = layouts.schema
        places, of_each, cuts, digests = zip(*found, strict=True)
        known = kept.get(schema) or Rosters(schema, columns[schema])
        try:
            frame = join(layouts, [messages[place] for place in places], of_each, cuts, digests, known)
        except pa.ArrowException:
            foreign += [(place, schema) for place in places]
        else:
            if "entity" in frame.columns and schema not in kept:
                frame = frame.hstack(known.names[frame["entity"]])
            frame = _as_wanted(frame, schema, columns[schema], kept.get(schema))
            parts[schema].append(_Part(list(places), [layout.rows for layout in of_each], frame))
    for place, schema in foreign:
        try:
            frame = _read_foreign(schema, messages[place])
        except UnreadableMessageError as fault:
            faults[place] = fault
        else:
            frame = _as_wanted(frame, schema, columns[schema], kept.get(schema))
            parts[schema].append(_Part([place], [frame.height], frame))
    return {schema: _in_order(found) for schema, found in parts.items()}, faults


def _as_wanted(
    frame: pl.DataFrame, schema: Schema, columns: tuple[str, ...], rosters: Rosters | None
) -> pl.DataFrame:
    """Columns as in Rows, whichever way the message had its names."""
    if rosters is None:
        return frame.select(columns)
    if "entity" not in frame.columns:
        frame = rosters.numbered(frame.select(columns))
    return frame.select(*(name for name in columns if name not in schema.names), "entity")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of some messages: their places, and how many rows each brought."""

    places: list[int]
    counts: list[int]
    frame: pl.DataFrame


def _in_order(parts: list[_Part]) -> Rows:
    frame = pl.concat([part.frame for part in parts])
    places = [place for part in parts for place in part.places]
    message = repeated(places, [count for part in parts for count in part.counts])
    if len(parts) > 1:
        order = message.arg_sort()
        frame, message = frame[order], message.gather(order)
    return Rows(frame, message, sorted(places))


def _sealed_layout(message: bytes, layouts: Layouts | None) -> Layout | None:
    """Where the columns lie; None if our writer did not make it, or not as one plain record batch.

    Raises UnreadableMessageError (checksum) if it was damaged since.
    """
    end = len(message) - _TAIL.size
    if end < 0:
        return None
    end_of_stream, rows, mark, checksum = _TAIL.unpack_from(message, end)
    if mark != SEAL or end_of_stream != END_OF_STREAM:
        return None
    if checksum != crc32c(memoryview(message)[:-8]):
        raise UnreadableMessageError("checksum", "the message's checksum does not fit its bytes")
    layout = layouts.of(message, end) if layouts is not None else None
    return layout if layout is not None and layout.rows == rows else None


def _schema_message(message: bytes) -> bytes:
    """The bytes of the stream's first part, which holds the schema: the same for all messages of a kind."""
    if message[:4] != _CONTINUATION:
        raise UnreadableMessageError("not_arrow", "the message does not begin like an Arrow IPC stream")
    length = int.from_bytes(message[4:8], "little")
    if not 0 < length <= len(message) - 8 or length > 1 << 20:
        raise UnreadableMessageError("not_arrow", "the length of the Arrow schema makes no sense")
    return message[: 8 + length]


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    # the bytes of its first part, which describes it
    head: bytes
    schema: Schema
    columns: list[tuple[str, pa.DataType]]


# Looking at a schema costs several times the decoding of a whole message, and a topic carries few different ones.
@functools.lru_cache(maxsize=256)
def _stream(schema_message: bytes) -> _Stream:
    try:
        arrow = ipc.read_schema(pa.py_buffer(schema_message))
        columns = [(field.name, field.type) for field in arrow]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableMessageError("not_arrow", f"the Arrow schema cannot be read: {error}") from error
    metadata = arrow.metadata or {}
    name = metadata.get(NAME_KEY, b"").decode(errors="replace")
    version = metadata.get(VERSION_KEY, b"").decode(errors="replace")
    schema = SCHEMAS.get(name)
    if schema is None:
        raise UnreadableMessageError(
            "unknown_schema", f"no schema is called {name!r}; known: {', '.join(SCHEMAS)}"
        )
    if version.partition(".")[0] != str(schema.major):
        raise UnreadableMessageError(
            "schema_version",
            f"{name} has version {version!r}, this Idlewatt reads {schema.major}.x: upgrade the older side",
        )
    return _Stream(schema_message, schema, columns)


@functools.lru_cache(maxsize=32)
def _layouts(stream: _Stream, wanted: tuple[str, ...]) -> Layouts | None:
    """None if the columns are not the schema's, in its order and types."""
    for known, is_apart in ((stream.schema.arrow, False), (named(stream.schema), True)):
        if stream.columns == [(field.name, field.type) for field in known]:
            return Layouts(stream.schema, wanted, stream.head, apart=is_apart)
    return None


def _read_foreign(schema: Schema, message: bytes) -> pl.DataFrame:
    """A message of another writer or another minor version."""
    try:
        table = ipc.open_stream(message).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise UnreadableMessageError("not_arrow", f"the Arrow stream cannot be read: {error}") from error
    missing = [name for name in schema.required if name not in table.column_names]
    if missing:
        raise UnreadableMessageError("missing_column", f"{schema.name} lacks {', '.join(missing)}")
    try:
        columns = [
            _plain(table.column(field.name)).cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema.arrow
        ]
    except (pa.ArrowException, KeyError) as error:
        raise UnreadableMessageError(
            "column_type", f"a column of {schema.name} has the wrong type: {error}"
        ) from error
    frame = pl.from_arrow(pa.table(columns, names=schema.arrow.names))
    assert isinstance(frame, pl.DataFrame)
    for name in schema.required:
        if frame.get_column(name).null_count():
            raise UnreadableMessageError("null_value", f"{schema.name}.{name} has rows without a value")
    return frame


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column
    # a cast cannot do so for lists
    return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
