"""Bytes to frames, with every way a peer can get it wrong named."""

import functools
from dataclasses import dataclass
from typing import Final

import polars as pl
import pyarrow as pa
from crc32c import crc32c
from pyarrow import ipc

from idlewatt.stream.encoding import SEAL, SEAL_BYTES
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.records import NAME_KEY, SCHEMAS, VERSION_KEY, Schema

_CONTINUATION: Final = b"\xff\xff\xff\xff"
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


def decode(message: bytes) -> tuple[Schema, pl.DataFrame]:
    """Decode one message into its schema and a frame with exactly that schema's columns.

    Unknown columns are dropped, missing optional ones are null. Raises UnreadableMessageError with reason
    not_arrow, checksum, unknown_schema, schema_version, missing_column, column_type or null_value.
    """
    schema, frame = read_message(message)
    refuse_nulls(schema, frame)
    return schema, frame


def read_message(message: bytes) -> tuple[Schema, pl.DataFrame]:
    """decode() without the check for missing values, which costs less over many messages at once."""
    layout = _layout(_schema_message(message))
    sealed = message[-SEAL_BYTES:-4] == SEAL
    if sealed and int.from_bytes(message[-4:], "little") != crc32c(message[:-SEAL_BYTES]):
        raise UnreadableMessageError("checksum", "the message's checksum does not fit its bytes")
    if not (sealed and layout.exact):
        return layout.schema, _read_foreign(layout.schema, message)
    # polars can abort the process over bytes that are no Arrow: it gets only what our own writer has sealed
    return layout.schema, pl.read_ipc_stream(message)


def refuse_nulls(schema: Schema, frame: pl.DataFrame) -> None:
    """Raise UnreadableMessageError (null_value) where a required column has a row without a value."""
    for name in schema.required:
        if frame.get_column(name).null_count():
            raise UnreadableMessageError("null_value", f"{schema.name}.{name} has rows without a value")


def _schema_message(message: bytes) -> bytes:
    """The bytes of the stream's first part, which holds the schema: the same for all messages of a kind."""
    if message[:4] != _CONTINUATION:
        raise UnreadableMessageError("not_arrow", "the message does not begin like an Arrow IPC stream")
    length = int.from_bytes(message[4:8], "little")
    if not 0 < length <= len(message) - 8 or length > 1 << 20:
        raise UnreadableMessageError("not_arrow", "the length of the Arrow schema makes no sense")
    return message[: 8 + length]


@dataclass(frozen=True, slots=True)
class _Layout:
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
    return _Layout(schema, exact=columns == [(field.name, field.type) for field in schema.arrow])


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
    return frame
