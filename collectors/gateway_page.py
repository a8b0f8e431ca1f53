"""The samples of a gateway's page to counters, one for each set of labels, as the mapping of its kind says."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from idlewatt.collectors.counter_values import Continued, Differences, LeftOutError, count, earliest_ms
from idlewatt.collectors.engines import Series
from idlewatt.collectors.exposition import Sample, fold
from idlewatt.collectors.gateways import GatewayMapping
from idlewatt.stream.errors import SourceError

_Labels = frozenset[tuple[str, str]]
# by what tells counters apart
_ByKey = Mapping[_Labels, Sequence[Sample]]
_NO_LABELS: Final[_Labels] = frozenset()


@dataclass(frozen=True, slots=True)
class GatewayCounter:
    """What was spent under one set of labels, cumulative. The three token kinds do not overlap."""

    # a digest of the labels that tell it apart
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
        self._continued = Continued()

    def read(self, samples: Iterable[Sample]) -> tuple[list[GatewayCounter], dict[str, str]]:
        """Every set of labels that has an output counter; and by name of what was left out the reason.

        A set of labels with a counter that cannot be true is left out whole. Raises SourceError (labels_differ,
        series_limited, no_input_tokens).
        """
        by_name: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_name[sample.name].append(sample)
        mapping = self._mapping
        output, input_, cached = (
            self._by_key(candidates, by_name)
            for candidates in (mapping.output_tokens, mapping.input_tokens, mapping.cached_input_tokens)
        )
        if output and not input_:
            # nobody is answered without having asked
            raise SourceError(
                "no_input_tokens",
                f"the page counts output tokens and no input tokens: expected {mapping.input_tokens[0].name}; "
                "have the gateway show it",
            )
        epochs, cached_epochs = (
            [self._by_key([series], by_name) for series in candidates]
            for candidates in (mapping.epoch, mapping.cached_epoch)
        )
        _refuse_other_labels(output, input_, cached)
        self._refuse_limited(output, cached)
        counters = []
        left_out: dict[str, str] = {}
        for key, counted in output.items():
            try:
                started_ms = _epoch_ms(key, epochs)
                of_input = _sum(input_.get(key, ()))
                told = _sum(cached[key]) if key in cached else None
                of_cache = self._continued.count(
                    key, started_ms, of_input, told, _epoch_ms(key, cached_epochs)
                )
                of_input = self._differences.rest(key, started_ms, of_input, of_cache)
                tokens = (_sum(counted), of_input, of_cache)
            except LeftOutError as error:
                left_out[_name(key)] = str(error)
            else:
                counters.append(GatewayCounter(_name(key), _common(counted), *tokens, started_ms))
        self._differences.keep(output)
        self._continued.keep(output.keys() | cached.keys())
        return counters, left_out

    def _by_key(self, candidates: Sequence[Series], by_name: Mapping[str, Sequence[Sample]]) -> _ByKey:
        """The samples of the first series that is on the page."""
        found: defaultdict[_Labels, list[Sample]] = defaultdict(list)
        series = next((series for series in candidates if fold(series.name) in by_name), None)
        for sample in by_name[fold(series.name)] if series else ():
            if series and series.only.items() <= sample.labels.items():
                apart = self._mapping.sum_over | series.only.keys()
                found[frozenset(item for item in sample.labels.items() if item[0] not in apart)].append(
                    sample
                )
        return dict(found)

    def _refuse_limited(self, output: _ByKey, cached: _ByKey) -> None:
        """Where each counter admits so many sets of labels, tokens of one set stand under another in the next counter."""
        astray = cached.keys() - output.keys()
        limit = self._mapping.limit
        if limit and astray and any({value for _, value in key} == {limit.lumps} for key in output):
            raise SourceError(
                "series_limited",
                f"the page counts cached input and no output for {dict(min(map(sorted, astray)))}: it has reached its "
                f"limit of series, beyond which each counter lumps other labels together; raise {limit.setting}",
            )


def _refuse_other_labels(output: _ByKey, *others: _ByKey) -> None:
    """Counters that cannot be told to belong together would be summed as if they did not."""
    expected = {frozenset(name for name, _ in key) for key in output}
    for other in others:
        for key in other:
            names = frozenset(name for name, _ in key)
            if names not in expected:
                odd = ", ".join(sorted(names ^ next(iter(expected), frozenset())))
                raise SourceError(
                    "labels_differ",
                    f"the counters of input, cached and output tokens do not have the same labels: {odd}; "
                    "is this a version of the gateway that its file in collectors/gateways does not know yet?",
                )


def _sum(samples: Sequence[Sample]) -> int:
    """What the samples count together; 0 where nothing was counted yet. Raises LeftOutError."""
    return sum(map(count, samples))


def _epoch_ms(key: _Labels, epochs: Sequence[_ByKey]) -> int | None:
    for by_key in epochs:
        started_ms = earliest_ms(by_key.get(key, ()) or by_key.get(_NO_LABELS, ()))
        if started_ms is not None:
            return started_ms
    return None


def _common(samples: Sequence[Sample]) -> dict[str, str]:
    """The labels that all have."""
    items = frozenset.intersection(*(frozenset(sample.labels.items()) for sample in samples))
    return dict(sorted(items))


def _name(key: _Labels) -> str:
    return blake2b(repr(sorted(key)).encode(errors="replace"), digest_size=8).hexdigest()
