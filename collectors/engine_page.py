"""The samples of one page to figures per model, as the mapping of the server kind says."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from idlewatt.collectors.counter_lives import CounterLives
from idlewatt.collectors.counter_values import Differences, LeftOutError, count, earliest_ms, finite
from idlewatt.collectors.engines import EngineMapping, Series
from idlewatt.collectors.exposition import Sample, fold
from idlewatt.stream.errors import SourceError

_MAX_MODELS: Final = 256
_QUANTITIES: Final = ("output", "input", "cached_input")


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What a page says of one model; None where it says nothing. Tokens are cumulative."""

    model_name: str
    output_tokens: int
    input_tokens: int | None
    cached_input_tokens: int | None
    requests_running: int | None
    requests_waiting: int | None
    kv_cache_ratio: float | None
    epoch_ms: int | None
    server_version: str | None


class EnginePage:
    """Reads the pages of one engine, one after the other."""

    def __init__(self, mapping: EngineMapping, grace_ms: int = 0) -> None:
        """`grace_ms`: see CounterLives."""
        self._mapping = mapping
        self._differences = Differences()
        self._lives = CounterLives(grace_ms)

    def miss(self) -> None:
        """Note that a page could not be fetched."""
        self._lives.miss()

    def read(self, samples: Iterable[Sample], ts_ms: int) -> tuple[list[ModelFigures], Counter[str]]:
        """Figures of each model that has an output counter, and by reason what was left out.

        A model with a counter that cannot be true is left out whole. `ts_ms`: when the page was there. Raises SourceError
        (too_many_models).
        """
        by_model: defaultdict[str | None, defaultdict[str, list[Sample]]]
        by_model = defaultdict(lambda: defaultdict(list))
        for sample in samples:
            by_model[sample.labels.get(self._mapping.model_label)][sample.name].append(sample)
        page_wide: Mapping[str, Sequence[Sample]] = by_model.pop(None, {})
        if len(by_model) > _MAX_MODELS:
            raise SourceError("too_many_models", f"the page names more than {_MAX_MODELS} models")

        figures = []
        left_out: Counter[str] = Counter()
        if any(fold(series.name) in page_wide for series in self._mapping.output_tokens):
            left_out["no_model"] += 1
        for model_name, of_model in by_model.items():
            assert model_name is not None
            try:
                figures.append(self._figures(model_name, of_model, page_wide, ts_ms, left_out))
            except LeftOutError as error:
                left_out[str(error)] += 1
        self._lives.keep(by_model)
        self._differences.keep({(model, quantity) for model in by_model for quantity in _QUANTITIES})
        return figures, left_out

    def _figures(
        self,
        model_name: str,
        samples: Mapping[str, Sequence[Sample]],
        page_wide: Mapping[str, Sequence[Sample]],
        ts_ms: int,
        left_out: Counter[str],
    ) -> ModelFigures:
        mapping = self._mapping

        def tokens(quantity: str, candidates: Sequence[Series]) -> int | None:
            for series in candidates:
                if not (picked := self._picked(series.name, series.only, samples)):
                    continue
                total = sum(map(count, picked))
                if series.less is None:
                    return total
                part = sum(map(count, self._picked(series.less, series.only, samples)))
                return self._differences.rest((model_name, quantity), started_ms, total, part)
            return None

        def gauge(candidates: Sequence[Series]) -> list[float]:
            for series in candidates:
                try:
                    if picked := self._picked(series.name, series.only, samples):
                        return [finite(sample) for sample in picked]
                except LeftOutError as error:
                    left_out[str(error)] += 1
                    break
            return []

        told = self._told_epochs(samples, page_wide)
        started_ms = self._lives.epoch_ms(model_name, told)
        output_tokens = tokens("output", mapping.output_tokens)
        if output_tokens is None:
            raise LeftOutError("no_output_tokens")
        input_tokens = tokens("input", mapping.input_tokens)
        cached_input_tokens = tokens("cached_input", mapping.cached_input_tokens)
        running, waiting = gauge(mapping.requests_running), gauge(mapping.requests_waiting)
        kv_cache = gauge(mapping.kv_cache_ratio)
        if kv_cache and max(kv_cache) > 1:
            left_out["out_of_range"] += 1
            kv_cache = []
        return ModelFigures(
            model_name=model_name,
            output_tokens=output_tokens,
            input_tokens=input_tokens,
            cached_input_tokens=cached_input_tokens,
            requests_running=round(sum(running)) if running else None,
            requests_waiting=round(sum(waiting)) if waiting else None,
            kv_cache_ratio=sum(kv_cache) / len(kv_cache) if kv_cache else None,
            epoch_ms=self._lives.settle(
                model_name, told, (output_tokens, input_tokens, cached_input_tokens), ts_ms
            ),
            server_version=self._version(samples, page_wide),
        )

    def _picked(
        self, name: str, only: Mapping[str, str], samples: Mapping[str, Sequence[Sample]]
    ) -> list[Sample]:
        """The samples of a series that may be added up."""
        wanted = only.items()
        picked = [sample for sample in samples.get(fold(name), ()) if wanted <= sample.labels.items()]
        # A label nobody foresaw, with several values: parts of one sum, or the same thing told twice?
        others = {
            frozenset(item for item in sample.labels.items() if item[0] not in self._mapping.sum_over)
            for sample in picked
        }
        if len(others) > 1:
            raise LeftOutError("ambiguous_series")
        return picked

    def _told_epochs(
        self, samples: Mapping[str, Sequence[Sample]], page_wide: Mapping[str, Sequence[Sample]]
    ) -> dict[str, int]:
        """By series, the most wanted first."""
        told = {}
        for series in self._mapping.epoch:
            name = fold(series.name)
            started_ms = earliest_ms((*samples.get(name, ()), *page_wide.get(name, ())))
            if started_ms is not None:
                told[name] = started_ms
        return told

    def _version(
        self, samples: Mapping[str, Sequence[Sample]], page_wide: Mapping[str, Sequence[Sample]]
    ) -> str | None:
        if self._mapping.version is None:
            return None
        series, label = self._mapping.version
        name = fold(series)
        told = {sample.labels.get(label) for sample in (*samples.get(name, ()), *page_wide.get(name, ()))}
        return told.pop() if len(told) == 1 else None
