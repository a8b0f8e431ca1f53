"""Where the columns lie in messages.

A message is a description of its columns, perhaps a roster (the dictionaries of its names), and a record batch. The
batch and each dictionary begin with a header that tells where behind it which buffer lies. A topic carries few different
headers: rows of one kind are laid out alike as long as there are as many of them, with texts as long. So a header is
understood once, by pyarrow; of whatever has the same header the buffers are then cut out at the same places, see
joined_batches.py.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa
from pyarrow import ipc
from xxhash import xxh3_64_intdigest

from idlewatt.stream.records import Schema

TEXT: Final = pa.large_string()
_OFFSET_BYTES: Final = 8
_NOTHING: Final = slice(0, 0)
_MOST_LAYOUTS: Final = 4096
# fifty times what ours take; whoever pads them is read without being remembered
_MOST_HEADER_BYTES: Final = 1 << 16
# sooner copied with what is wanted than cut out by itself
_SHORT_BYTES: Final = 1024
# what pyarrow raises over bytes that are no messages, and _column()
_DAMAGED: Final = (pa.ArrowException, OSError, EOFError, ValueError)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Where the buffers of one column lie in a body, and what they hold."""

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

    @property
    def is_plain(self) -> bool:
        """Whether it is nothing but numbers, as many in each body."""
        return self.joins and self.values is None and self.type != TEXT

    def slices(self) -> Iterator[slice]:
        """What joined_batches.py needs of it, in its order."""
        if self.values is not None or self.type == TEXT:
            yield slice(self.ends.start - _OFFSET_BYTES, self.ends.start) if self.rows else _NOTHING
            yield self.ends
        if self.values is not None:
            yield from self.values.slices()
        else:
            yield self.data

    def array(self, body: pa.Buffer) -> pa.Array:
        """The column of one body."""
        validity = None if self.validity is None else _cut(body, self.validity)
        offsets = slice(self.ends.start - _OFFSET_BYTES, self.ends.stop) if self.rows else _NOTHING
        if self.values is not None:
            buffers = [validity, _cut(body, offsets)]
            values = [self.values.array(body)]
            return pa.Array.from_buffers(self.type, self.rows, buffers, self.nulls, children=values)
        data = _cut(body, self.data)
        buffers = [validity, _cut(body, offsets), data] if self.type == TEXT else [validity, data]
        return pa.Array.from_buffers(self.type, self.rows, buffers, self.nulls)


def _cut(buffer: pa.Buffer, where: slice) -> pa.Buffer:
    return buffer.slice(where.start, where.stop - where.start)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Of all record batches with the same header; their body stands behind it."""

    header: bytes
    # of header and body
    batch_bytes: int
    rows: int
    # of all rows; then of names that stand once per entity, the places of the rows' entities among their values
    columns: tuple[Column, ...]
    places: tuple[Column, ...]
    # whether each column has its bytes for each row, and no others: bodies may stand one below the other
    is_plain: bool
    # places in a body: of what is plain those of all columns, a few that lie beside one another in one; else the whole
    spans: tuple[slice, ...]
    # a message to these parts of its body, in one call
    take: Any
    # a whole body to all slices of the columns, in one call
    cut: Any

    def where(self, column: Column) -> tuple[int, slice]:
        """The number of the span that the column, one of this layout's, lies in, and where in it."""
        data = column.data
        number, span = next(
            (number, span)
            for number, span in enumerate(self.spans)
            if span.start <= data.start and data.stop <= span.stop
        )
        return number, slice(data.start - span.start, data.stop - span.start)


@dataclass(frozen=True, slots=True, eq=False)
class RosterLayout:
    """Of all rosters whose dictionaries have the same headers."""

    entities: int
    # of all names
    values: tuple[Column, ...]
    # a roster to all slices of these columns, in one call
    cut: Any


