"""Drives one stage by hand, as the runner would: messages in, folds, commits, crashes; rows out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import polars as pl

from idlewatt.processors.stage import Batch, Folded, Stage
from idlewatt.stream.decoding import decode_all
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.log import Record
from idlewatt.stream.records import Schema
from idlewatt.stream.rosters import Rosters

S = TypeVar("S")


@dataclass(frozen=True)
class Message:
    """Rows of one kind that travel together; its offset is its place in its topic's list."""

    topic: str
    schema: Schema
    rows: Sequence[Any]


@dataclass
class Driver(Generic[S]):
    """One partition of one stage: `state` moves with each fold, `records` are what it has written."""

    stage: Stage[S]
    state: S = None  # type: ignore[assignment]
    log: dict[str, list[Message]] = field(default_factory=dict)
    position: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    rejected: dict[tuple[str, str], int] = field(default_factory=dict)
    folded: Folded[S] | None = None
    committed: tuple[bytes, dict[str, int], int] | None = None

    def __post_init__(self) -> None:
        if self.state is None:
            self.state = self.stage.empty()
        for topic in self.stage.inputs:
            self.log.setdefault(topic, [])
            self.position.setdefault(topic, 0)

    def append(self, messages: Iterable[Message]) -> None:
        """Put messages at the end of their topics, unread."""
        for message in messages:
            self.log[message.topic].append(message)

    def fold(self, now_ms: int, counts: Mapping[str, int] | None = None) -> Folded[S]:
        """Read `counts` messages of each topic (default: all there are) and fold them as one batch."""
        parts: dict[Schema, list[pl.DataFrame]] = {schema: [] for schema in self.stage.columns}
        for topic, waiting in self.log.items():
            begin = self.position[topic]
            end = len(waiting) if counts is None else min(len(waiting), begin + counts[topic])
            for offset in range(begin, end):
                message = waiting[offset]
                parts[message.schema].append(frame(message.schema, message.rows, offset))
            self.position[topic] = end
        frames = {s.name: pl.concat(found) if found else frame(s, [], 0) for s, found in parts.items()}
        at_end = frozenset(topic for topic in self.stage.inputs if not self.behind(topic))
        entities = {}
        for schema in self.stage.names_apart:
            rosters = Rosters(schema, schema.names)
            frames[schema.name] = rosters.numbered(frames[schema.name])
            entities[schema.name] = rosters.names
        self.folded = self.stage.fold(self.state, Batch(frames, now_ms, at_end, entities))
        self.state = self.folded.state
        self.records.extend(self.folded.records)
        for what, count in self.folded.rejected.items():
            self.rejected[what] = self.rejected.get(what, 0) + count
        return self.folded

    def behind(self, topic: str) -> int:
        """Messages of the topic that are still to be read."""
        return len(self.log[topic]) - self.position[topic]

    def commit(self) -> None:
        """What is folded so far survives a crash."""
        needed = self.folded.needed if self.folded else {}
        resume = {topic: min(at, needed.get(topic, at)) for topic, at in self.position.items()}
        self.committed = (self.stage.snapshot(self.state), resume, len(self.records))

    def crash(self) -> None:
        """Lose all since the last commit, and start from it."""
        assert self.committed is not None
        snapshot, resume, written = self.committed
        self.state = self.stage.restore(snapshot)
        self.position = dict(resume)
        self.folded = None
        del self.records[written:]

    def rows(self, schema: Schema) -> list[dict[str, Any]]:
        """All rows of one kind that were written."""
        found, faults = decode_all([record.value for record in self.records])
        assert not faults
        return found[schema].frame.to_dicts() if schema in found else []

    def sample(self, name: str, **labels: str) -> float | None:
        """The one sample of the state's families with these labels among its own; None if it is absent."""
        found = [
            s.value
            for family in self.stage.families([self.state])
            for s in family.samples
            if s.name == name and labels.items() <= s.labels.items()
        ]
        assert len(found) < 2, f"{name} {labels} is not one series"
        return found[0] if found else None


def frame(schema: Schema, rows: Sequence[Any], offset: int) -> pl.DataFrame:
    """Rows as the runner hands them to a stage."""
    columns = frame_schema(schema)
    data = {name: [getattr(row, name) for row in rows] for name in columns}
    return pl.DataFrame(data, schema=columns).with_columns(pl.lit(offset, pl.Int64).alias("src"))


def sums(
    rows: Iterable[Mapping[str, Any]], by: Sequence[str], of: Sequence[str]
) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Sum the columns `of` over rows that agree in `by`; groups that are 0 throughout are left out."""
    total: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        sofar = total.setdefault(tuple(row[c] for c in by), [0] * len(of))
        for i, column in enumerate(of):
            sofar[i] += row[column]
    return {key: tuple(values) for key, values in total.items() if any(values)}
