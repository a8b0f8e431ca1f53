"""Messages of another writer or another minor version: read with pyarrow, which survives any bytes, once it is sure that
they open to no more than messages of ours.
"""

from typing import Final

import polars as pl
import pyarrow as pa
from pyarrow import ipc

from idlewatt.stream.arrow_sizes import sizes
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.records import Schema
from idlewatt.stream.topics import MAX_MESSAGE_BYTES

# What another writer's message may open to. It may be compressed, and a dictionary's value stands for any number of rows:
# in a few kilobytes there is room for more than any memory holds.
_MOST_ROWS: Final = 1 << 17
_MOST_BYTES: Final = 2 * MAX_MESSAGE_BYTES
# a value and where it lies
_VALUE_BYTES: Final = 16


def read_foreign(schema: Schema, message: bytes) -> pl.DataFrame:
    """A message of another writer or another minor version. Raises whatever comes of bytes that are no stream."""
    for upto in sizes(message):
        if upto.rows > _MOST_ROWS or upto.opened_bytes > _MOST_BYTES:
            raise _too_large(f"{upto.rows} rows and {upto.opened_bytes} bytes")
    table = ipc.open_stream(message).read_all()
    missing = [name for name in schema.required if name not in table.column_names]
    if missing:
        raise UnreadableMessageError("missing_column", f"{schema.name} lacks {', '.join(missing)}")
    # what we do not know is not looked at
    table = table.select([name for name in schema.arrow.names if name in table.column_names])
    given = dict(zip(table.column_names, table.columns, strict=True))
    for name, column in given.items():
        if not _is_readable(column.type):
            raise UnreadableMessageError("column_type", f"{schema.name}.{name} is {column.type}")
    # to validate all is to read each value, and many may show the same bytes
    table.validate()
    shown_bytes = sum(_shown_bytes(chunk) for column in given.values() for chunk in column.chunks)
    if shown_bytes > _MOST_BYTES:
        raise _too_large(f"{shown_bytes} bytes")
    table.validate(full=True)
    try:
        plain_bytes = sum(_plain_bytes(chunk) for column in given.values() for chunk in column.chunks)
        if plain_bytes > _MOST_BYTES:
            raise _too_large(f"{plain_bytes} bytes")
        columns = [
            _plain(given[field.name]).cast(field.type)
            if field.name in given
            else pa.nulls(table.num_rows, field.type)
            for field in schema.arrow
        ]
        table = pa.table(columns, names=schema.arrow.names)
        # polars believes whatever a cast has made
        table.validate(full=True)
    except (pa.ArrowException, KeyError) as error:
        raise UnreadableMessageError(
            "column_type", f"a column of {schema.name} has the wrong type: {error}"
        ) from error
    _without_nulls(schema, table)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _without_nulls(schema: Schema, table: pa.Table) -> None:
    for name in schema.required:
        if table.column(name).null_count:
            raise UnreadableMessageError("null_value", f"{schema.name}.{name} has rows without a value")


def _is_readable(kind: pa.DataType) -> bool:
    """Values, names in dictionaries, and lists of these. Those of views of lists pyarrow casts wrongly."""
    if isinstance(kind, pa.BaseExtensionType):
        return _is_readable(kind.storage_type)
    if (
        pa.types.is_dictionary(kind)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    ):
        return _is_readable(kind.value_type)
    return not (pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind))


def _too_large(what: str) -> UnreadableMessageError:
    return UnreadableMessageError(
        "not_arrow", f"the Arrow stream opens to {what}, more than any message of ours"
    )


def _plain_bytes(array: pa.Array) -> int:
    """The most that its values take once each row has its own."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _plain_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return len(array) * (_VALUE_BYTES + _longest(array.dictionary))
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return len(array) * _VALUE_BYTES + _plain_bytes(array.values)
    return int(array.nbytes) + _shown_bytes(array)


def _shown_bytes(array: pa.Array) -> int:
    """What views of text show, each by itself, by their lengths alone; 0 of what is no view."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _shown_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return _shown_bytes(array.dictionary)
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _shown_bytes(array.values)
    if not (pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)):
        return 0
    # four integers each, of which the first is the length
    words = pa.Array.from_buffers(pa.int32(), 4 * (array.offset + len(array)), [None, array.buffers()[1]])
    lengths = pl.Series(words[4 * array.offset :]).gather_every(4)
    return int(lengths.filter(pl.Series(array.is_valid())).cast(pl.Int64).sum())


def _longest(values: pa.Array) -> int:
    """The most bytes that one of them takes."""
    if (
        pa.types.is_string(values.type)
        or pa.types.is_large_string(values.type)
        or pa.types.is_string_view(values.type)
    ):
        longest = pl.Series(values).str.len_bytes().max()
        return longest if isinstance(longest, int) else 0
    if pa.types.is_primitive(values.type):
        return _VALUE_BYTES
    return _plain_bytes(values)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column
    # a cast cannot do so for lists
    return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
