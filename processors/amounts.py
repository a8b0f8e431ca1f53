"""Amounts in 64 bits.

What a counter gains in a row may be anything below 2^53. An amount that such a row makes too large is not known, like
one that has no price: it is withheld and counted as such, and costs the rows beside it nothing.
"""

from typing import Final

import polars as pl

# of a row
MOST: Final = (1 << 63) - 1


def rounded(numerator: pl.Expr, denominator: int | pl.Expr) -> pl.Expr:
    """The quotient to the nearest whole number; null where that is more than MOST."""
    return ((numerator + denominator // 2) // denominator).cast(pl.Int64, strict=False)
