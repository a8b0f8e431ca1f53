"""Rows to messages: one of each topic and key."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import lz4.frame  # type: ignore[import-untyped]
import pyarrow as pa

from idlewatt.stream import records, topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.log import Record
from idlewatt.stream.records import EngineRow, GpuRow, Schema, UsageRow
from idlewatt.stream.spool_frames import WaitingMessage

Row = GpuRow | EngineRow | UsageRow

# Once compressed, as it travels: a message goes in one piece, and a line of 5 kB/s is to carry it within the 4 s an append
# has. What it cannot carry is offered again for ever, and all that comes after waits behind it.
MAX_PACKED_BYTES: Final = 18_000
# of posted usage as much as that, with ids that do not compress less
_MAX_ROWS: Final = 200

_DESTINATIONS: Final[Mapping[type, tuple[str, Schema]]] = {
    GpuRow: (topics.GPU, records.GPU),
    EngineRow: (topics.ENGINE, records.ENGINE),
    UsageRow: (topics.USAGE, records.USAGE),
}


@dataclass(frozen=True, slots=True)
class Unencodable:
    """A row with a value that its column cannot hold."""

    row: Row
    error: str


def topic_of(row: Row) -> str:
    """The topic a row goes to."""
    return _DESTINATIONS[type(row)][0]


def pack(rows: Iterable[Row]) -> Iterator[WaitingMessage | Unencodable]:
    """Messages of MAX_PACKED_BYTES at most, or of one row; within a topic and key the rows stay in their order."""
    groups: defaultdict[tuple[type, bytes], list[Row]] = defaultdict(list)
    for row in rows:
        groups[type(row), _key_of(row)].append(row)
    for (kind, key), group in groups.items():
        topic, schema = _DESTINATIONS[kind]
        for start in range(0, len(group), _MAX_ROWS):
            yield from _encoded(topic, key, schema, group[start : start + _MAX_ROWS])


def _key_of(row: Row) -> bytes:
    return topics.site_key(row.site) if isinstance(row, UsageRow) else topics.pool_key(row.site, row.pool)


def _encoded(
    topic: str, key: bytes, schema: Schema, rows: Sequence[Row]
) -> Iterator[WaitingMessage | Unencodable]:
    try:
        value = encode_rows(schema, rows)
        if len(rows) == 1 or _fits(value):
            yield WaitingMessage(Record(topic, key, value), len(rows))
            return
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        if len(rows) == 1:
            yield Unencodable(rows[0], str(error))
            return
    # halved until each part is small enough, and a row at fault stands alone
    middle = len(rows) // 2
    yield from _encoded(topic, key, schema, rows[:middle])
    yield from _encoded(topic, key, schema, rows[middle:])


def _fits(value: bytes) -> bool:
    return len(value) <= MAX_PACKED_BYTES or len(lz4.frame.compress(value)) <= MAX_PACKED_BYTES
