"""What the dashboards are made of: thin constructors of four kinds of panel, and what the reader chooses.

Every panel has a title, a sentence or two of description, a unit and a place. Panels that show one moment
ask for that moment only (`instant`): a last value drawn from a range would keep showing a figure that is
no longer known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafanalib.core import BarGauge, GridPos, Panel, Stat, Table, Target, Template, Threshold, TimeSeries

from idlewatt.stream import metric_names as names

Json = dict[str, Any]

# Grafana's own unit for the currencies it knows; a series named by another code is shown as a bare number
_CURRENCY_UNITS: Final = (
    "CHF",
    "EUR",
    "GBP",
    "JPY",
    "KRW",
    "PLN",
    "SEK",
    "NOK",
    "DKK",
    "CZK",
    "INR",
    "BRL",
    "USD",
)
CURRENCY: Final = "short"
# keeps $__rate_interval short in panels of one moment, however long a time the reader looks at
_FINE: Final = 5000


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are named in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a panel lies, in Grafana's grid of 24 columns."""

    x: int
    y: int
    w: int
    h: int

    @property
    def grid(self) -> GridPos:
        return GridPos(h=self.h, w=self.w, x=self.x, y=self.y)


def variables() -> list[Template]:
    """What the reader chooses on every dashboard."""
    site = f"label_values({names.POWER.name}, site)"
    pool = f'label_values({names.POWER.name}{{site=~"$site"}}, pool)'
    every = {"multi": True, "includeAll": True, "allValue": ".+", "sort": 1}
    return [
        Template(name="datasource", label="Data source", type="datasource", query="prometheus"),
        Template(name="site", label="Site", query=site, **every),
        Template(name="pool", label="Pool", query=pool, **every),
    ]


def currency_units() -> list[Json]:
    """Overrides that give a series the unit of the currency its name ends with."""
    return [
        {
            "matcher": {"id": "byRegexp", "options": f"/\\b{code}$/"},
            "properties": [{"id": "unit", "value": f"currency{code}"}],
        }
        for code in _CURRENCY_UNITS
    ]


def colours(by_series: Mapping[str, str]) -> list[Json]:
    """Overrides that fix the colour of series by their legend."""
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in by_series.items()
    ]


def stat(
    title: str,
    query: Query,
    *,
    unit: str,
    description: str,
    place: Place,
    no_value: str = "no data",
    decimals: int | None = None,
    overrides: Sequence[Json] = (),
    time_from: str | None = None,
    beside: Sequence[Query] = (),
) -> Panel:
    """One figure, as it is now, and those `beside` it; `no_value` says what its absence means."""
    return Stat(
        title=title,
        description=description,
        targets=_targets((query, *beside), instant=True),
        format=unit,
        decimals=decimals,
        noValue=no_value,
        graphMode="none",
        reduceCalc="lastNotNull",
        textMode="value_and_name" if query.legend else "value",
        overrides=list(overrides),
        timeFrom=time_from,
        maxDataPoints=_FINE,
        gridPos=place.grid,
    )


def timeseries(
    title: str,
    queries: Sequence[Query],
    *,
    unit: str,
    description: str,
    place: Place,
    stacked: bool = False,
    minimum: int | None = 0,
    maximum: int | None = None,
    overrides: Sequence[Json] = (),
) -> Panel:
    """Figures over time; gaps stay gaps."""
    return TimeSeries(
        title=title,
        description=description,
        targets=_targets(queries, instant=False),
        unit=unit,
        valueMin=minimum,
        valueMax=maximum,
        fillOpacity=60 if stacked else 0,
        stacking={"mode": "normal", "group": "A"} if stacked else {"mode": "none"},
        showPoints="never" if stacked else "auto",
        tooltipMode="multi",
        tooltipSort="desc",
        overrides=list(overrides),
        maxDataPoints=None,
        gridPos=place.grid,
    )


def bargauge(
    title: str,
    query: Query,
    *,
    unit: str,
    description: str,
    place: Place,
    maximum: float | None = None,
    steps: Mapping[str, float] | None = None,
) -> Panel:
    """One bar a series, as it is now; `steps` are colours by the value they begin at, the first from anywhere."""
    return BarGauge(
        title=title,
        description=description,
        targets=_targets((query,), instant=True),
        format=unit,
        calc="lastNotNull",
        displayMode="basic",
        min=0,
        max=maximum,
        thresholds=[
            Threshold(colour, position, float(value))
            for position, (colour, value) in enumerate((steps or {}).items())
        ],
        maxDataPoints=_FINE,
        gridPos=place.grid,
    )


def table(
    title: str,
    query: Query,
    *,
    value: str,
    columns: Mapping[str, str],
    unit: str,
    description: str,
    place: Place,
) -> Panel:
    """One row a series, as it is now: the labels of `columns` (label -> heading), then the value."""
    shown = (*columns, "Value")
    return Table(
        title=title,
        description=description,
        targets=_targets((query,), instant=True, output="table"),
        overrides=[
            {"matcher": {"id": "byName", "options": value}, "properties": [{"id": "unit", "value": unit}]}
        ],
        transformations=[
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: position for position, name in enumerate(shown)},
                    "renameByName": {**columns, "Value": value},
                },
            },
            {"id": "sortBy", "options": {"sort": [{"field": value, "desc": True}]}},
        ],
        unit="none",
        gridPos=place.grid,
    )


def _targets(queries: Sequence[Query], *, instant: bool, output: str = "time_series") -> list[Target]:
    return [
        Target(expr=query.expr, legendFormat=query.legend, instant=instant, format=output)
        for query in queries
    ]
