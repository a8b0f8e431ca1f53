"""The samples of a gateway's page to counters, one for each set of labels, as the mapping of its kind says."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from idlewatt.collectors.counter_values import Differences, LeftOutError, count, epoch_ms
from idlewatt.collectors.engines import Series
from idlewatt.collectors.exposition import Sample, fold
from idlewatt.collectors.gateways import GatewayMapping

_Labels = frozenset[tuple[str, str]]
_Samples = dict[tuple[str, _Labels], Sample]
_NO_LABELS: Final[_Labels] = frozenset()


@dataclass(frozen=True, slots=True)
class GatewayCounter:
    """What was spent under one set of labels, cumulative. The three token kinds do not overlap."""

    # a digest of the labels
    name: str
    labels: dict[str, str]
    output_tokens: int
    input_tokens: int
    cached_input_tokens: int
    epoch_ms: int | None


class GatewayPage:
    """Reads the pages of one gateway, one after the other."""

    def __init__(self, mapping: GatewayMapping) -> None:
        self._mapping = mapping
        self._differences = Differences()

    def read(self, samples: Iterable[Sample]) -> tuple[list[GatewayCounter], Counter[str]]:
        """Every set of labels that has an output counter, and by reason what was left out.

        A set of labels with a counter that cannot be true is left out whole.
        """
        by_labels: _Samples = {(sample.name, frozenset(sample.labels.items())): sample for sample in samples}
        output = self._on_page(self._mapping.output_tokens, by_labels)
        input_ = self._on_page(self._mapping.input_tokens, by_labels)
        cached = self._on_page(self._mapping.cached_input_tokens, by_labels)
        counters = []
        left_out: Counter[str] = Counter()
        keys = set()
        for name, labels in by_labels:
            if output is None or name != fold(output.name) or not output.only.items() <= labels:
                continue
            key = labels - output.only.items()
            keys.add(key)
            try:
                counters.append(self._counter(key, (output, input_, cached), by_labels))
            except LeftOutError as error:
                left_out[str(error)] += 1
        self._differences.keep(keys)
        return counters, left_out

    def _on_page(self, candidates: Sequence[Series], samples: _Samples) -> Series | None:
        names = {name for name, _ in samples}
        return next((series for series in candidates if fold(series.name) in names), None)

    def _counter(
        self, key: _Labels, quantities: Sequence[Series | None], samples: _Samples
    ) -> GatewayCounter:
        started_ms = self._epoch_ms(key, samples)
        output, input_, cached = (_tokens(series, key, samples) for series in quantities)
        if self._mapping.input_includes_cached:
            input_ = self._differences.rest(key, started_ms, input_, cached)
        labels = sorted(key)
        return GatewayCounter(
            name=blake2b(repr(labels).encode(errors="replace"), digest_size=8).hexdigest(),
            labels=dict(labels),
            output_tokens=output,
            input_tokens=input_,
            cached_input_tokens=cached,
            epoch_ms=started_ms,
        )

    def _epoch_ms(self, key: _Labels, samples: _Samples) -> int | None:
        for series in self._mapping.epoch:
            name = fold(series.name)
            sample = samples.get((name, key | series.only.items())) or samples.get((name, _NO_LABELS))
            started_ms = epoch_ms(sample) if sample else None
            if started_ms is not None:
                return started_ms
        return None


def _tokens(series: Series | None, key: _Labels, samples: _Samples) -> int:
    """What the series counts under these labels; 0 where it has not counted yet."""
    sample = samples.get((fold(series.name), key | series.only.items())) if series else None
    return count(sample) if sample else 0
