"""What rounding leaves of what consumers owe: it goes on to the next row of the same consumer.

A request of a cheap model owes a part of a micro-unit. Rounded by itself it would owe nothing or twice as much, and so
would a million of them.
"""

from typing import Any, Final

import polars as pl

from idlewatt.processors.amounts import SUM, nearest
from idlewatt.processors.economy.book import CONSUMER_KINDS, MICRO

REST_KEY: Final = ("site", *CONSUMER_KINDS, "model_name", "tier", "month")
REST_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys(REST_KEY, pl.String),
    # micro-units x 10^6; what a row was rounded up by is below 0
    "rest": pl.Int64,
}
# Beyond it the rows of new consumers are rounded by themselves: a sender of a million names costs others nothing.
MAX_RESTS: Final = 200_000


def whole_micro(exact: pl.DataFrame, rests: pl.DataFrame) -> tuple[pl.Series, pl.DataFrame]:
    """Amounts in whole micro-units, by which the sum of each REST_KEY is the exact one rounded, row after row.

    `exact`: REST_KEY and `exact`, micro-units x 10^6 as Int128, null where it is not known. `rests`: REST_COLUMNS of the
    rows before. Also returns those after.
    """
    keys = exact.filter(pl.col("exact").is_not_null()).select(REST_KEY).unique(maintain_order=True)
    new = keys.join(rests, on=REST_KEY, how="anti", maintain_order="left")
    without_room = new.tail(max(0, rests.height + new.height - MAX_RESTS)).with_columns(alone=pl.lit(True))
    rows = (
        exact.with_row_index("row")
        .join(rests, on=REST_KEY, how="left", maintain_order="left")
        .join(without_room, on=REST_KEY, how="left", maintain_order="left")
        .with_columns(pl.col("rest").fill_null(0).cast(SUM))
    )
    # one that knows no others is a key of its own
    apart = pl.when(pl.col("alone")).then("row")
    rows = rows.with_columns(
        upto=pl.col("rest") + pl.col("exact").fill_null(0).cum_sum().over(*REST_KEY, apart)
    )
    # a rest is half a micro-unit below 0 at most, and no quotient below 0
    upto, before = (nearest(edge, MICRO) for edge in (pl.col("upto"), pl.col("upto") - pl.col("exact")))
    amount = (upto - before).cast(pl.Int64, strict=False)
    amounts = rows.select(amount.alias("amount")).to_series()
    left = (pl.col("upto") - upto * MICRO).cast(pl.Int64)
    after = (
        rows.filter(pl.col("exact").is_not_null() & pl.col("alone").is_null())
        .group_by(REST_KEY, maintain_order=True)
        .agg(left.last().alias("rest"))
    )
    return amounts, pl.concat([rests.join(after, on=REST_KEY, how="anti", maintain_order="left"), after])
