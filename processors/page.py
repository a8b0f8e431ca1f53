"""A stage's part of /metrics, put together from its partitions.

Only a partition that has moved on is rendered again: prometheus_client takes 7 us a series, and with a dozen
partitions that commit one after the other the whole page would be rendered a dozen times per window.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest


class _Collected:
    """What generate_latest asks of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def rendered(families: Iterable[Metric]) -> bytes:
    """Families in the Prometheus text format."""
    return generate_latest(_Collected(families))


@dataclass(frozen=True, slots=True)
class _Part:
    family: Metric
    header: bytes
    lines: bytes


class Page:
    """`at_most`: families of which only the largest samples of all partitions are shown, and how many."""

    def __init__(self, at_most: Mapping[str, int]) -> None:
        self._at_most = at_most
        # partition -> family name -> its lines
        self._parts: dict[int, dict[str, _Part]] = {}

    def put(self, partition: int, families: Iterable[Metric]) -> None:
        """Replace what a partition shows."""
        self._parts[partition] = {family.name: _part(family) for family in families}

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
            else b"".join([parts[0].header, *(part.lines for part in parts)])
            for name, parts in by_family.items()
        )

    def _largest(self, name: str, parts: Iterable[_Part]) -> Metric:
        samples = [sample for part in parts for sample in part.family.samples]
        family = next(iter(parts)).family
        shown = Metric(name, family.documentation, family.type)
        shown.samples = sorted(samples, key=lambda sample: -sample.value)[: self._at_most[name]]
        return shown


def _part(family: Metric) -> _Part:
    text = rendered([family])
    # "# HELP ..." and "# TYPE ...", then the samples
    second_line = text.index(b"\n") + 1
    samples_begin = text.index(b"\n", second_line) + 1
    return _Part(family, text[:samples_begin], text[samples_begin:])
