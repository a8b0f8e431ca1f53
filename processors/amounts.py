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
    """The same in the bits of the numerator."""
    return (numerator + denominator // 2) // denominator
