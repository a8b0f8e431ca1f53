"""Whom the messages of a stream are about, understood once.

A collector names the same few GPUs or engines in each of its messages, in the same bytes. To know these bytes again
takes a hundredth of the time of reading the names and looking them up.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import polars as pl
from xxhash import xxh3_128_digest

from idlewatt.stream.records import Schema

# Above what a partition's collectors name in a day of pods that come and go; then it is time for a new one.
_MOST_ENTITIES: Final = 1 << 19
# of names; those of that many entities take a third of it
_MOST_BYTES: Final = 256 << 20


class Rosters:
    """All entities of one kind of rows, numbered in the order they came.

    An entity that two rosters name stands in it twice.
    """

    def __init__(self, schema: Schema, columns: Sequence[str]) -> None:
        self._columns = [name for name in columns if name in schema.names]
        self._parts = [pl.DataFrame(schema.arrow.empty_table().select(self._columns))]
        self._height = 0
        self._bytes = 0
        # digest of a roster -> the number of its first entity, and how many it has
        self._found: dict[bytes, tuple[int, int]] = {}

    @property
    def full(self) -> bool:
        return max(self._height, len(self._found)) >= _MOST_ENTITIES or self._bytes >= _MOST_BYTES

    @property
    def digests(self) -> Collection[bytes]:
        """Of all rosters that were learned, and of those that will be."""
        return self._found

    def learn(self, heights: Iterable[tuple[bytes, int]], names: pl.DataFrame) -> None:
        """Add rosters, of so many entities each, whose names stand one after the other in `names`."""
        first = self._height
        for digest, height in heights:
            self._found[digest] = first, height
            first += height
        self._parts.append(names)
        self._height = first
        self._bytes += int(names.estimated_size())

    @property
    def names(self) -> pl.DataFrame:
        """Of all entities; the same object until there are more."""
        if len(self._parts) > 1:
            self._parts = [pl.concat(self._parts, rechunk=True)]
        return self._parts[0]

    def found(self, digests: Iterable[bytes]) -> tuple[Sequence[int], Sequence[int]]:
        """The number of the first entity of each roster, and how many it has. Raises KeyError."""
        firsts, heights = zip(*map(self._found.__getitem__, digests), strict=True)
        return firsts, heights

    def numbered(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with `entity`, the number of whom they are about, instead of the names."""
        names = rows.select(self._columns)
        digest = xxh3_128_digest(repr(names.rows()).encode())
        if digest not in self._found:
            self.learn([(digest, names.height)], names)
        entity = pl.int_range(pl.len()) + self._found[digest][0]
        return rows.drop(self._columns).with_columns(entity=entity)
