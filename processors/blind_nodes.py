"""Nodes whose engines make tokens on GPUs that nobody reads: what these tokens took is not known."""

from typing import Final

import polars as pl

from idlewatt.stream.records import TOKEN_COUNTS

NODE_WINDOW: Final = ("site", "pool", "node", "window_start_ms")


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


def unread_ms(read_ms: pl.Expr, unread_ms: pl.Expr, made: pl.Expr, is_blind: pl.Expr) -> pl.Expr:
    """Aggregates engines: for how long they were not read, those that are blind included, or as much of it as they made."""
    by_time_ms = unread_ms.sum() + read_ms.filter(is_blind).sum()
    share = made.filter(is_blind).sum() / made.sum()
    by_tokens_ms = ((read_ms.sum() + unread_ms.sum()) * share).cast(pl.Int64, strict=False)
    return pl.max_horizontal(by_time_ms, by_tokens_ms.fill_null(0))
