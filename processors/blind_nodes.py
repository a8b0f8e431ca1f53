"""Tokens that are made on GPUs that nobody reads: what they took is not known."""

from collections.abc import Mapping
from typing import Final

import polars as pl

from idlewatt.stream.records import TOKEN_COUNTS

NODE_WINDOW: Final = ("site", "pool", "node", "window_start_ms")
# of tokens and what they bring: what was made on GPUs that nobody reads
UNMETERED_TOKENS: Final = {name: f"unmetered_{name}" for name in TOKEN_COUNTS}
UNMETERED_REVENUE: Final = {"revenue_micro": "unmetered_revenue_micro"}
UNMETERED: Final = UNMETERED_TOKENS | UNMETERED_REVENUE


def blind(tokens: pl.DataFrame) -> pl.DataFrame:
    """NODE_WINDOW of ledger rows of tokens (records.TokenRow) in which a node's GPUs are not known to have served; few.

    By node, for an engine that names none may have GPUs which count as another's, and what only embeds may have no share
    in those of a GPU that makes output.
    """
    # what is told of a gap in an engine's readings was made by GPUs that are dark, with what they drew
    made = (pl.sum_horizontal(TOKEN_COUNTS) > 0) & (pl.col("measured_ms") > 0)
    if not tokens.select((made & (pl.col("serving_mj") <= 0)).any()).item():
        return tokens.select(NODE_WINDOW).clear()
    return (
        tokens.group_by(NODE_WINDOW)
        .agg(made.any().alias("made"), pl.col("serving_mj").sum())
        .filter(pl.col("made") & (pl.col("serving_mj") <= 0))
        .select(NODE_WINDOW)
    )


def with_blind(rows: pl.DataFrame, nodes: pl.DataFrame) -> pl.DataFrame:
    """Rows of tokens with `blind`: whether their node is, or their engine names GPUs that nobody reads.

    `nodes`: blind() of all tokens of their windows.
    """
    is_blind = (pl.col("unread_gpus") > 0).fill_null(False)
    if nodes.height:
        rows = rows.join(nodes.with_columns_seq(blind=pl.lit(True)), on=NODE_WINDOW, how="left")
        is_blind |= pl.col("blind").fill_null(False)
    return rows.with_columns_seq(is_blind.alias("blind"))


def metered(counted: Mapping[str, str], least: int) -> pl.Expr:
    """Of each that is counted the share that was made on GPUs that are read; of these the least.

    Kinds of tokens together would not tell: prompts are many, and need hardly be those of the engines that make the output.
    A few that only a probe makes say nothing of the rest: fewer than `least` count as if they were as many.
    """
    shares = []
    for name, unmetered in counted.items():
        amount = pl.max_horizontal(name, pl.lit(least, pl.Int64))
        shares.append((amount - pl.col(unmetered)) / amount)
    return pl.min_horizontal(shares)
