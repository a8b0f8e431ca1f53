"""Which price holds for a model's tokens on a tier at a moment, and what consumers owe, volume steps at the edge."""

import datetime as dt
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

import polars as pl

from idlewatt.processors.amounts import MOST, SUM
from idlewatt.processors.economy.book import MICRO, Book, Price
from idlewatt.processors.economy.rests import REST_KEY, whole_micro
from idlewatt.stream import records
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.globs import matches
from idlewatt.stream.records import TOKEN_KINDS

PRICE_KEY: Final = ["model_name", "tier", "window_start_ms"]
PRICE_COLUMNS: Final = {
    "model_name": pl.String,
    "tier": pl.String,
    "window_start_ms": pl.Int64,
    # the [[price]] in force: its place in the book and, for volumes, its model glob
    "entry": pl.Int64,
    "glob": pl.String,
    "price_output": pl.Int64,
    "price_input": pl.Int64,
    "price_cached_input": pl.Int64,
}
_MODEL_WINDOW: Final = ["model_name", "window_start_ms"]
# what each billed consumer has spent in a month under the prices of one glob and tier
VOLUME_KEY: Final = ("site", "billed_kind", "billed", "month", "glob", "tier")
VOLUME_COLUMNS: Final[dict[str, Any]] = {**dict.fromkeys(VOLUME_KEY, pl.String), "tokens": SUM}
# of a row of usage, in micro-units x 10^6 as Int128: what it owes, and what it would owe without steps and on a tier that is sold.
EXACT: Final = ("owed", "worth")


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    price: Price
    tier: str
    from_ms: int | None


def effective_from_ms(price: Price, time_zone: str) -> int | None:
    """Unix milliseconds; of a local time that comes twice the first. None: from ever."""
    moment = price.effective_from
    if moment is None:
        return None
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime.combine(moment, dt.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(time_zone))
    return round(moment.timestamp()) * 1000


def price_frame(book: Book, wanted: pl.DataFrame) -> pl.DataFrame:
    """PRICE_COLUMNS of the distinct PRICE_KEY rows that have a price; prices in micro-units per million tokens.

    A window's start decides: prices change on whole minutes, and no window spans one but parts of a usage counter's gap of
    more than an hour. Of the entries that match, those of the first glob count that has one in force, and of these the newest.
    """
    lines = _lines(book)
    rows = []
    # looked for once, not for each window: a book may have hundreds of lines
    of_model = functools.cache(functools.partial(_entries, lines))
    for model, tier, at_ms in wanted[PRICE_KEY].unique().iter_rows() if lines else ():
        entry = _in_force(of_model(model, tier), at_ms)
        if entry is not None:
            price = entry.price
            rows.append(
                (model, tier, at_ms, entry.number, price.model, price.output, price.input, _cached(price))
            )
    return pl.DataFrame(rows, schema=PRICE_COLUMNS, orient="row")


def default_output(book: Book, wanted: pl.DataFrame) -> pl.DataFrame:
    """What a million output tokens are listed at on the default tier: model_name, window_start_ms and price_output.

    Without a model it is what `*` stands for, else the least that any model's cost and that is not 0.
    """
    tier = book.default_tier
    found = price_frame(book, wanted.with_columns(tier=pl.lit(tier)))[[*_MODEL_WINDOW, "price_output"]]
    unknown = wanted.filter(pl.col("model_name") == "").join(found, on=_MODEL_WINDOW, how="anti")
    least = [("", at_ms, _least_output(book, tier, at_ms)) for at_ms in unknown["window_start_ms"].unique()]
    return pl.concat([found, pl.DataFrame(least, schema=found.schema, orient="row")])


def highest_output(book: Book, wanted: pl.DataFrame) -> pl.DataFrame:
    """The most that a million output tokens are listed at on any tier: model_name, window_start_ms and price_output."""
    tiers = pl.Series("tier", book.tiers).to_frame()
    found = price_frame(book, wanted[_MODEL_WINDOW].unique().join(tiers, how="cross"))
    return found.group_by(_MODEL_WINDOW).agg(pl.col("price_output").max())


