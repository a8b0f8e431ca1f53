"""What was read of a partition and is not folded yet.

Messages are kept as they came, a quarter as large as what is in them, and become rows when they are folded.
"""

import functools
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from idlewatt.processors.stage import Batch, Stage
from idlewatt.stream.decoding import decode_all
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.frames import empty_frame
from idlewatt.stream.log import Message, Values
from idlewatt.stream.records import Schema
from idlewatt.stream.rosters import Rosters

# messages; what is made of them on the way to rows takes memory that is still at hand from those before
_READ_AT_ONCE: Final = 2048
# of what is in messages, which is a few times as much as they are as they come, and may be 255 times as much
OPENED_BYTES: Final = 1 << 30
# A message of a few bytes takes the time and the memory of a larger one. What a node of eight GPUs sends is 2.4 KB as it
# comes, so that of those it is their bytes that count.
LEAST_MESSAGE_BYTES: Final = 2048
# that are read of a topic for one fold; of those of 2.4 KB the runner gathers fewer
MOST_MESSAGES: Final = 16 * _READ_AT_ONCE
_PACKED: Final = operator.attrgetter("packed")


@dataclass(frozen=True, slots=True)
class Gathered:
    """Messages as rows."""

    # topic, and rows with `src`, the offset of the message that each came in
    parts: Sequence[tuple[str, Schema, pl.DataFrame]]
    # see Batch
    entities: Mapping[str, pl.DataFrame]
    # by topic
    next_offsets: Mapping[str, int]

    def batch(self, stage: Stage[Any], now_ms: int, at_end: frozenset[str]) -> Batch:
        found: dict[Schema, list[pl.DataFrame]] = {schema: [] for schema in stage.columns}
        for _, schema, rows in self.parts:
            found[schema].append(rows)
        frames = {
            schema.name: pl.concat(frames)
            if frames
            else _none(schema, stage.columns[schema], schema in stage.names_apart)
            for schema, frames in found.items()
        }
        return Batch(frames, now_ms, at_end, self.entities)

    @property
    def messages(self) -> list[tuple[str, int]]:
        """Topic and offset of those that brought rows, in the order of their topic."""
        return [
            (topic, offset)
            for topic in self.next_offsets
            for offset in sorted(
                {o for of, _, rows in self.parts if of == topic for o in rows["src"].unique()}
            )
        ]

    def halves(self) -> Iterator["Gathered"]:
        """The first of two and more messages, and the rest."""
        messages = self.messages
        for half in (messages[: len(messages) // 2], messages[len(messages) // 2 :]):
            offsets: dict[str, list[int]] = {}
            for topic, offset in half:
                offsets.setdefault(topic, []).append(offset)
            parts = [
                (topic, schema, rows.filter(pl.col("src").is_between(offsets[topic][0], offsets[topic][-1])))
                for topic, schema, rows in self.parts
                if topic in offsets
            ]
            next_offsets = {topic: found[-1] + 1 for topic, found in offsets.items()}
            yield Gathered(parts, self.entities, next_offsets)


# most folds lack some kind of rows
@functools.cache
def _none(schema: Schema, columns: tuple[str, ...], names_apart: bool) -> pl.DataFrame:
    rows = empty_frame(schema).select(columns)
    if names_apart:
        rows = Rosters(schema, columns).numbered(rows)
    return rows.with_columns(src=pl.lit(None, pl.Int64))


def _packed_bytes(messages: Iterable[Message]) -> int:
    return sum(map(len, map(_PACKED, messages)))


class Gathering:
    """Of one partition."""

    def __init__(self, stage: Stage[Any]) -> None:
        self._stage = stage
        self._rosters = {schema: Rosters(schema, stage.columns[schema]) for schema in stage.names_apart}
        self._messages: dict[str, list[Message]] = {topic: [] for topic in stage.inputs}
        # what was gathered of each topic, as it came
        self._packed_bytes = dict.fromkeys(stage.inputs, 0)
        self._held: frozenset[str] = frozenset()
        # since they were last asked for: what is no rows of the stage's, and counts of messages and rows by topic
        self.faults: list[tuple[Message, UnreadableMessageError]] = []
        self.messages: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    def add(self, messages: Sequence[Message]) -> None:
        """Messages of one topic."""
        self._messages[messages[0].topic] += messages
        self._packed_bytes[messages[0].topic] += _packed_bytes(messages)

    @property
    def size_bytes(self) -> int:
        """Of what was gathered and not taken yet, as it came; of messages that are tiny what they are counted as.

        What was held back at the last take() is not in it.
        """
        return self._size_bytes(self._messages.keys() - self._held)

    @property
    def held_bytes(self) -> int:
        """The same of what was held back."""
        return self._size_bytes(self._held)

    def _size_bytes(self, topics: Collection[str]) -> int:
        count = sum(len(self._messages[topic]) for topic in topics)
        return max(sum(self._packed_bytes[topic] for topic in topics), LEAST_MESSAGE_BYTES * count)

    def _beyond(self, topic: str, hold_bytes: int) -> int:
        """How many of the topic's messages, the oldest, are more than that."""
        messages = self._messages[topic]
        if self._size_bytes({topic}) <= hold_bytes:
            return 0
        # with room for some that come next, lest each is taken by itself
        hold_bytes = hold_bytes * 7 // 8
        count = max(0, len(messages) - hold_bytes // LEAST_MESSAGE_BYTES)
        left = _packed_bytes(messages[count:])
        while left > hold_bytes:
            left -= len(messages[count].packed)
            count += 1
        return count

    def waits(self, topic: str) -> bool:
        """Whether take() has left something of the topic behind."""
        return bool(self._messages[topic])

    def take(
        self,
        until_s: float = math.inf,
        waits: Callable[[Gathered], bool] = lambda _: False,
        hold_bytes: int = 0,
    ) -> Gathered:
        """All that was gathered and not taken yet, up to OPENED_BYTES of what is in it, and MOST_MESSAGES of each topic.

        Once it is `until_s` by time.monotonic(), no more than the first of each topic: a message that is not of our own
        writer takes a millisecond.

        `waits`: whether, when this of the topics that come first is folded, the newest of others are held back, up to
        `hold_bytes`.
        """
        parts: list[tuple[str, Schema, pl.DataFrame]] = []
        next_offsets: dict[str, int] = {}
        room, first = OPENED_BYTES, self._stage.first
        self._held = frozenset()
        for place, topic in enumerate(sorted(self._messages, key=lambda topic: topic not in first)):
            if first and place == len(first) and waits(Gathered(parts, {}, {})):
                self._held = frozenset(self._messages) - first
            messages = self._messages[topic]
            at, most = 0, min(len(messages), MOST_MESSAGES)
            if topic in self._held:
                most = min(most, self._beyond(topic, hold_bytes))
            while at < most and room > 0 and (at == 0 or time.monotonic() < until_s):
                some = messages[at : min(at + _READ_AT_ONCE, most)]
                values = Values(some, room)
                parts += [(topic, *part) for part in self._read(topic, some, values)]
                at += values.opened
                room -= values.opened_bytes
            if at:
                next_offsets[topic] = messages[at - 1].offset + 1
            del messages[:at]
            self._packed_bytes[topic] = _packed_bytes(messages)
        names = {schema.name: rosters.names for schema, rosters in self._rosters.items()}
        for schema, rosters in self._rosters.items():
            if rosters.full:
                self._rosters[schema] = Rosters(schema, self._stage.columns[schema])
        return Gathered(parts, names, next_offsets)

    def _read(
        self, topic: str, messages: Sequence[Message], values: Values
    ) -> Iterator[tuple[Schema, pl.DataFrame]]:
        """Rows of the messages whose values were opened."""
        columns = self._stage.columns
        found, faults = decode_all(values, columns, self._rosters)
        self.faults += [(messages[place], fault) for place, fault in faults.items()]
        offsets = [message.offset for message in messages]
        for schema, rows in found.items():
            if schema in columns:
                frame = rows.frame.hstack([rows.of_message(offsets).alias("src")])
                self.rows[topic] += frame.height
                yield schema, frame
            else:
                fault = UnreadableMessageError("wrong_topic", f"{schema.name} rows do not belong in {topic}")
                self.faults += [(messages[place], fault) for place in rows.messages]
        self.messages[topic] += values.opened
