"""Bytes to frames, with every way a peer can get it wrong named.

Messages are read many at a time. What our own writer has sealed is cut and joined as it lies; the rest goes through
pyarrow, one by one, which survives any bytes.
"""

import contextlib
import functools
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl
import pyarrow as pa
from crc32c import crc32c
from polars.exceptions import PanicException
from pyarrow import ipc
from xxhash import xxh3_128_digest

from idlewatt.stream.encoding import END_OF_STREAM, SEAL, named
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.foreign_messages import read_foreign
from idlewatt.stream.joined_batches import join, learn, repeated
from idlewatt.stream.layouts import Layout, Layouts, RosterLayout
from idlewatt.stream.log import Values
from idlewatt.stream.records import NAME_KEY, SCHEMAS, VERSION_KEY, Schema
from idlewatt.stream.rosters import Rosters

_CONTINUATION: Final = b"\xff\xff\xff\xff"
# the end of the stream, and the seal: where the record batch begins, mark, checksum
_TAIL: Final = struct.Struct("<8sI4sI")
_NO_TAIL: Final = (b"", 0, b"", 0)
# what a CRC-32C comes to over bytes and their own CRC-32C behind them
_CRC_OF_WHOLE: Final = 0x48674BC7


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of all messages of one schema, in the order of the messages."""

    # with all wanted columns; or with those that are no names and `entity`, the place of a row's names in the rosters
    frame: pl.DataFrame
    # their places in the sequence that was decoded, also of those without rows; and how many rows each has
    messages: Sequence[int]
    counts: Sequence[int]

    def of_message(self, values: Sequence[int]) -> pl.Series:
        """For each row that of the values which its message has; there is one for each message that was decoded."""
        return repeated([values[place] for place in self.messages], self.counts)


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
    messages: Sequence[bytes] | Values,
    wanted: Mapping[Schema, Sequence[str]] | None = None,
    rosters: Mapping[Schema, Rosters] | None = None,
) -> tuple[Mapping[Schema, Rows], Mapping[int, UnreadableMessageError]]:
    """decode() of many messages: rows by schema, and what is wrong with those messages that cannot be read, by place.

    `messages` are asked for one by one, most of them once. `wanted`: the columns that the caller needs; without it, and
    of other schemas, all. `rosters`: of kinds of rows whose names are wanted there and not in each row.
    """
    columns = {schema: tuple(names) for schema, names in (wanted or {}).items()}
    kept = rosters or {}
    known = dict(kept)
    read = _Read(messages, columns, kept)
    found = _sorted_out(messages, columns, known, read)
    for layouts, new in found.new_rosters.items():
        # those whose names make no sense are missed when rows are joined
        with contextlib.suppress(pa.ArrowException):
            learn(layouts, new, known[layouts.schema])
    for (layouts, _), sealed in found.sealed.items():
        schema = layouts.schema
        try:
            frame = join(layouts, sealed.layouts, sealed.taken, sealed.digests, known[schema])
        except (pa.ArrowException, KeyError):
            for place in sealed.places:
                read.foreign(place, schema, messages[place])
        else:
            if "entity" in frame.columns and schema not in kept:
                frame = frame.hstack(known[schema].names[frame["entity"]])
            frame = _as_wanted(frame, schema, columns[schema], kept.get(schema))
            counts = [layout.rows for layout in sealed.layouts]
            read.parts[schema].append(_Part(sealed.places, counts, frame))
    return {schema: _in_order(parts) for schema, parts in read.parts.items()}, read.faults


class _Read:
    """What was read of messages, and what is wrong with those that cannot be, by place."""

    def __init__(
        self,
        messages: Sequence[bytes] | Values,
        columns: Mapping[Schema, tuple[str, ...]],
        rosters: Mapping[Schema, Rosters],
    ) -> None:
        self._messages = messages
        self._columns = columns
        self._rosters = rosters
        self.parts: defaultdict[Schema, list[_Part]] = defaultdict(list)
        self.faults: dict[int, UnreadableMessageError] = {}

    def foreign(self, place: int, schema: Schema, message: bytes) -> None:
        """Read with pyarrow one that is not as our own writer seals it."""
        try:
            rows = read_foreign(schema, message)
            frame = _as_wanted(rows, schema, self._columns[schema], self._rosters.get(schema))
        except UnreadableMessageError as fault:
            self.faults[place] = fault
            return
        # whatever pyarrow and polars raise over bytes; what the latter panics over is nobody's Exception
        except (Exception, PanicException) as error:
            self.faults[place] = UnreadableMessageError(
                "not_arrow", f"the Arrow stream cannot be read: {error}"
            )
            return
        if isinstance(self._messages, Values):
            self._messages.opened_bytes += int(rows.estimated_size())
        self.parts[schema].append(_Part([place], [frame.height], frame))


@dataclass(frozen=True, slots=True)
class _Sealed:
    """Of each message its place, its layout, what of its body is needed, and the digest of its roster."""

    places: list[int]
    layouts: list[Layout]
    taken: list[tuple[bytes, ...]]
    digests: list[bytes]


@dataclass(frozen=True, slots=True)
class _Found:
    """Messages as our own writer seals them, by how they are to be read."""

    # by layout if it is plain: bodies can stand one below the other
    sealed: dict[tuple[Layouts, Layout | None], _Sealed]
    # by digest
    new_rosters: defaultdict[Layouts, dict[bytes, tuple[RosterLayout, bytes]]]

    def of(self, layouts: Layouts, layout: Layout) -> _Sealed:
        key = layouts, layout if layout.is_plain else None
        return self.sealed.setdefault(key, _Sealed([], [], [], []))


def _sorted_out(
    messages: Sequence[bytes] | Values,
    columns: dict[Schema, tuple[str, ...]],
    known: dict[Schema, Rosters],
    read: _Read,
) -> _Found:
    """Adds to `columns` and `known` those of schemas that nobody asked for.

    What is not sealed as our own writer does is read at once: so much of what is in messages counts before more are
    asked for.
    """
    found = _Found({}, defaultdict(dict))
    head: bytes | None = None
    layout: Layout | None = None
    sealed: _Sealed | None = None
    # no call here that can be spared: this runs once for each message of a cluster
    for place, message in enumerate(messages):
        # most messages begin like the one before
        if head is None or not message.startswith(head):
            try:
                stream = _stream(_schema_message(message))
            except UnreadableMessageError as fault:
                read.faults[place] = fault
                continue
            schema, head = stream.schema, stream.head
            layouts = _layouts(stream, columns.setdefault(schema, tuple(schema.arrow.names)))
            learned = (
                known.get(schema) or known.setdefault(schema, Rosters(schema, columns[schema]))
            ).digests
            layout = None
        end = len(message) - _TAIL.size
        end_of_stream, at, mark, _ = _TAIL.unpack_from(message, end) if end > 0 else _NO_TAIL
        if mark != SEAL or end_of_stream != END_OF_STREAM:
            read.foreign(place, schema, message)
            continue
        if crc32c(message) != _CRC_OF_WHOLE:
            read.faults[place] = UnreadableMessageError(
                "checksum", "the message's checksum does not fit its bytes"
            )
            continue
        if layouts is None or not (layouts.apart or at == len(head)):
            read.foreign(place, schema, message)
            continue
        # most are laid out like the one before
        if layout is None or at != end - layout.batch_bytes or not message.startswith(layout.header, at):
            layout = layouts.of(message, at, end)
            if layout is None:
                read.foreign(place, schema, message)
                continue
            sealed = None
        digest = b""
        if layouts.apart:
            digest = xxh3_128_digest(message[len(head) : at], layouts.seed)
            if digest not in learned and digest not in found.new_rosters[layouts]:
                roster = layouts.roster(message, at, end)
                if roster is None:
                    read.foreign(place, schema, message)
                    continue
                found.new_rosters[layouts][digest] = roster
        if sealed is None:
            sealed = found.of(layouts, layout)
        sealed.places.append(place)
        sealed.layouts.append(layout)
        sealed.taken.append(layout.take(message))
        sealed.digests.append(digest)
    return found


def _as_wanted(
    frame: pl.DataFrame, schema: Schema, columns: tuple[str, ...], rosters: Rosters | None
) -> pl.DataFrame:
    """Columns as in Rows, whichever way the message had its names."""
    if rosters is None:
        return frame[list(columns)]
    if "entity" not in frame.columns:
        frame = rosters.numbered(frame.select(columns))
    return frame[[*(name for name in columns if name not in schema.names), "entity"]]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of some messages: their places, and how many rows each brought."""

    places: Sequence[int]
    counts: Sequence[int]
    frame: pl.DataFrame


def _in_order(parts: list[_Part]) -> Rows:
    if len(parts) == 1:
        return Rows(parts[0].frame, parts[0].places, parts[0].counts)
    places = [place for part in parts for place in part.places]
    counts = [count for part in parts for count in part.counts]
    order = repeated(places, counts).arg_sort()
    messages = sorted(zip(places, counts, strict=True))
    return Rows(
        pl.concat([part.frame for part in parts])[order],
        [place for place, _ in messages],
        [count for _, count in messages],
    )


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
