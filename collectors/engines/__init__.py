"""Inference servers: how each kind names what we measure.

A server kind is one module here that ends in `MAPPING = EngineMapping(...)`; the module's name is the kind.
It is found by looking into this package, there is no list to add it to.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from idlewatt.collectors import mappings


@dataclass(frozen=True, slots=True)
class Series:
    """Samples on a server's page that add up to one quantity.

    `name` is the sample's whole name, with `_total` or `_sum` if the page prints it; ':' and '_' are alike.
    """

    name: str
    # labels a sample must have to belong here
    only: Mapping[str, str] = field(default_factory=dict)
    # name of a counter to take off; counts as 0 on a page that lacks it
    less: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMapping:
    """Our quantities as one server kind exposes them: pure data.

    Each quantity lists the series to read it from, newest server first; the first one on the page counts.
    """

    # the label that names the model
    model_label: str
    # labels whose values may be added up (data-parallel ranks); any other label must have one value
    sum_over: frozenset[str]
    # when the output counter moves (EngineRow.advance)
    advance: Literal["step", "prefill_end", "request_end"]
    output_tokens: tuple[Series, ...]
    input_tokens: tuple[Series, ...] = ()
    cached_input_tokens: tuple[Series, ...] = ()
    requests_running: tuple[Series, ...] = ()
    requests_waiting: tuple[Series, ...] = ()
    # 0..1; the mean where there are several
    kv_cache_ratio: tuple[Series, ...] = ()
    # start of the counting process, Unix seconds
    epoch: tuple[Series, ...] = ()
    # series with the server's version as a label, and that label
    version: tuple[str, str] | None = None
    # what to do when the page has none of the output series
    if_absent: str = ""

    @property
    def series_names(self) -> frozenset[str]:
        """Names of all series that are read."""
        quantities = (
            *self.output_tokens,
            *self.input_tokens,
            *self.cached_input_tokens,
            *self.requests_running,
            *self.requests_waiting,
            *self.kv_cache_ratio,
            *self.epoch,
        )
        names = {name for series in quantities for name in (series.name, series.less) if name}
        return frozenset(names | ({self.version[0]} if self.version else set()))


def mapping_of(server: str) -> EngineMapping:
    """The mapping of a server kind. Raises ConfigError for one that nobody has written."""
    return mappings.mapping(sys.modules[__name__], server, EngineMapping, "inference server")
