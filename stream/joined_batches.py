"""Record batches of many messages as one frame, without setting up a frame for each.

A record batch begins with a header that tells where in its body which buffer lies. A topic carries few different
headers: rows of one kind are laid out alike as long as there are as many of them, with texts as long. So a header
is understood once, by pyarrow; of every message with that header the buffers are then cut out at the same places,
and joined column by column.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from idlewatt.stream.records import Schema

_TEXT: Final = pa.large_string()
_OFFSET_BYTES: Final = 8
_NOTHING: Final = slice(0, 0)


@dataclass(frozen=True, slots=True)
class Column:
    """Where the buffers of one column lie in a message, and what they hold."""

    type: pa.DataType
    rows: int
    nulls: int
    validity: slice | None
    # of texts and lists: where each row's ends; the first offset stands before them
    ends: slice
    # of texts their bytes, of lists nothing, of other types the values
    data: slice
    # of texts: their bytes; of lists: their values
    size: int
    values: "Column | None"

    @property
    def joins(self) -> bool:
        """Whether its bytes can stand beside those of other messages: there are no nulls and no bits to be moved."""
        whole = self.type != pa.bool_() or self.rows % 8 == 0
        return self.nulls == 0 and whole and (self.values is None or self.values.joins)

    def slices(self) -> Iterator[slice]:
        """What _joined() needs, in its order."""
        if self.values is not None or self.type == _TEXT:
            yield slice(self.ends.start - _OFFSET_BYTES, self.ends.start) if self.rows else _NOTHING
            yield self.ends
        if self.values is not None:
            yield from self.values.slices()
        else:
            yield self.data

    def array(self, message: pa.Buffer) -> pa.Array:
        """The column of one message."""
        validity = None if self.validity is None else _cut(message, self.validity)
        offsets = slice(self.ends.start - _OFFSET_BYTES, self.ends.stop) if self.rows else _NOTHING
        if self.values is not None:
            buffers = [validity, _cut(message, offsets)]
            values = [self.values.array(message)]
            return pa.Array.from_buffers(self.type, self.rows, buffers, self.nulls, children=values)
        data = _cut(message, self.data)
        buffers = [validity, _cut(message, offsets), data] if self.type == _TEXT else [validity, data]
        return pa.Array.from_buffers(self.type, self.rows, buffers, self.nulls)


def _cut(buffer: pa.Buffer, where: slice) -> pa.Buffer:
    return buffer.slice(where.start, where.stop - where.start)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Of all messages whose record batch has the same header."""

    rows: int
    columns: tuple[Column, ...]
    # a message to all slices of all columns, in one call
    cut: Any


@functools.lru_cache(maxsize=4096)
def layout_of(schema: Schema, wanted: tuple[str, ...], header: bytes, at: int, body: int) -> Layout | None:
    """The layout of the wanted columns; None if this is no header of one plain record batch
    with so large a body, or one without a required value.

    `header`: of the record batch, with the bytes that tell its length; `at`: where it stands in the message;
    `body`: bytes between the header and the end of the stream.
    """
    # the values do not matter to where they lie
    buffer = pa.py_buffer(header + bytes(body))
    try:
        message = ipc.read_message(buffer)
        if message.type != "record batch" or message.body.size != body:
            return None
        batch = ipc.read_record_batch(message, schema.arrow)
        if any(batch.column(name).null_count for name in schema.required):
            return None
        first = buffer.address - at
        columns = tuple(_column(batch.column(name), first, at + buffer.size) for name in wanted)
    except (pa.ArrowException, OSError, ValueError):
        return None
    # itemgetter gives a tuple only of two and more: the last is not used
    slices = [*(part for column in columns for part in column.slices()), _NOTHING]
    return Layout(batch.num_rows, columns, itemgetter(*slices))