def listed(book: Book, rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` (PRICE_KEY and tokens by kind) with the price columns and `worth`, micro-units x 10^6, as Int128.

    Null where the book has no price, or the amount is beyond all bounds. A tier that is not sold and has no price of
    its own is listed at the default tier's.
    """
    own = price_frame(book, rows)
    if own.is_empty():
        prices = {name: dtype for name, dtype in PRICE_COLUMNS.items() if name not in PRICE_KEY}
        rows = rows.with_columns_seq(pl.lit(None, dtype).alias(name) for name, dtype in prices.items())
    else:
        rows = rows.join(own, on=PRICE_KEY, how="left", maintain_order="left")
    lacking = pl.col("entry").is_null() & pl.col("tier").is_in(book.unsold)
    if book.unsold and rows.select(lacking.any()).item():
        default = price_frame(book, rows.filter(lacking).with_columns(tier=pl.lit(book.default_tier)))
        stand_in = default.drop("tier").rename({name: f"{name}_default" for name in default.columns[3:]})
        rows = rows.join(stand_in, on=["model_name", "window_start_ms"], how="left", maintain_order="left")
        rows = rows.with_columns(
            pl.when(lacking).then(f"{name}_default").otherwise(name).alias(name)
            for name in default.columns[3:]
        ).drop(f"{name}_default" for name in default.columns[3:])
    worth = pl.sum_horizontal(
        pl.col(f"{kind}_tokens").cast(pl.Int128) * pl.col(f"price_{kind}") for kind in TOKEN_KINDS
    )
    known = pl.col("entry").is_not_null() & (worth < MOST * MICRO)
    return rows.with_columns(worth=pl.when(known).then(worth))


def month_of(book: Book) -> pl.Expr:
    """The calendar month of the book's time zone that a row's window begins in."""
    local = pl.from_epoch("window_start_ms", time_unit="ms").dt.convert_time_zone(book.time_zone)
    return local.dt.strftime("%Y-%m")


def price_minutes(
    book: Book, minutes: pl.DataFrame, volumes: pl.DataFrame, rests: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """What consumers owe: `minutes` (columns of records.CONSUMER but currency and spend_micro), priced in their order.

    `volumes`: VOLUME_COLUMNS, what was spent before in each month; `rests`: REST_COLUMNS, see rests.py. Returns rows of
    records.CONSUMER with EXACT beside it, and the volumes and rests after. A row that spans the edge of a step is split in
    proportion to its tokens of each kind. spend_micro is 0 on a tier that is not sold, else null where the book has no
    price. Nothing depends on which rows are read together.
    """
    tokens = pl.sum_horizontal(pl.col(f"{kind}_tokens").cast(SUM) for kind in TOKEN_KINDS)
    rows = listed(book, minutes).with_columns(
        tokens.alias("tokens"),
        month_of(book).alias("month"),
        pl.col(book.billed).alias("billed"),
        billed_kind=pl.lit(book.billed),
    )
    before = volumes.rename({"tokens": "before"})
    rows = rows.join(before, on=list(VOLUME_KEY), how="left", maintain_order="left").with_columns(
        volume=pl.col("before").fill_null(0) + pl.col("tokens").cum_sum().over(VOLUME_KEY) - pl.col("tokens")
    )
    rows = _stepped(book, rows)
    sold = pl.col("tier").is_in(book.unsold).not_()
    owed = pl.when(sold).then(pl.when(pl.col("worth").is_not_null()).then("owed")).otherwise(0)
    rows = rows.with_columns(owed=owed.cast(SUM))
    spent, rests = whole_micro(rows.select(*REST_KEY, exact="owed"), rests)
    priced = rows.with_columns(spent.alias("spend_micro"), currency=pl.lit(book.currency))
    counted = rows.filter((pl.col("billed") != "") & pl.col("glob").is_not_null())
    after = (
        pl.concat([volumes, counted.select(*VOLUME_COLUMNS)])
        .group_by(VOLUME_KEY)
        .agg(pl.col("tokens").sum())
        .sort(VOLUME_KEY)
    )
    return priced.select(*frame_schema(records.CONSUMER), *EXACT), after, rests


def _stepped(book: Book, rows: pl.DataFrame) -> pl.DataFrame:
    """`owed`, micro-units x 10^6: `worth`, but where the entry has steps and the consumer is known."""
    steps = _steps(book)
    rows = rows.with_row_index("row")
    parts = rows.filter(pl.col("billed") != "").join(steps, on="entry", suffix="_step")
    volume, tokens = pl.col("volume"), pl.col("tokens")
    # how far into the row's tokens the step begins and ends
    begin, end = (
        (pl.col(edge).cast(SUM) - volume).clip(pl.lit(0, SUM), tokens) for edge in ("above", "up_to")
    )
    # a row without tokens costs nothing, whatever it is divided by
    whole = pl.when(tokens > 0).then(tokens).otherwise(1)
    owed = pl.sum_horizontal(
        (pl.col(f"{kind}_tokens") * end // whole - pl.col(f"{kind}_tokens") * begin // whole)
        * pl.col(f"price_{kind}_step")
        for kind in TOKEN_KINDS
    )
    sums = parts.with_columns(owed=owed).group_by("row").agg(pl.col("owed").sum())
    return (
        rows.join(sums, on="row", how="left", maintain_order="left")
        .with_columns(pl.coalesce("owed", "worth").alias("owed"))
        .drop("row")
    )


def _cached(price: Price) -> int:
    return price.input if price.cached_input is None else price.cached_input


@functools.lru_cache(maxsize=4)
def _lines(book: Book) -> tuple[tuple[_Entry, ...], ...]:
    """The entries of each (glob, tier) in the book's order, the newest first."""
    lines: dict[tuple[str, str], list[_Entry]] = {}
    for number, price in enumerate(book.price):
        tier = price.tier or book.default_tier
        entry = _Entry(number, price, tier, effective_from_ms(price, book.time_zone))
        lines.setdefault((price.model, tier), []).append(entry)
    return tuple(
        tuple(sorted(line, key=lambda e: float("inf") if e.from_ms is None else -e.from_ms))
        for line in lines.values()
    )


def _entries(lines: tuple[tuple[_Entry, ...], ...], model: str, tier: str) -> list[_Entry]:
    """Those for the model on the tier; the first of them that is in force holds."""
    found = (line for line in lines if line[0].tier == tier and matches(model, line[0].price.model))
    return [entry for line in found for entry in line]


def _least_output(book: Book, tier: str, at_ms: int) -> int | None:
    of_tier = (_in_force(line, at_ms) for line in _lines(book) if line[0].tier == tier)
    return min((entry.price.output for entry in of_tier if entry and entry.price.output), default=None)


def _in_force(entries: Sequence[_Entry], at_ms: int) -> _Entry | None:
    return next((entry for entry in entries if entry.from_ms is None or entry.from_ms <= at_ms), None)


@functools.lru_cache(maxsize=4)
def _steps(book: Book) -> pl.DataFrame:
    """Each entry's volumes (above, up_to) and the prices that hold there; none for an entry without steps."""
    rows = []
    for number, price in enumerate(book.price):
        if not price.steps:
            continue
        now = [price.output, price.input, price.cached_input]
        edges = [0, *(step.above_tokens for step in price.steps), 2**62]
        for at, step in enumerate((None, *price.steps)):
            if step is not None:
                given = (step.output, step.input, step.cached_input)
                now = [before if new is None else new for before, new in zip(now, given, strict=True)]
            # cached input that no line prices costs what computed input does
            cached = now[1] if now[2] is None else now[2]
            rows.append((number, edges[at], edges[at + 1], *now[:2], cached))
    columns = ("entry", "above", "up_to", *(f"price_{kind}_step" for kind in TOKEN_KINDS))
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.Int64), orient="row")
