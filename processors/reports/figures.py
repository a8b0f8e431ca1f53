"""The figures of a report: decimals that add up, as exact as asked for, and ratios.

Sums are rounded so that each column's rows add up to its total, and figures that are sums of others (available watts,
costs, margin) are added from those as shown: whatever is added up, along rows or columns, is what stands there.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import polars as pl

from idlewatt.processors.blind_nodes import UNMETERED_REVENUE, UNMETERED_TOKENS
from idlewatt.processors.economy import tariff
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.reports.report import Grouped
from idlewatt.processors.reports.rounding import rounded, rounded_parts
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.records import STATES, TOKEN_COUNTS

MJ_PER_KWH: Final = 3_600_000_000
# the waterfall in money, where idle is one part
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "serving": ("serving",),
    "idle": ("idle_loaded", "idle_free"),
    "other": ("other",),
    "dark": ("dark",),
}
COUNTS: Final = (
    *TOKEN_COUNTS,
    "unpriced_tokens",
    "unlisted_tokens",
    "unattributed_tokens",
    "unmade_tokens",
    "unmetered_tokens",
    "lost_tokens",
    "unvalued_lost_tokens",
)
ENERGY: Final[Mapping[str, tuple[str, ...]]] = {
    **{f"{state}_kwh": (f"draw_{state}_mj", f"headroom_{state}_mj") for state in STATES},
    "drawn_kwh": tuple(f"draw_{state}_mj" for state in STATES),
    "no_yardstick_kwh": ("unmeasured_mj",),
}
HOURS: Final = {
    "gpu_hours": ("gpu_ms",),
    "dark_gpu_hours": ("dark_gpu_ms",),
    "uncosted_gpu_hours": ("uncosted_gpu_ms",),
}
MONEY: Final[Mapping[str, tuple[str, ...]]] = {
    "revenue": ("revenue_micro",),
    "acquisition_cost": ("acquisition_micro",),
    **{
        f"{kind}_cost_{part}": tuple(f"{kind}_{state}_micro" for state in states)
        for kind in ("energy", "capital")
        for part, states in PARTS.items()
    },
    "published_capital_cost": ("published_micro",),
    "lost_revenue": ("lost_micro",),
    "benchmark_lost_revenue_usd": ("benchmark_micro",),
}
# figure -> what is added to make it, and what is taken away
ADDED: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "available_kwh": (tuple(f"{state}_kwh" for state in STATES), ()),
    "energy_cost": (tuple(f"energy_cost_{part}" for part in PARTS), ()),
    "capital_cost": (tuple(f"capital_cost_{part}" for part in PARTS), ()),
    "cost_usage": (("energy_cost_serving", "capital_cost_serving"), ()),
    "cost_allocation": (("energy_cost", "capital_cost"), ()),
    "cost_not_serving": (("cost_allocation",), ("cost_usage",)),
    "margin": (("revenue",), ("cost_allocation",)),
}
RATIOS: Final = (
    "tokens_per_joule",
    "energy_cost_per_mtok_usage",
    "energy_cost_per_mtok_allocation",
    "cost_per_mtok_usage",
    "cost_per_mtok_allocation",
)
COLUMNS: Final = (
    *COUNTS,
    "available_kwh",
    *ENERGY,
    *HOURS,
    *MONEY,
    *(name for name in ADDED if name != "available_kwh"),
    *RATIOS,
    "withheld",
)
TOO_FEW: Final = "too few tokens"
_RATIO_DECIMALS: Final = 6

# what is made of watts and GPU time
_OF_WATTS: Final = (
    *ENERGY,
    *HOURS,
    *(name for name in MONEY if name not in ("revenue", "acquisition_cost")),
    "lost_tokens",
)

Value = int | Decimal | str | None


@dataclass(frozen=True, slots=True)
class Decimals:
    """How many decimals sums of money have, and sums of kilowatt-hours and GPU-hours."""

    money: int
    hours: int


# as exact as the ledger's micro-units; a millionth of a kWh is 3.6 J, of an hour 3.6 ms
EXACT: Final = Decimals(6, 6)
CENTS: Final = Decimals(2, 3)


@dataclass(frozen=True, slots=True)
class Figures:
    """Rows of figures: names of the dimensions and COLUMNS; the total has no names."""

    by: tuple[str, ...]
    rows: list[dict[str, Value]]
    total: dict[str, Value]


def figures(
    grouped: Grouped, book: Book, decimals: Decimals, coverage_floor: float, min_tokens: int = 1
) -> Figures:
    """Figures of each row. One that lacks what it stands on (a price, a tariff) is None; `withheld` says what.

    Ratios, too, where less than `coverage_floor` of the GPU time has telemetry, or less than that of the output was made by
    engines, or of tokens of any kind by ones whose GPUs are read, or where fewer than `min_tokens` of output were made.
    """
    unmetered_tokens = pl.sum_horizontal(UNMETERED_TOKENS.values())
    grouped = dataclasses.replace(grouped, rows=grouped.rows.with_columns(unmetered_tokens=unmetered_tokens))
    rows = grouped.rows.to_dicts()
    total = {name: grouped.total(name) for name in grouped.rows.columns if name not in grouped.by}
    shown: list[dict[str, Value]] = [{name: row[name] for name in (*grouped.by, *COUNTS)} for row in rows]
    shown_total: dict[str, Value] = {name: total[name] for name in COUNTS}
    for names, per, places in (
        (ENERGY, MJ_PER_KWH, decimals.hours),
        (HOURS, HOUR_MS, decimals.hours),
        (MONEY, MICRO, decimals.money),
    ):
        for name, measures in names.items():
            # a millionth of an hour is no whole number of milliseconds
            amounts = [10**places * sum(row[measure] for measure in measures) for row in rows]
            for line, part in zip(shown, rounded_parts(amounts, per), strict=True):
                line[name] = Decimal(part).scaleb(-places)
            shown_total[name] = Decimal(rounded(sum(amounts), per)).scaleb(-places)
    has_tariff = tariff.has_price(book.tariff)
    of_place = [name for name in grouped.by if name in ("site", "pool")]
    covered = [*_covered(rows, of_place, coverage_floor), *_covered([total], (), coverage_floor)]
    for line, row, is_covered in zip([*shown, shown_total], [*rows, total], covered, strict=True):
        _complete(line, row, has_tariff, is_covered, coverage_floor, min_tokens)
    order = (*grouped.by, *COLUMNS)
    return Figures(
        grouped.by,
        [{name: line[name] for name in order} for line in shown],
        {name: shown_total[name] for name in COLUMNS},
    )


def has_no_price(tokens: int, given_tokens: int, unpriced_tokens: int, revenue_micro: int) -> bool:
    """Whether nothing is known of what the tokens bring; where a part is, its sum stands beside what lacks a price.

    Those that are given away bring nothing whatever the others are sold at.
    """
    return tokens - given_tokens == unpriced_tokens != 0 and revenue_micro == 0


def unmetered(found: Figures) -> Figures:
    """Of an interval without watts and tokens, of which nothing is known that could be a total."""
    return dataclasses.replace(found, total=dict.fromkeys(COLUMNS) | {"withheld": "nothing in the ledger"})


def _covered(
    rows: Sequence[Mapping[str, Any]], of_place: Sequence[str], coverage_floor: float
) -> Iterator[bool]:
    """Of each row whether the GPUs of its place were seen for so much of their time.

    What is dark has no model, tier or consumer, so that rows by those stand or fall together.
    """
    places = [tuple(row[name] for name in of_place) for row in rows]
    seen: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for place, row in zip(places, rows, strict=True):
        seen[place].update({name: row[name] for name in ("gpu_ms", "dark_gpu_ms")})
    for place in places:
        gpu_ms, dark_gpu_ms = seen[place]["gpu_ms"], seen[place]["dark_gpu_ms"]
        yield gpu_ms - dark_gpu_ms >= coverage_floor * gpu_ms


def _complete(
    line: dict[str, Value],
    row: Mapping[str, int],
    has_tariff: bool,
    is_covered: bool,
    coverage_floor: float,
    min_tokens: int,
) -> None:
    """Withhold what is unknown, and add what is made of other figures."""
    output, unmade = row["output_tokens"], row["unmade_tokens"]
    # of nobody's tokens, what others were told beyond the engines' is taken away
    is_made = output - abs(unmade) >= coverage_floor * output
    all_kinds = sum(row[name] for name in TOKEN_COUNTS)
    is_metered = _is_metered(row, UNMETERED_TOKENS, min_tokens, coverage_floor)
    has_costs = is_metered and _is_metered(row, UNMETERED_REVENUE, 1, coverage_floor)
    is_enough = output >= min_tokens
    is_read = bool(row["is_read"])
    lacking = {
        "no GPUs in the ledger": not is_read,
        "no tariff": not has_tariff,
        "GPU time without telemetry": not is_covered,
        "tokens without telemetry of their GPUs": not has_costs,
        "tokens that no engine made": not is_made,
        TOO_FEW: not is_enough,
        "tokens without a price": row["unpriced_tokens"] != 0,
        "given away without a price": row["unlisted_tokens"] != 0,
        "GPU-hours without a price": row["uncosted_gpu_ms"] != 0,
        "idle watts without a yardstick": row["unmeasured_mj"] != 0,
        "lost tokens without a price": row["unvalued_lost_tokens"] != 0,
    }
    no_capital = row["uncosted_gpu_ms"] != 0 and not any(
        row[measure] for part in PARTS for measure in MONEY[f"capital_cost_{part}"]
    )
    unknown = {
        "revenue": has_no_price(all_kinds, row["given_tokens"], row["unpriced_tokens"], row["revenue_micro"]),
        "acquisition_cost": row["acquisition_micro"] == 0 != row["unlisted_tokens"],
        "lost_tokens": row["lost_tokens"] == 0 != row["unmeasured_mj"],
        "lost_revenue": row["lost_micro"] == 0
        and (row["unmeasured_mj"], row["unvalued_lost_tokens"]) != (0, 0),
        **{f"energy_cost_{part}": not has_tariff for part in PARTS},
        **{f"capital_cost_{part}": no_capital for part in PARTS},
    }
    for name in (name for name, is_unknown in unknown.items() if is_unknown):
        line[name] = None
    if not is_read:
        line.update(dict.fromkeys(_OF_WATTS))
    for name, (plus, minus) in ADDED.items():
        line[name] = _sum(line, plus, minus)
    if lacking["GPU-hours without a price"]:
        line.update(dict.fromkeys(("cost_usage", "cost_allocation", "cost_not_serving", "margin")))
    # what others were told beyond the engines' is taken away from nobody's margin, too
    is_bought = output > 0 and not is_made
    if is_bought or not has_costs or lacking["tokens without a price"]:
        line["margin"] = None
    _ratios(line, row)
    if not (is_covered and is_metered and is_made and is_enough):
        line.update(dict.fromkeys(RATIOS))
    line["withheld"] = "; ".join(name for name, is_so in lacking.items() if is_so)


def _is_metered(
    row: Mapping[str, int], counted: Mapping[str, str], least: int, coverage_floor: float
) -> bool:
    """As blind_nodes.metered(); of nobody's, what others were told beyond the engines' is taken away."""
    amounts = {unmetered: max(abs(row[name]), least) for name, unmetered in counted.items()}
    return all(amounts[name] - abs(row[name]) >= coverage_floor * amounts[name] for name in amounts)


def _sum(line: Mapping[str, Value], plus: tuple[str, ...], minus: tuple[str, ...]) -> Decimal | None:
    added, taken = [line[name] for name in plus], [line[name] for name in minus]
    if None in added or None in taken:
        return None
    return sum(map(Decimal, added), Decimal(0)) - sum(map(Decimal, taken), Decimal(0))  # type: ignore[arg-type]


def _ratios(line: dict[str, Value], row: Mapping[str, int]) -> None:
    """Of the exact sums, not of those that are shown."""
    tokens = row["output_tokens"]
    drawn_mj = sum(row[name] for name in ENERGY["drawn_kwh"])
    line["tokens_per_joule"] = _ratio(tokens * 1000, drawn_mj)
    amounts: Mapping[str, Callable[[str], bool]] = {
        "usage": lambda name: name.endswith("_cost_serving"),
        "allocation": lambda _: True,
    }
    for basis, counts in amounts.items():
        spent = {
            kind: sum(
                row[measure]
                for name, measures in MONEY.items()
                if name.startswith(f"{kind}_cost_") and counts(name)
                for measure in measures
            )
            for kind in ("energy", "capital")
        }
        energy_known = line["energy_cost_serving"] is not None
        all_known = line["cost_allocation"] is not None
        line[f"energy_cost_per_mtok_{basis}"] = _ratio(spent["energy"], tokens) if energy_known else None
        line[f"cost_per_mtok_{basis}"] = _ratio(sum(spent.values()), tokens) if all_known else None


def _ratio(amount: int, by: int) -> Decimal | None:
    """To six decimals; micro-units per token are whole units per million tokens."""
    if by <= 0:
        return None
    return Decimal(rounded(amount * 10**_RATIO_DECIMALS, by)).scaleb(-_RATIO_DECIMALS)