class Layouts:
    """Those of the wanted columns of a schema's messages.

    `head`: the bytes that describe the columns, with which such a message begins. `apart`: names stand once per
    entity, as in encode_named().
    """

    def __init__(self, schema: Schema, wanted: tuple[str, ...], head: bytes, *, apart: bool) -> None:
        self.schema = schema
        self.names = tuple(name for name in wanted if apart and name in schema.names)
        self.columns = tuple(name for name in wanted if name not in self.names)
        self.apart = apart
        self._required_names = [name for name in schema.required if apart and name in schema.names]
        self._head_bytes = len(head)
        # of the digest of a roster, the bytes between the description and the record batch: what they mean is said there
        self.seed = xxh3_64_intdigest(head)
        # by header
        self._known: dict[bytes, Layout] = {}
        # length of a roster -> what cuts its headers out, the headers, and the layout
        self._known_rosters: defaultdict[int, list[tuple[Any, Sequence[bytes], RosterLayout]]] = defaultdict(
            list
        )
        self._count = 0

    def of(self, message: bytes, at: int, end: int) -> Layout | None:
        """None if no plain record batch stands from `at` to `end`, or it lacks a required value."""
        layout = self._known.get(message[at : _header_end(message, at)]) or self._learn(message, at, end)
        return layout if layout is not None and at + layout.batch_bytes == end else None

    def roster(self, message: bytes, at: int, end: int) -> tuple[RosterLayout, bytes] | None:
        """The roster of a message for which of() has found a layout; None if it is damaged or lacks a required name."""
        roster = message[self._head_bytes : at]
        for headers, found, layout in self._known_rosters.get(len(roster), ()):
            if headers(roster) == found:
                return layout, roster
        try:
            batch, parts, first = _opened(message, at, end)
            if any(batch.column(name).dictionary.null_count for name in self._required_names):
                return None
            where = first + self._head_bytes, len(roster)
            values = tuple(_column(batch.column(name).dictionary, *where) for name in self.names)
        except _DAMAGED:
            return None
        if len({column.rows for column in values}) > 1:
            return None
        self._make_room()
        skip = self._head_bytes
        headers = _cutting(slice(part.start - skip, part.stop - skip) for part in parts[1:-1])
        layout = RosterLayout(values[0].rows if values else 0, values, _cutting_columns(values))
        self._known_rosters[len(roster)].append((headers, headers(roster), layout))
        return layout, roster

    def _learn(self, message: bytes, at: int, end: int) -> Layout | None:
        try:
            batch, parts, first = _opened(message, at, end)
            if any(batch.column(name).null_count for name in self.schema.required):
                return None
            body = parts[-1].stop
            if body - at > _MOST_HEADER_BYTES:
                return None
            where = first + body, end - body
            columns = tuple(_column(batch.column(name), *where) for name in self.columns)
            places = tuple(_column(batch.column(name).indices, *where) for name in self.names)
        except _DAMAGED:
            return None
        if any(column.nulls for column in places):
            return None
        self._make_room()
        header = message[at:body]
        is_plain = batch.num_rows > 0 and all(column.is_plain for column in columns)
        spans = _spans((*columns, *places)) if is_plain else (slice(0, end - body),)
        # rosters before the batch differ in length; what follows it does not
        before_end = len(message) - body
        take = _cutting(slice(span.start - before_end, span.stop - before_end) for span in spans)
        cut = _cutting_columns((*columns, *places))
        layout = Layout(header, end - at, batch.num_rows, columns, places, is_plain, spans, take, cut)
        self._known[header] = layout
        return layout

    def _make_room(self) -> None:
        if self._count >= _MOST_LAYOUTS:
            self._known.clear()
            self._known_rosters.clear()
            self._count = 0
        self._count += 1


def _cutting(parts: Iterable[slice]) -> Any:
    # itemgetter gives a tuple only of two and more
    return itemgetter(*parts, _NOTHING, _NOTHING)


def _spans(columns: Iterable[Column]) -> tuple[slice, ...]:
    """Where these plain columns lie, with what lies between two of them if it is short."""
    found: list[slice] = []
    for data in sorted((column.data for column in columns), key=lambda data: data.start):
        if found and data.start - found[-1].stop <= _SHORT_BYTES:
            found[-1] = slice(found[-1].start, max(found[-1].stop, data.stop))
        else:
            found.append(data)
    return tuple(found)


def _cutting_columns(columns: Sequence[Column]) -> Any:
    return _cutting(part for column in columns for part in column.slices())


def _opened(message: bytes, at: int, end: int) -> tuple[pa.RecordBatch, list[slice], int]:
    """The record batch that stands from `at` to `end`, without the values, where headers stand, and the message's address.

    Raises one of _DAMAGED.
    """
    parts = _parts(message, end)
    if parts[-1].start != at:
        raise ValueError("the record batch stands elsewhere")
    # the values do not matter to where they lie
    blank = bytearray(len(message))
    for part in parts:
        blank[part] = message[part]
    buffer = pa.py_buffer(bytes(blank))
    batch = ipc.open_stream(buffer).read_next_batch()
    batch.validate()
    return batch, parts, buffer.address


def _parts(message: bytes, end: int) -> list[slice]:
    """Where the headers of schema, dictionaries and record batch stand. Raises ValueError where there are others."""
    found = []
    kinds = []
    at = 0
    buffer = pa.py_buffer(message)
    while (stop := _header_end(message, at)) > at + 8:
        part = ipc.read_message(buffer.slice(at))
        found.append(slice(at, stop))
        kinds.append(part.type)
        at = stop + (part.body.size if part.body is not None else 0)
    if at != end or kinds != ["schema", *["dictionary"] * (len(kinds) - 2), "record batch"]:
        raise ValueError("not one record batch")
    return found


def _header_end(message: bytes, at: int) -> int:
    # a mark, the length of what follows, and that
    return at + 8 + int.from_bytes(message[at + 4 : at + 8], "little")


def _column(array: pa.Array, first: int, size_bytes: int) -> Column:
    """Raises ValueError if a buffer does not lie where it should, as of one that is compressed."""
    rows = len(array)
    buffers = array.buffers()

    def place(buffer: pa.Buffer | None, size: int | None = None, skip: int = 0) -> slice:
        if buffer is None or size == 0:
            return _NOTHING
        start = buffer.address - first + skip
        stop = start + (buffer.size - skip if size is None else size)
        if not 0 <= start <= stop <= size_bytes or stop > buffer.address - first + buffer.size:
            raise ValueError("a buffer does not lie where it should")
        return slice(start, stop)

    validity = place(buffers[0], (rows + 7) // 8) if array.null_count else None
    ends = data = _NOTHING
    size = 0
    values = None
    if pa.types.is_large_list(array.type):
        ends = place(buffers[1], rows * _OFFSET_BYTES, _OFFSET_BYTES)
        values = _column(array.values, first, size_bytes)
        size = values.rows
    elif array.type == TEXT:
        ends = place(buffers[1], rows * _OFFSET_BYTES, _OFFSET_BYTES)
        size = buffers[2].size if buffers[2] is not None else 0
        data = place(buffers[2], size)
    else:
        data = place(buffers[1], (rows * array.type.bit_width + 7) // 8)
    return Column(array.type, rows, array.null_count, validity, ends, data, size, values)
