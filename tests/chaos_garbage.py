"""What a peer can write into idlewatt.gpu and idlewatt.engine: bytes that nobody can read, rows that cannot be
true, and messages that came before.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any, Final

import polars as pl
import pyarrow as pa

from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.encoding import encode_table
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.log import Message, Record
from idlewatt.stream.opening import open_appender, read_topic
from idlewatt.stream.records import NAME_KEY, VERSION_KEY, Schema
from idlewatt.stream.settings import Settings

RAW: Final = (topics.GPU, topics.ENGINE)
HOUR_MS: Final = 3_600_000
# How far back messages are replayed, in messages of one topic.
_RECENT: Final = 200
Forge = Callable[[random.Random, Message, pl.DataFrame], bytes]


class Injection:
    """Writes into the raw topics what is made of messages that are there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # all that was ever injected, so that nothing is forged from a forgery
        self.injected: set[bytes] = set()
        self.count = 0

    def inject(self, sort: str, rng: random.Random) -> None:
        """Raises LogUnavailableError."""
        real = {topic: self._real(topic) for topic in RAW}
        records_ = SORTS[sort](rng, {topic: found for topic, found in real.items() if found})
        self.injected |= {record.value for record in records_}
        appender = open_appender(self._settings, "chaos")
        try:
            appender.append(records_)
        finally:
            appender.close()
        self.count += len(records_)

    def _real(self, topic: str) -> list[Message]:
        found = read_topic(self._settings, topic)
        return [message for message in found if message.value not in self.injected]


Real = dict[str, list[Message]]


def _forged(forge: Forge) -> Callable[[random.Random, Real], list[Record]]:
    """One forgery of a recent message of each raw topic, under the message's own key."""

    def make(rng: random.Random, real: Real) -> list[Record]:
        found = []
        for topic, messages in real.items():
            message = rng.choice(messages[-_RECENT:])
            frame = decode(message.value)[1]
            found.append(Record(topic, _key(frame), forge(rng, message, frame)))
        return found

    return make


def _key(frame: pl.DataFrame) -> bytes:
    return topics.pool_key(*frame.select("site", "pool").row(0))


def _schema(message: Message) -> Schema:
    return records.GPU if message.topic == topics.GPU else records.ENGINE


def _grown(frame: pl.DataFrame) -> pl.DataFrame:
    """Counters much further than they are: believed, they would be seen in the sums."""
    counters = [name for name in ("energy_mj", "output_tokens") if name in frame.columns]
    return frame.with_columns(pl.col(counters) + 10**9)


def _no_arrow(rng: random.Random, message: Message, _frame: pl.DataFrame) -> bytes:
    value = bytearray(message.value)
    value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    return rng.choice([b"", rng.randbytes(300), message.value[: len(value) // 2], bytes(value)])


def _other_schema(rng: random.Random, message: Message, frame: pl.DataFrame) -> bytes:
    """The other topic's rows, rows of a kind that nobody knows, or an older reader's nightmare."""
    schema = _schema(message)
    name, version = rng.choice(
        [("weather", "1.0"), (schema.name, "2.0"), (schema.name, ""), ("ledger.power", "1.0")]
    )
    arrow = schema.arrow.with_metadata({NAME_KEY: name.encode(), VERSION_KEY: version.encode()})
    return encode_table(dataclasses.replace(schema, arrow=arrow), _grown(frame).to_arrow())


def _column_missing(rng: random.Random, message: Message, frame: pl.DataFrame) -> bytes:
    """A required column is away, without values, or of another type."""
    schema = _schema(message)
    name = rng.choice(["ts_ms", "pool", "site"])
    at = schema.arrow.get_field_index(name)
    table = _grown(frame).to_arrow().select(schema.arrow.names).cast(schema.arrow)
    how = rng.randrange(3)
    if how == 0:
        table = table.remove_column(at)
    else:
        nothing = pa.nulls(table.num_rows, schema.arrow.field(at).type)
        column = nothing if how == 1 else pa.array([[1.5]] * table.num_rows)
        table = table.set_column(at, pa.field(name, column.type), column)
    arrow = table.schema.with_metadata(schema.arrow.metadata)
    return encode_table(dataclasses.replace(schema, arrow=arrow), table)


def _clock_wrong(rng: random.Random, message: Message, frame: pl.DataFrame) -> bytes:
    """An hour ahead, or from before there were GPUs."""
    shift_ms = rng.choice([HOUR_MS, HOUR_MS, -50 * 365 * 24 * HOUR_MS])
    return encode_table(_schema(message), _grown(frame).with_columns(pl.col("ts_ms") + shift_ms).to_arrow())


def _duplicates(rng: random.Random, real: Real) -> list[Record]:
    """Messages from any time, as they were."""
    found = []
    for topic, messages in real.items():
        for message in rng.choices(messages, k=10):
            found.append(Record(topic, _key(decode(message.value)[1]), message.value))
    return found


def _replays(rng: random.Random, real: Real) -> list[Record]:
    """Recent rows in another order and packed in other messages."""
    found = []
    for topic, messages in real.items():
        by_key: dict[bytes, list[pl.DataFrame]] = {}
        for message in rng.sample(messages[-_RECENT:], min(len(messages), 20)):
            frame = decode(message.value)[1]
            by_key.setdefault(_key(frame), []).append(frame)
        for key, frames in by_key.items():
            rows = pl.concat(frames).sample(fraction=1.0, shuffle=True, seed=rng.randrange(1 << 30))
            for part in rows.iter_slices(rng.randint(1, rows.height)):
                found.append(Record(topic, key, encode_table(_schema(messages[0]), part.to_arrow())))
    rng.shuffle(found)
    return found


SORTS: Final[dict[str, Callable[[random.Random, Real], list[Record]]]] = {
    "bytes that are no Arrow": _forged(_no_arrow),
    "another schema or version": _forged(_other_schema),
    "columns that are missing": _forged(_column_missing),
    "clocks that are wrong": _forged(_clock_wrong),
    "duplicates of any age": _duplicates,
    "shuffled replays": _replays,
}


def readable(message: Message) -> list[dict[str, Any]]:
    """The rows of a raw message; none if it cannot be read or belongs elsewhere."""
    try:
        schema, frame = decode(message.value)
    except UnreadableMessageError:
        return []
    return frame.to_dicts() if schema is _schema(message) else []
