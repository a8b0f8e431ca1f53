"""What an Arrow stream opens to, read from its headers before anything is opened.

Another writer may compress the buffers of its columns: twenty kilobytes then open to any number of gigabytes. How many
rows there are stands in the header of each record batch and dictionary, and what a compressed buffer opens to before its
bytes (https://arrow.apache.org/docs/format/Columnar.html, Message.fbs).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from pyarrow import ipc

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_I64: Final = struct.Struct("<q")
# of a column its rows and nulls; of a buffer its place and size
_PAIR: Final = struct.Struct("<qq")
# fields of Message, DictionaryBatch and RecordBatch, by their number
_VERSION, _HEADER, _CUSTOM = 0, 2, 4
_BATCH, _IS_DELTA = 1, 2
_COLUMNS, _BUFFERS, _COMPRESSION = 1, 2, 3
# Arrow 0.17 says in the custom metadata that it compresses, and pyarrow still believes it
_V4: Final = 3
# What a batch takes beside its columns, and each of them, whatever is in it: a stream may be made of any number of empty
# ones. Measured: 25 KB and a quarter of a millisecond for a batch of six columns.
_COLUMN_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Sizes:
    # the most of any column, also within lists, of all record batches and dictionaries together
    rows: int
    opened_bytes: int


def sizes(message: bytes) -> Iterator[Sizes]:
    """Up to each of its parts, so that nobody need read on who has heard enough.

    Raises struct.error or what pyarrow raises over bytes that are no stream.
    """
    rows = opened_bytes = in_dictionaries = 0
    for part in ipc.MessageReader.open_stream(message):
        if part.type not in ("record batch", "dictionary"):
            continue
        header = part.metadata.to_pybytes()
        outer = batch = _table(header, _field(header, _table(header, 0), _HEADER))
        if part.type == "dictionary":
            batch = _table(header, _field(header, outer, _BATCH))
        found = _sizes_of_batch(header, batch, b"" if part.body is None else part.body)
        rows += found.rows
        opened_bytes += found.opened_bytes
        if part.type == "dictionary":
            in_dictionaries += found.opened_bytes
            if _field(header, outer, _IS_DELTA):
                # to add to a dictionary is to copy it
                opened_bytes += in_dictionaries
        yield Sizes(rows, opened_bytes)


def _sizes_of_batch(header: bytes, batch: int, body: bytes | pa.Buffer) -> Sizes:
    rows = [rows for rows, _ in _pairs(header, _field(header, batch, _COLUMNS))]
    buffers = _pairs(header, _field(header, batch, _BUFFERS))
    if _field(header, batch, _COMPRESSION) or _may_be_compressed(header):
        opened = [_opened_bytes(body, place, size) for place, size in buffers]
    else:
        opened = [size for _, size in buffers]
    # of buffers that belong to no column pyarrow takes any size
    opened_bytes = sum(max(size, 0) for size in opened)
    return Sizes(max(rows, default=0), opened_bytes + _COLUMN_BYTES * (1 + len(rows)))


def _may_be_compressed(header: bytes) -> bool:
    message = _table(header, 0)
    version = _field(header, message, _VERSION)
    is_old = version > 0 and _U16.unpack_from(header, version)[0] == _V4
    return is_old and _field(header, message, _CUSTOM) > 0


def _opened_bytes(body: bytes | pa.Buffer, place: int, size: int) -> int:
    if size < _I64.size:
        return size
    (opened,) = _I64.unpack_from(body, place)
    # it stands there as it is
    return size if opened < 0 else int(opened)


# What follows reads flatbuffers.


def _table(header: bytes, at: int) -> int:
    """The table that the offset at this place leads to."""
    return at + int(_U32.unpack_from(header, at)[0])


def _field(header: bytes, table: int, number: int) -> int:
    """Where the field of the table stands; 0 if it has its default."""
    fields = table - _I32.unpack_from(header, table)[0]
    entry = _U16.size * (2 + number)
    (place,) = (
        _U16.unpack_from(header, fields + entry) if entry < _U16.unpack_from(header, fields)[0] else (0,)
    )
    return table + place if place else 0


def _pairs(header: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Of the vector that the offset at this place leads to; none if there is no such place."""
    if not at:
        return iter(())
    vector = _table(header, at)
    first = vector + _U32.size
    return _PAIR.iter_unpack(header[first : first + _PAIR.size * _U32.unpack_from(header, vector)[0]])
