"""A stage's part of /metrics, put together from its partitions. Only a partition that has moved on is rendered again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import polars as pl

from idlewatt.processors.families import Family, rendered


@dataclass(frozen=True, slots=True)
class _Part:
    family: Family
    # of each line what stands before its value
    heads: pl.Series
    lines: bytes

    @classmethod
    def of(cls, family: Family, before: Self | None) -> Self:
        """`before`: what the partition showed until now. Values move, labels hardly ever do."""
        rows = family.frame.height
        if rows and before and before.heads.len() == rows and before.family.labels.equals(family.labels):
            heads = before.heads
        else:
            heads = family.heads()
        return cls(family, heads, family.lines(heads))


class Page:
    """`at_most`: families of which only the largest samples of all partitions are shown, and how many."""

    def __init__(self, at_most: Mapping[str, int]) -> None:
        self._at_most = at_most
        # partition -> family name -> its lines
        self._parts: dict[int, dict[str, _Part]] = {}

    def put(self, partition: int, families: Iterable[Family]) -> None:
        """Replace what a partition shows."""
        before = self._parts.get(partition, {})
        self._parts[partition] = {
            family.name: _Part.of(family, before.get(family.name)) for family in families
        }

    def drop(self, partition: int) -> None:
        """A partition is another's now: no stale series."""
        self._parts.pop(partition, None)

    def text(self) -> bytes:
        """The page. A pool or site lives in one partition, so no label set comes twice."""
        by_family: dict[str, list[_Part]] = {}
        for parts in self._parts.values():
            for name, part in parts.items():
                by_family.setdefault(name, []).append(part)
        return b"".join(
            rendered([self._largest(name, parts)])
            if name in self._at_most
            else b"".join([parts[0].family.header(), *(part.lines for part in parts)])
            for name, parts in by_family.items()
        )

    def _largest(self, name: str, parts: Iterable[_Part]) -> Family:
        series = pl.concat([part.family.frame for part in parts])
        shown = series.sort("value", descending=True, maintain_order=True).head(self._at_most[name])
        return Family(next(iter(parts)).family.metric, shown)
