"""Gateways: how each kind names the tokens it counts and those who asked for them.

A gateway kind is one module here that ends in `MAPPING = GatewayMapping(...)`; the module's name is the kind.
It is found by looking into this package, there is no list to add it to.
"""

import sys
from dataclasses import dataclass

from idlewatt.collectors import mappings
from idlewatt.collectors.engines import Series


@dataclass(frozen=True, slots=True)
class SeriesLimit:
    """How a gateway may be told to count at most so many sets of labels, each counter by itself."""

    setting: str
    # what all labels of the set say that takes the others
    lumps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayMapping:
    """Our quantities as one gateway kind exposes them: pure data.

    Samples that agree in all labels but those in `sum_over`, and those a series asks for (`only`), are one counter.
    Each quantity lists the series to read it from, newest gateway first; the first one on the page counts.
    """

    output_tokens: tuple[Series, ...]
    input_tokens: tuple[Series, ...]
    # of input_tokens, which has them in it
    cached_input_tokens: tuple[Series, ...] = ()
    # labels that not all of the series have; may name a consumer while there is but one value
    sum_over: frozenset[str] = frozenset()
    # start of the counter or of its process, Unix seconds; the first that a counter's labels fit, or that has none
    epoch: tuple[Series, ...] = ()
    # the same of cached_input_tokens
    cached_epoch: tuple[Series, ...] = ()
    limit: SeriesLimit | None = None
    # values of a label that mean that there is none
    unset: frozenset[str] = frozenset({""})
    # label -> the name that it gives (records.UsageRow, "{value}"), where the settings give none
    names: tuple[tuple[str, str], ...] = ()
    # what to do when the page has none of the output series
    if_absent: str = ""

    @property
    def series_names(self) -> frozenset[str]:
        """Names of all series that are read."""
        quantities = (
            self.output_tokens,
            self.input_tokens,
            self.cached_input_tokens,
            self.epoch,
            self.cached_epoch,
        )
        return frozenset(series.name for quantity in quantities for series in quantity)


def mapping_of(kind: str) -> GatewayMapping:
    """The mapping of a gateway kind. Raises ConfigError for one that nobody has written."""
    return mappings.mapping(sys.modules[__name__], kind, GatewayMapping, "gateway")
