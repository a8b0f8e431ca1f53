"""Messages of many collectors as one frame, without setting up a frame for each.

A message is a record batch, before it perhaps the dictionaries of its names, and before each of these parts a header
that tells where in it which buffer lies. A topic carries few different headers: rows of one kind are laid out alike
as long as there are as many of them, with texts as long. So headers are understood once, by pyarrow; of every message
with the same headers the buffers are then cut out at the same places, and joined column by column. Dictionaries are
a roster that is learned once; see rosters.py.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from idlewatt.stream.records import Schema
from idlewatt.stream.rosters import Rosters

_TEXT: Final = pa.large_string()
_OFFSET_BYTES: Final = 8
_NOTHING: Final = slice(0, 0)
_MOST_LAYOUTS: Final = 4096
# what pyarrow raises over bytes that are no messages, and _column()
_DAMAGED: Final = (pa.ArrowException, OSError, EOFError, ValueError)


@dataclass(frozen=True, slots=True, eq=False)
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
    """Of all messages whose parts have the same headers."""

    rows: int
    # of all rows; then of names that stand once per entity, the places of the rows' entities among their values
    columns: tuple[Column, ...]
    places: tuple[Column, ...]
    # a message to all slices of these columns, in one call
    cut: Any
    # where the dictionaries stand, with the values of all names
    roster: slice
    values: tuple[Column, ...]
    cut_values: Any

    @property
    def entities(self) -> int:
        return self.values[0].rows if self.values else 0


class Layouts:
    """Those of the wanted columns of a schema's messages, found by the headers of a message.

    `apart`: in the messages, names stand once per entity, as in encode_named().
    """

    def __init__(self, schema: Schema, wanted: tuple[str, ...], head: bytes, *, apart: bool) -> None:
        self.schema = schema
        # what the dictionaries mean is said there
        self._seed = xxh3_64_intdigest(head)
        self.names = tuple(name for name in wanted if apart and name in schema.names)
        self.columns = tuple(name for name in wanted if name not in self.names)
        # length of a message -> what cuts its headers out, the headers, and the layout, if there is one
        self._known: defaultdict[int, list[tuple[Any, Sequence[bytes], Layout | None]]] = defaultdict(list)
        self._count = 0

    def of(self, message: bytes, end: int) -> Layout | None:
        """None if this is not one plain record batch whose last byte stands before `end`, or lacks a required value."""
        for headers, found, layout in self._known.get(len(message), ()):
            if headers(message) == found:
                return layout
        try:
            parts = _parts(message, end)
        except _DAMAGED:
            return None
        if self._count >= _MOST_LAYOUTS:
            self._known.clear()
            self._count = 0
        # the schema, which stands before all, is known; itemgetter gives a tuple only of two and more
        headers = itemgetter(*parts[1:], _NOTHING)
        layout = self._learn(message, parts)
        self._known[len(message)].append((headers, headers(message), layout))
        self._count += 1
        return layout

    def roster(self, message: bytes, layout: Layout) -> bytes:
        """A digest of the names in the message; equal if they are, and are wanted from the same columns."""
        return xxh3_128_digest(message[layout.roster], self._seed)

    def _learn(self, message: bytes, parts: Sequence[slice]) -> Layout | None:
        # the values do not matter to where they lie
        blank = bytearray(len(message))
        for part in parts:
            blank[part] = message[part]
        buffer = pa.py_buffer(bytes(blank))
        try:
            batch = ipc.open_stream(buffer).read_next_batch()
            batch.validate()
            if any(_nulls(batch.column(name)) for name in self.schema.required):
                return None
            where = buffer.address, len(message)
            columns = tuple(_column(batch.column(name), *where) for name in self.columns)
            places = tuple(_column(batch.column(name).indices, *where) for name in self.names)
            values = tuple(_column(batch.column(name).dictionary, *where) for name in self.names)
        except _DAMAGED:
            return None
        if len({column.rows for column in values}) > 1 or any(column.nulls for column in places):
            return None
        cuts = [
            itemgetter(*(part for column in some for part in column.slices()), _NOTHING, _NOTHING)
            for some in ((*columns, *places), values)
        ]
        roster = slice(parts[1].start, parts[-1].start)
        return Layout(batch.num_rows, columns, places, cuts[0], roster, values, cuts[1])


def _nulls(array: pa.Array) -> int:
    found: int = array.null_count
    return found + array.dictionary.null_count if pa.types.is_dictionary(array.type) else found


def _parts(message: bytes, end: int) -> list[slice]:
    """Where the headers of schema, dictionaries and record batch stand. Raises ValueError where there are others."""
    found = []
    kinds = []
    at = 0
    buffer = pa.py_buffer(message)
    while size := int.from_bytes(message[at + 4 : at + 8], "little"):
        part = ipc.read_message(buffer.slice(at))
        found.append(slice(at, at + 8 + size))
        kinds.append(part.type)
        at += 8 + size + (part.body.size if part.body is not None else 0)
    if at != end or kinds != ["schema", *["dictionary"] * (len(kinds) - 2), "record batch"]:
        raise ValueError("not one record batch")
    return found


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
    kind: Layouts,
    messages: Sequence[bytes],
    layouts: Sequence[Layout],
    cuts: Sequence[Sequence[bytes]],
    digests: Sequence[bytes],
    rosters: Rosters,
) -> pl.DataFrame:
    """The wanted columns of all messages, in their order; instead of names that stand once per entity, the `entity`.

    `cuts`: what each layout cuts out of its message; `digests`: of their rosters, see Layouts.roster(). Raises
    pa.ArrowException if the values make no sense.
    """
    parts = iter(zip(*cuts, strict=True))
    rows = [layout.rows for layout in layouts]
    frame = _frame(kind, kind.columns, messages, [layout.columns for layout in layouts], parts)
    if not kind.names:
        return frame
    places = [b"".join(next(parts)) for _ in kind.names]
    if any(other != places[0] for other in places):
        raise pa.ArrowInvalid("names that do not share their indices")
    place = pl.Series(_numbers(pa.int32(), sum(rows), places[0]))
    if not ((place >= 0) & (place < repeated([layout.entities for layout in layouts], rows))).all():
        raise pa.ArrowInvalid("a name that is in no dictionary")
    _learn_rosters(kind, messages, layouts, digests, rosters)
    firsts = repeated(rosters.firsts(digests), rows)
    return frame.with_columns((firsts + place).alias("entity"))


def _learn_rosters(
    kind: Layouts,
    messages: Sequence[bytes],
    layouts: Sequence[Layout],
    digests: Sequence[bytes],
    rosters: Rosters,
) -> None:
    """Read the names of messages whose roster is new."""
    if new := rosters.unknown(digests):
        their = [(layouts[place], messages[place]) for place in new.values()]
        parts = zip(*(layout.cut_values(message) for layout, message in their), strict=True)
        columns = [layout.values for layout, _ in their]
        names = _frame(kind, kind.names, [message for _, message in their], columns, iter(parts))
        rosters.learn(zip(new, (layout.entities for layout, _ in their), strict=True), names)


def _frame(
    kind: Layouts,
    names: Sequence[str],
    messages: Sequence[bytes],
    columns_of: Sequence[tuple[Column, ...]],
    parts: Iterator[Sequence[bytes]],
) -> pl.DataFrame:
    """Columns of all messages. `columns_of`: of each message, where they lie."""
    different = set(columns_of)
    arrays = []
    for place, name in enumerate(names):
        columns = [of[place] for of in columns_of]
        if all(of[place].joins for of in different):
            array = _joined(kind.schema.arrow.field(name).type, columns, parts)
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
    frame = pl.from_arrow(pa.RecordBatch.from_arrays(arrays, names=list(names)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _joined(kind: pa.DataType, columns: Sequence[Column], parts: Iterator[Sequence[bytes]]) -> pa.Array:
    """One column of all messages."""
    rows = [column.rows for column in columns]
    total = sum(rows)
    if kind != _TEXT and not pa.types.is_large_list(kind):
        return _numbers(kind, total, b"".join(next(parts)))
    firsts = b"".join(next(parts))
    within = pl.Series(_numbers(pa.int64(), total, b"".join(next(parts))))
    before = [0, *itertools.accumulate(column.size for column in columns)]
    offsets = pl.concat([pl.Series([0]), within + repeated(before[:-1], rows)], rechunk=True)
    # a writer may hand over a part of a column with the values of other rows before and after it
    last = pl.Series([*itertools.accumulate(rows)], dtype=pl.Int64)
    if firsts.strip(b"\0") or offsets.gather(last).to_list() != before[1:]:
        raise pa.ArrowInvalid("texts or lists with values of no row")
    ends = offsets.to_arrow().buffers()[1]
    if kind == _TEXT:
        return pa.Array.from_buffers(kind, total, [None, ends, pa.py_buffer(b"".join(next(parts)))])
    inner = [column.values for column in columns if column.values is not None]
    return pa.Array.from_buffers(kind, total, [None, ends], children=[_joined(kind.value_type, inner, parts)])


def _numbers(kind: pa.DataType, rows: int, values: bytes) -> pa.Array:
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(values)])


def repeated(values: Sequence[int], counts: Sequence[int]) -> pl.Series:
    """Each value as often as its count says."""
    # pyarrow looks for pandas whenever it is given a list
    runs = pl.DataFrame({"value": values, "count": counts}, schema={"value": pl.Int64, "count": pl.Int64})
    if 0 in counts:
        runs = runs.filter(pl.col("count") > 0)
    ends = runs["count"].cum_sum().to_arrow()
    return pl.Series(
        "value", pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, runs["value"].to_arrow()))
    )
