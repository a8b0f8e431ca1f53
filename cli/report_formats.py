"""A report's figures as a table for people, and as CSV, JSON and Parquet for programs."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import polars as pl

from idlewatt.cli.moments import written
from idlewatt.cli.text_table import printable, text_table
from idlewatt.processors.economy.book import Book
from idlewatt.processors.reports.demand import Peak
from idlewatt.processors.reports.figures import COLUMNS, COUNTS, PARTS, TOO_FEW, Figures, Value, unmetered
from idlewatt.processors.reports.ledger import LAG_MS, Interval, Ledger, Reach
from idlewatt.stream.clock import HOUR_MS, unix_ms

# Nobody uses anything at some times of the day; and where the economy does not run, nothing that is used is in the log.
_UNUSED_MS: Final = 6 * HOUR_MS
_UNKNOWN: Final = "-"
_NOBODY: Final = "(none)"
# of ratios, which nobody adds up
_PLACES: Final = 4
_TOKENS_AND_WATTS: Final = {
    "output_tokens": "output tokens",
    "input_tokens": "input",
    "cached_input_tokens": "cached input",
    "available_kwh": "available kWh",
    "serving_kwh": "serving",
    "idle_loaded_kwh": "idle_loaded",
    "idle_free_kwh": "idle_free",
    "other_kwh": "other",
    "dark_kwh": "dark",
    "drawn_kwh": "drawn kWh",
    "tokens_per_joule": "tokens/J",
    "lost_tokens": "lost tokens",
}
_MONEY: Final = {
    "revenue": "revenue",
    "energy_cost": "energy",
    "capital_cost": "capital",
    "cost_usage": "cost, usage",
    "cost_not_serving": "not serving",
    "cost_allocation": "cost, allocation",
    "margin": "margin",
    "cost_per_mtok_usage": "/Mtok, usage",
    "cost_per_mtok_allocation": "/Mtok, allocation",
    "lost_revenue": "lost revenue",
    "benchmark_lost_revenue_usd": "benchmark USD",
}


@dataclass(frozen=True, slots=True)
class Heading:
    """What a report is of, and what the ledger has of it."""

    interval: Interval
    book: Book
    reach: Sequence[Reach]
    # sites of which there is nothing in the interval, and when what is known of them ends
    ended: Sequence[tuple[str, int]]
    # sites of which there is usage alone in the interval, and when it ends
    used_alone: Sequence[tuple[str, int]]
    now_ms: int

    @classmethod
    def now(cls, interval: Interval, book: Book, ledger: Ledger) -> "Heading":
        reach, ended = ledger.reach(interval), ledger.ended(interval)
        return cls(interval, book, reach, ended, ledger.used_alone(interval), unix_ms())

    @property
    def is_metered(self) -> bool:
        return bool(self.reach)

    @property
    def columns(self) -> dict[str, str]:
        zone = self.book.time_zone
        return {
            "from": written(self.interval.from_ms, zone),
            "to": written(self.interval.to_ms, zone),
            "currency": self.book.currency,
        }

    @property
    def notes(self) -> Iterator[str]:
        """That there is no book; where a site's ledger lacks a part of the interval, or all of it, which is in no figure;
        and what is not over.
        """
        if self.book == Book():
            yield "book: there is none, or it says nothing: tokens and electricity have no price, times are in UTC"
        if not self.is_metered:
            yield "ledger: it has nothing of this interval"
        end_ms = min(self.interval.to_ms, self.now_ms)
        for site in self.reach:
            told = [
                f"{verb} at {written(ms, self.book.time_zone)}"
                for verb, ms, lacking_ms in (
                    ("begins", site.from_ms, site.from_ms - self.interval.from_ms),
                    ("ends", site.to_ms, end_ms - site.to_ms),
                )
                if lacking_ms > LAG_MS
            ]
            if site.gaps:
                told.append(self._gaps(site.gaps))
            if told:
                yield f"ledger: that of {printable(site.site)} {' and '.join(told)}"
            if site.used_ms is not None and min(end_ms, site.to_ms) - site.used_ms > _UNUSED_MS:
                yield (
                    f"usage: the newest of {printable(site.site)} is of {written(site.used_ms, self.book.time_zone)}; what "
                    "was used after that is in no figure"
                )
        for name, to_ms in self.used_alone:
            yield (
                f"ledger: that of {printable(name)} has nothing of this interval but usage up to "
                f"{written(to_ms, self.book.time_zone)}"
            )
        for name, to_ms in self.ended:
            if end_ms - to_ms > LAG_MS:
                yield f"ledger: that of {printable(name)} ends at {written(to_ms, self.book.time_zone)}"
        if self.now_ms < self.interval.to_ms:
            yield f"interval: it is not over, now is {written(self.now_ms, self.book.time_zone)}"
        hour_ms = (self.interval.to_ms - 1) // HOUR_MS * HOUR_MS
        is_used = any(site.used_ms is not None for site in self.reach)
        if is_used and self.interval.to_ms <= self.now_ms < hour_ms + HOUR_MS:
            yield (
                f"tiers: the hour from {written(hour_ms, self.book.time_zone)} is not over; until it is, its tiers and what "
                "its tokens bring can change"
            )

    def _gaps(self, gaps: Sequence[tuple[int, int]]) -> str:
        from_ms, to_ms = max(gaps, key=lambda gap: gap[1] - gap[0])
        begin, end = (written(ms, self.book.time_zone) for ms in (from_ms, to_ms))
        of = f", the longest of {len(gaps)} gaps of over ten minutes" if len(gaps) > 1 else ""
        return f"has nothing from {begin} to {end}{of}"

    def known(self, found: Figures) -> Figures:
        """The figures, without a total where nothing was metered."""
        return found if self.is_metered else unmetered(found)

    @property
    def as_of_ms(self) -> int | None:
        """Until when the ledger has told, where that is not to the interval's end."""
        ends_ms = (*(site.to_ms for site in self.reach), *(to_ms for _, to_ms in self.used_alone))
        told_ms = max(ends_ms, default=self.interval.from_ms)
        return None if told_ms >= self.interval.to_ms - LAG_MS else min(told_ms, self.now_ms)


