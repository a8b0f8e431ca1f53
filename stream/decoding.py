"""Bytes to frames, with every way a peer can get it wrong named.

Messages are read many at a time. What our own writer has sealed goes to polars as one stream of as many record
batches as there are messages: setting up a frame for each would cost several times its rows.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl
import pyarrow as pa
from crc32c import crc32c
from pyarrow import ipc

from idlewatt.stream.encoding import END_OF_STREAM, SEAL, SEAL_BYTES
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.records import NAME_KEY, SCHEMAS, VERSION_KEY, Schema

_CONTINUATION: Final = b"\xff\xff\xff\xff"
_TAIL_BYTES: Final = len(END_OF_STREAM) + SEAL_BYTES
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

    frame: pl.DataFrame
    # which message each row came in: its place in the sequence that was decoded
    message: pl.Series
    # all of them, also those without rows
    messages: list[int]


def schema_of(message: bytes) -> Schema:
    """What kind of rows the message has. Raises UnreadableMessageError like decode()."""
    return _layout(_schema_message(message)).schema


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
) -> tuple[Mapping[Schema, Rows], Mapping[int, UnreadableMessageError]]:
    """decode() of many messages: rows by schema, and what is wrong with those messages that cannot be read, by place."""
    sealed: dict[_Layout, list[int]] = {}
    foreign: list[tuple[int, _Layout]] = []
    faults: dict[int, UnreadableMessageError] = {}
    layout: _Layout | None = None
    for place, message in enumerate(messages):
        try:
            # most messages begin like the one before
            if layout is None or not message.startswith(layout.head):
                layout = _layout(_schema_message(message))
            if _is_sealed(message) and layout.exact:
                sealed.setdefault(layout, []).append(place)
            else:
                foreign.append((place, layout))
        except UnreadableMessageError as fault:
            faults[place] = fault
    parts: dict[Schema, list[_Part]] = {}
    for layout, places in sealed.items():
        # polars can abort the process over bytes that are no Arrow: it gets only what our own writer has sealed
        frame = _read_sealed(layout, [messages[place] for place in places])
        if frame is None:
            foreign += [(place, layout) for place in places]
        else:
            counts = [_row_count(messages[place]) for place in places]
            parts.setdefault(layout.schema, []).append(_Part(places, counts, frame))
    for place, layout in foreign:
        try:
            frame = _read_foreign(layout.schema, messages[place])
        except UnreadableMessageError as fault:
            faults[place] = fault
        else:
            parts.setdefault(layout.schema, []).append(_Part([place], [frame.height], frame))
    return {schema: _checked(schema, found, faults) for schema, found in parts.items()}, faults


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of some messages: their places, and how many rows each brought."""

    places: list[int]
    counts: list[int]
    frame: pl.DataFrame

    def message_of_rows(self) -> pl.Series:
        counted = pl.DataFrame({"place": self.places, "rows": self.counts})
        return counted.select(
            pl.col("place").cast(pl.Int64).repeat_by("rows").explode(empty_as_null=False)
        ).to_series()


def _checked(schema: Schema, parts: list[_Part], faults: dict[int, UnreadableMessageError]) -> Rows:
    """The parts as one, without messages in which a required value is missing."""
    places = pl.concat([part.message_of_rows() for part in parts])
    frame = pl.concat([part.frame for part in parts]).rechunk()
    missing = [name for name in schema.required if frame.get_column(name).null_count()]
    for name in missing:
        for place in places.filter(frame.get_column(name).is_null()).unique():
            faults[place] = UnreadableMessageError(
                "null_value", f"{schema.name}.{name} has rows without a value"
            )
    if missing:
        whole = ~places.is_in(list(faults))
        frame, places = frame.filter(whole), places.filter(whole)
    if len(parts) > 1:
        order = places.arg_sort()
        frame, places = frame[order], places.gather(order)
    return Rows(
        frame, places, sorted(place for part in parts for place in part.places if place not in faults)
    )


def _is_sealed(message: bytes) -> bool:
    """Whether our writer made it. Raises UnreadableMessageError (checksum) if it was damaged since."""
    if message[-8:-4] != SEAL or message[-_TAIL_BYTES:-SEAL_BYTES] != END_OF_STREAM:
        return False
    if int.from_bytes(message[-4:], "little") != crc32c(memoryview(message)[:-8]):
        raise UnreadableMessageError("checksum", "the message's checksum does not fit its bytes")
    return True


def _row_count(message: bytes) -> int:
    """What the seal says."""
    return int.from_bytes(message[-SEAL_BYTES:-8], "little")


def _read_sealed(layout: "_Layout", messages: Sequence[bytes]) -> pl.DataFrame | None:
    """Their rows, in their order; None if they are not what their seals say."""
    head = len(layout.head)
    # polars would copy the bytes of a joined stream once more
    stream = io.BytesIO()
    stream.write(layout.head)
    stream.writelines(memoryview(message)[head:-_TAIL_BYTES] for message in messages)
    stream.write(END_OF_STREAM)
    stream.seek(0)
    try:
        frame = pl.read_ipc_stream(stream)
    except pl.exceptions.PolarsError:
        return None
    return frame if frame.height == sum(map(_row_count, messages)) else None


def _schema_message(message: bytes) -> bytes:
    """The bytes of the stream's first part, which holds the schema: the same for all messages of a kind."""
    if message[:4] != _CONTINUATION:
        raise UnreadableMessageError("not_arrow", "the message does not begin like an Arrow IPC stream")
    length = int.from_bytes(message[4:8], "little")
    if not 0 < length <= len(message) - 8 or length > 1 << 20:
        raise UnreadableMessageError("not_arrow", "the length of the Arrow schema makes no sense")
    return message[: 8 + length]


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    # the bytes that describe it
    head: bytes
    schema: Schema
    # the columns are the schema's, in its order and types
    exact: bool


# Looking at a schema costs several times the decoding of a whole message, and a topic carries few different ones.
@functools.lru_cache(maxsize=256)
def _layout(schema_message: bytes) -> _Layout:
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
    exact = columns == [(field.name, field.type) for field in schema.arrow]
    return _Layout(schema_message, schema, exact)


def _read_foreign(schema: Schema, message: bytes) -> pl.DataFrame:
    """Messages of another writer or another minor version, through pyarrow, which survives any bytes."""
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
            table.column(field.name).cast(field.type)
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
    return frame.rechunk()