def _column(array: pa.Array, first: int, end: int) -> Column:
    """Raises ValueError if a buffer does not lie in the message, as of one that is compressed."""
    rows = len(array)
    buffers = array.buffers()

    def place(buffer: pa.Buffer | None, size: int | None = None, skip: int = 0) -> slice:
        if buffer is None or size == 0:
            return _NOTHING
        start = buffer.address - first + skip
        stop = start + (buffer.size - skip if size is None else size)
        if not 0 <= start <= stop <= end or stop > buffer.address - first + buffer.size:
            raise ValueError("a buffer does not lie in the message")
        return slice(start, stop)

    validity = place(buffers[0], (rows + 7) // 8) if array.null_count else None
    ends = data = _NOTHING
    size = 0
    values = None
    if pa.types.is_large_list(array.type):
        ends = place(buffers[1], rows * _OFFSET_BYTES, _OFFSET_BYTES)
        values = _column(array.values, first, end)
        size = values.rows
    elif array.type == _TEXT:
        ends = place(buffers[1], rows * _OFFSET_BYTES, _OFFSET_BYTES)
        size = buffers[2].size if buffers[2] is not None else 0
        data = place(buffers[2], size)
    else:
        data = place(buffers[1], (rows * array.type.bit_width + 7) // 8)
    return Column(array.type, rows, array.null_count, validity, ends, data, size, values)


def join(
    messages: Sequence[bytes],
    layouts: Sequence[Layout],
    cuts: Sequence[Sequence[bytes]],
    schema: Schema,
    wanted: tuple[str, ...],
) -> pl.DataFrame:
    """The wanted columns of all messages, in their order. Raises pa.ArrowException if texts or lists make no sense.

    `cuts`: what each layout cuts out of its message.
    """
    parts = iter(zip(*cuts, strict=True))
    message_of = _message_of([layout.rows for layout in layouts])
    different = set(layouts)
    arrays = []
    for place, name in enumerate(wanted):
        columns = [layout.columns[place] for layout in layouts]
        if all(layout.columns[place].joins for layout in different):
            array = _joined(schema.arrow.field(name).type, columns, parts, message_of)
        else:
            for _ in columns[0].slices():
                next(parts)
            found = [
                column.array(pa.py_buffer(message)) for column, message in zip(columns, messages, strict=True)
            ]
            array = pa.concat_arrays(found)
        # of the offsets only the places were seen until now
        array.validate(full=True)
        arrays.append(array)
    frame = pl.from_arrow(pa.RecordBatch.from_arrays(arrays, names=list(wanted)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _joined(
    kind: pa.DataType, columns: Sequence[Column], parts: Iterator[Sequence[bytes]], message_of: pa.Array
) -> pa.Array:
    """One column of all messages. `message_of`: see _message_of()."""
    rows = len(message_of) - 1
    if kind != _TEXT and not pa.types.is_large_list(kind):
        return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(b"".join(next(parts)))])
    firsts = b"".join(next(parts))
    ends = pa.py_buffer(b"".join((bytes(_OFFSET_BYTES), *next(parts))))
    before = pa.array([0, *itertools.accumulate(column.size for column in columns)], pa.int64())
    within = pa.Array.from_buffers(pa.int64(), rows + 1, [None, ends])
    offsets = pc.add(within, before.take(message_of))
    # a writer may hand over a part of a column with the values of other rows before and after it
    last = pa.array(itertools.accumulate(column.rows for column in columns), pa.int64())
    if firsts.strip(b"\0") or not offsets.take(last).equals(before[1:]):
        raise pa.ArrowInvalid("texts or lists with values of no row")
    offsets = offsets.buffers()[1]
    if kind == _TEXT:
        return pa.Array.from_buffers(kind, rows, [None, offsets, pa.py_buffer(b"".join(next(parts)))])
    inner = [column.values for column in columns if column.values is not None]
    values = _joined(kind.value_type, inner, parts, _message_of([column.rows for column in inner]))
    return pa.Array.from_buffers(kind, rows, [None, offsets], children=[values])


def _message_of(rows: Sequence[int]) -> pa.Array:
    """The place of the message that each offset is of: the first, and then one for each row."""
    return repeated([0, *range(len(rows))], [1, *rows]).to_arrow()


def repeated(values: Sequence[int], counts: Sequence[int]) -> pl.Series:
    """Each value as often as its count says."""
    columns = {"value": pl.Series(values, dtype=pl.Int64), "count": pl.Series(counts, dtype=pl.Int64)}
    return pl.select(columns["value"].repeat_by(columns["count"]).explode(empty_as_null=False)).to_series()
