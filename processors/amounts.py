"""Amounts in 64 bits, and their sums in 128.

What a counter gains in a row may be anything below 2^53. An amount that such a row makes too large is not known, like
one that has no price: it is withheld and counted as such, and costs the rows beside it nothing.
"""

from typing import Final

import polars as pl

# of a row
MOST: Final = (1 << 63) - 1
# of all rows ever: in 64 bits a gigawatt has room for 107 days of millijoules, and for days of micro-dong
SUM: Final = pl.Int128


def rounded(numerator: pl.Expr, denominator: int | pl.Expr) -> pl.Expr:
    """The quotient to the nearest whole number; null where that is more than MOST."""
    return nearest(numerator, denominator).cast(pl.Int64, strict=False)


def nearest(numerator: pl.Expr, denominator: int | pl.Expr) -> pl.Expr:
    """The quotient to the nearest whole number, in the numerator's type."""
    return (numerator + denominator // 2) // denominator


def by_turns(numerator: pl.Expr, denominator: int) -> pl.Expr:
    """The quotient, rounded up in as many windows (`window_start_ms`) as its fraction says; null where it is more than MOST.

    Watts and tokens that stay the same for hours would be rounded to the same side in each window: a tenth of what a GPU's
    idle watts cost would be booked beside it, and a lightly used model bring nothing. Steps of the golden ratio are the most
    even there are. What is taken back is rounded as it was booked.
    """
    turn = pl.col("window_start_ms") // 1000 * 618_034 % 1_000_000
    up = turn.cast(pl.Int128) * denominator // 1_000_000
    # polars has no minus for 128 bits
    nothing = pl.lit(0, pl.Int128)
    booked = (numerator + up) // denominator
    taken_back = nothing - (nothing - numerator + up) // denominator
    return pl.when(numerator < 0).then(taken_back).otherwise(booked).cast(pl.Int64, strict=False)