def table(heading: Heading, found: Figures, peaks: Sequence[Peak]) -> Iterator[str]:
    """Two tables, of tokens and watts and of money, each with its total, and how it reconciles."""
    head = heading.columns
    yield f"{head['from']} to {head['to']} ({heading.book.time_zone}), money in {head['currency']}"
    for columns in (_TOKENS_AND_WATTS, _MONEY):
        yield ""
        names = list(found.by) or [""]
        rows = [
            [*_names(row, found.by), *(shown(row[column]) for column in columns)]
            for row in (found.rows if found.by else [])
        ]
        rows.append(["total", *[""] * (len(names) - 1), *(shown(found.total[column]) for column in columns)])
        yield from text_table([*names, *columns.values()], rows, len(names))
    yield ""
    yield from reconciliation_lines(found)
    yield from (*heading.notes, *too_few(found), *notes(found))
    for peak in peaks:
        what = f"demand charge of {printable(peak.site)}, {peak.month}: "
        unseen = ""
        if peak.unseen_quarters:
            unseen = f"; quarters left out for GPU time without telemetry: {peak.unseen_quarters:,}"
        if peak.start_ms is None:
            none = "; the ledger has no whole quarter of an hour of it in this interval"
            yield f"{what}{_UNKNOWN}{unseen or none}"
            continue
        at = written(peak.start_ms, heading.book.time_zone)
        cost = f"{peak.charge:,.2f} for {peak.kw:,} kW in the quarter of an hour from {at}"
        yield f"{what}{cost}; it is in no cost above{unseen}"


def reconciliation(found: Figures) -> dict[str, dict[str, Value]]:
    """available = serving + idle + other + dark, in kWh and in money."""
    total = found.total
    kwh = {part: _added(*(total[f"{state}_kwh"] for state in states)) for part, states in PARTS.items()}
    cost = {part: _added(total[f"energy_cost_{part}"], total[f"capital_cost_{part}"]) for part in PARTS}
    return {
        "kwh": {"available": total["available_kwh"], **kwh},
        "cost": {"available": _added(total["energy_cost"], total["capital_cost"]), **cost},
    }


def reconciliation_lines(found: Figures) -> Iterator[str]:
    for what, parts in reconciliation(found).items():
        whole, *pieces = (f"{name} {shown(value)}" for name, value in parts.items())
        yield f"{what:4}  {whole} = {' + '.join(pieces)}"


