"""Draws the demo's figures: a screen for terminals, lines of text elsewhere, and the closing summary."""

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from idlewatt.cli.demo_figures import PARTS, SiteFigures, Sums
from idlewatt.stream.records import STATES

_UNKNOWN: Final = "-"
_BAR_CELLS: Final = 20
# of STATES
_GPU_HEADINGS: Final = ("serving", "loaded", "free", "other", "dark")
_STYLES: Final = {
    "serving": "green",
    "idle_loaded": "yellow",
    "idle_free": "red",
    "other": "cyan",
    "dark": "bright_black",
}
# what a reader is to make of each row
_READINGS: Final = {
    ("serving", "draw"): "makes tokens",
    ("serving", "headroom"): "stranded",
    ("idle_loaded", "draw"): "burnt, model waits",
    ("idle_loaded", "headroom"): "unused, model waits",
    ("idle_free", "draw"): "burnt, GPU empty",
    ("idle_free", "headroom"): "unused, GPU empty",
    ("other", "draw"): "other work",
    ("other", "headroom"): "other work",
    ("dark", "draw"): "no telemetry",
    ("dark", "headroom"): "no telemetry",
}


def screen(figures: SiteFigures, url: str) -> RenderableType:
    """The whole screen."""
    title = Text("IDLEWATT  a simulated AI factory", style="bold")
    return Group(
        title,
        _totals(figures),
        "",
        _waterfall(figures),
        "",
        _pools(figures),
        Text(url + "  Ctrl-C ends", "dim"),
    )


def waiting() -> RenderableType:
    """Before the first figures."""
    return Text("the factory starts; its first window closes in a few seconds")


def lines(figures: SiteFigures) -> Iterator[str]:
    """The same figures for a log or a pipe."""
    yield f"site {_headline(figures)}"
    parts = [
        f"{state}.{part} {_watts(figures.waterfall[state, part])}"
        for state in STATES
        for part in PARTS
        if figures.waterfall[state, part]
    ]
    yield f"  available {_watts(figures.available_watts)} = {' + '.join(parts)}"
    for pool in figures.pools:
        gpus = ", ".join(f"{pool.gpus[state]:.3g} {state}" for state in STATES if pool.gpus.get(state))
        yield (
            f"  pool {pool.name}: {_number(pool.tokens_per_s)} tokens/s, {_watts(pool.watts)}, "
            f"{_ratio(pool.tokens_per_joule)} tokens/J, "
            f"lost {_money(pool.lost_per_hour, figures.currency)}/h, GPUs: {gpus}"
        )


def summary(sums: Sums) -> Iterator[str]:
    """What the demo metered in all."""
    share = _UNKNOWN if sums.wasted_share is None else f"{sums.wasted_share:.1%}"
    unpriced = f", without some of pool {', '.join(sums.unpriced_pools)}" if sums.unpriced_pools else ""
    yield "metered in this demo:"
    yield f"  {sums.output_tokens:,.0f} output tokens from {sums.kwh:.3f} kWh: {_ratio(sums.tokens_per_joule)} tokens per joule"
    yield f"  {share} of the watts drawn were wasted on idle GPUs"
    yield (
        f"  {_money(sums.revenue, sums.currency)} of tokens at the demo's prices, "
        f"for {_money(sums.cost, sums.currency)} of electricity and GPU-hours"
    )
    yield (
        f"  idle, in three moneys: {_money(sums.lost_revenue, sums.currency)} of tokens not sold{unpriced}; "
        f"{_money(sums.idle_capital_cost, sums.currency)} of GPU-hours paid; "
        f"{_money(sums.idle_energy_cost, sums.currency)} of electricity burnt"
    )
    yield f"  {_money(sums.benchmark_loss, sums.currency)} at the benchmark of 150 bn USD per gigawatt-year"


def _headline(figures: SiteFigures) -> str:
    return (
        f"{_number(figures.tokens_per_s)} tokens/s, {_watts(figures.watts)} of {_watts(figures.available_watts)}, "
        f"{_ratio(figures.tokens_per_joule)} tokens/J, "
        f"lost {_money(figures.lost_per_hour, figures.currency)}/h, "
        f"benchmark {_money(figures.benchmark_per_hour, figures.currency)}/h"
    )


def _table(*headings: str) -> Table:
    # it must fit a terminal of 80 by 24
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _totals(figures: SiteFigures) -> Table:
    table = _table("tokens/s", "drawn", "available", "tokens/J", "lost revenue", "benchmark loss")
    table.add_row(
        _number(figures.tokens_per_s),
        _watts(figures.watts),
        _watts(figures.available_watts),
        _ratio(figures.tokens_per_joule),
        f"{_money(figures.lost_per_hour, figures.currency)}/h",
        f"{_money(figures.benchmark_per_hour, figures.currency)}/h",
        style="bold",
    )
    return table


def _waterfall(figures: SiteFigures) -> Table:
    table = _table("available watts", "watts", "share", "", "")
    for column in (0, 3, 4):
        table.columns[column].justify = "left"
    available = figures.available_watts
    for (state, part), watts in figures.waterfall.items():
        if watts:
            share = watts / available
            bar = Text(("#" if part == "draw" else "-") * round(share * _BAR_CELLS), style=_STYLES[state])
            table.add_row(f"{state} {part}", _watts(watts), f"{share:.1%}", bar, _READINGS[state, part])
    table.add_row("sum", _watts(available), "100.0%", "", "", style="bold")
    return table


def _pools(figures: SiteFigures) -> Table:
    table = _table("pool", *_GPU_HEADINGS, "tokens/s", "drawn", "tokens/J", f"{figures.currency} lost/h")
    table.columns[0].justify = "left"
    for pool in figures.pools:
        table.add_row(
            pool.name,
            *(f"{pool.gpus.get(state, 0.0):.1f}".removesuffix(".0") for state in STATES),
            _number(pool.tokens_per_s),
            _watts(pool.watts),
            _ratio(pool.tokens_per_joule),
            _amount(pool.lost_per_hour),
        )
    return table


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3g}"


def _amount(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    if 0 < value < 0.1:
        # little is not nothing
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _money(value: float | None, currency: str) -> str:
    return _UNKNOWN if value is None else f"{_amount(value)} {currency}"


def _watts(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value / 1000:.1f} kW" if value >= 1000 else f"{value:.0f} W"
