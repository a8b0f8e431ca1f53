"""What the runner asks of a stage: a pure fold over frames, one state per partition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import polars as pl

from idlewatt.processors.families import Family
from idlewatt.stream.log import Record
from idlewatt.stream.records import Schema

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Batch:
    """One partition's messages that were gathered for one fold, decoded."""

    # per schema name: the rows, with `src`, the offset of the message each came in
    frames: Mapping[str, pl.DataFrame]
    now_ms: int
    # input topics of this partition with nothing more to read
    at_end: frozenset[str]
    # per schema name, of those that the stage wants the names of apart: all names so far, to which a row's `entity`
    # points; the same object until there are more
    entities: Mapping[str, pl.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Folded(Generic[S]):
    """What a fold made of a state and a batch."""

    state: S
    records: Sequence[Record] = ()
    # topic -> lowest offset that is still needed after a restart; topics that are not here need nothing
    needed: Mapping[str, int] = field(default_factory=dict)
    # (schema name, reason) -> rows left out
    rejected: Mapping[tuple[str, str], int] = field(default_factory=dict)
    late: Mapping[str, int] = field(default_factory=dict)
    # newest event time read, Unix ms
    event_ms: int | None = None
    # the state has moved on: there is something to commit
    moved: bool = False


class Stage(Protocol[S]):
    """meter or economy."""

    @property
    def name(self) -> str:
        """Names its state, its consumer group and its series."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Topics it reads; partition n of each belongs together."""

    @property
    def first(self) -> frozenset[str]:
        """Those of them that come first: they tell what is in the others."""

    @property
    def columns(self) -> Mapping[Schema, tuple[str, ...]]:
        """Kinds of rows its inputs carry, and those of their columns that it reads."""

    @property
    def names_apart(self) -> frozenset[Schema]:
        """Of these, kinds of rows whose names it wants once and not in each row."""

    @property
    def gather_s(self) -> float:
        """How long a row may wait for others to be folded with it."""

    @property
    def at_most(self) -> Mapping[str, int]:
        """Families of which a processor shows only so many samples, the largest."""

    def empty(self) -> S:
        """The state of a partition that was never read."""

    def snapshot(self, state: S) -> bytes: ...

    def restore(self, snapshot: bytes) -> S: ...

    def waits(self, state: S, batch: Batch) -> bool:
        """Whether other inputs are held back, as far as there is room, when this of those that come first is folded."""

    def fold(self, state: S, batch: Batch) -> Folded[S]:
        """Never raises for what a peer may send."""

    def families(self, states: Sequence[S]) -> list[Family]:
        """Prometheus families of the committed states; no label set twice."""