_NOTES: Final = {
    "unattributed": ("unattributed_tokens", "output tokens are in no usage: they are on the default tier"),
    "unpriced": ("unpriced_tokens", "tokens of all kinds have no price in the book: they are in no amount"),
    "unlisted": (
        "unlisted_tokens",
        "given-away tokens have no price in the book: they are in no acquisition cost",
    ),
    "dark": ("dark_gpu_hours", "GPU-hours have no telemetry: ratios stand on the others, or are withheld"),
    "unmade": (
        "unmade_tokens",
        "output tokens are in usage and no engine made them: ratios stand on the others, or are withheld",
    ),
    "unmetered": (
        "unmetered_tokens",
        "tokens of all kinds are of pools or engines whose GPUs nobody read: ratios stand on the others, or are withheld",
    ),
    "uncosted": ("uncosted_gpu_hours", "GPU-hours have no price: their capital cost is in no amount"),
    "no yardstick": ("no_yardstick_kwh", "idle kWh have no yardstick: what they lost is in no figure"),
    "unvalued": ("unvalued_lost_tokens", "lost tokens have no price: they are in no lost revenue"),
    "published": ("published_capital_cost", "of the capital cost is at published prices, not at the book's"),
}


def notes(found: Figures, about: Iterable[str] = tuple(_NOTES)) -> Iterator[str]:
    """What a reader must know of the figures."""
    for what in about:
        column, text = _NOTES[what]
        # what usage tells beyond the engines' tokens is in a row of its own and taken away in nobody's
        amounts = (row[column] for row in found.rows)
        amount = sum(value for value in amounts if isinstance(value, int | Decimal) and value > 0)
        if amount:
            yield f"{what}: {shown(amount)} {text}"


def too_few(*found: Figures) -> Iterator[str]:
    """Why ratios are withheld, where no column says so; that there are none of no tokens needs no reason."""
    lines = [line for figures in found for line in (*figures.rows, figures.total)]
    few = [line["output_tokens"] for line in lines if TOO_FEW in str(line["withheld"])]
    if any(isinstance(tokens, int) and tokens > 0 for tokens in few):
        yield "too few tokens: ratios of what made fewer output tokens than process.min_tokens are withheld"


def frame(heading: Heading, found: Figures) -> pl.DataFrame:
    """One row a group; sums are exact decimals."""
    head = heading.columns
    schema: dict[str, Any] = {
        **dict.fromkeys((*head, *found.by), pl.String),
        **{name: _column_type(name) for name in COLUMNS},
    }
    return pl.DataFrame([head | row for row in found.rows], schema=schema, orient="row")


def as_json(heading: Heading, found: Figures, peaks: Sequence[Peak], unreadable: int) -> str:
    """Decimals are text, so that nothing is lost in a float."""
    zone = heading.book.time_zone
    return json.dumps(
        {
            **heading.columns,
            "time_zone": zone,
            "by": found.by,
            "rows": found.rows,
            "total": found.total,
            "reconciliation": reconciliation(found),
            "notes": [*heading.notes, *notes(found)],
            "ledger": [
                {"site": site.site, "from": written(site.from_ms, zone), "to": written(site.to_ms, zone)}
                for site in heading.reach
            ],
            "demand_charges": [
                {**dataclasses.asdict(peak), "from": peak.start_ms and written(peak.start_ms, zone)}
                for peak in peaks
            ],
            "unreadable_messages": unreadable,
        },
        default=str,
        ensure_ascii=False,
        indent=2,
    )


def _column_type(name: str) -> Any:
    if name in COUNTS:
        return pl.Int64
    return pl.String if name == "withheld" else pl.Decimal(38, 6)


def _names(row: Mapping[str, Value], by: Sequence[str]) -> list[str]:
    return [str(row[name]) or _NOBODY for name in by]


def _added(*amounts: Value) -> Decimal | None:
    return None if None in amounts else sum((Decimal(str(a)) for a in amounts), Decimal(0))


def shown(value: Value) -> str:
    """For people; `-` is what is not known."""
    match value:
        case None:
            return _UNKNOWN
        case str():
            return value
        case Decimal() if -value.as_tuple().exponent > _PLACES:  # type: ignore[operator]
            return f"{value:,.{_PLACES}f}"
        case _:
            return f"{value:,}"
