"""Engines that make tokens on GPUs which nobody reads: what these tokens took is not known."""

from typing import Final

import polars as pl

from idlewatt.stream.records import TOKEN_COUNTS

ENGINE: Final = ("site", "pool", "node", "engine")


def blind(tokens: pl.DataFrame, *within: str) -> pl.DataFrame:
    """Of ledger rows of tokens (records.TokenRow) ENGINE, `within` and `wholly` of engines that are blind; most often none.

    Wholly if nothing of what it drew is known: its output stands over no joules, although it was read. What only embeds or
    ranks may have no share in those of a GPU that makes output, and is blind if nobody on its node has any. In part if it
    names GPUs that nobody reads beside others.
    """
    key = (*ENGINE, *within)
    # over a gap in what an engine tells, its GPUs are dark with the joules they drew
    made = (pl.sum_horizontal(TOKEN_COUNTS) > 0) & (pl.col("measured_ms") > 0)
    suspect = tokens.select(((pl.col("serving_mj") <= 0) & made) | (pl.col("unread_gpus") > 0)).to_series()
    if not suspect.any():
        return tokens.select(key, wholly=pl.lit(True)).clear()
    node_mj = pl.col("serving_mj").sum().over("site", "pool", "node", *within)
    without_joules = made & (pl.col("serving_mj") <= 0) & ((pl.col("output_tokens") > 0) | (node_mj <= 0))
    return (
        tokens.group_by(key)
        .agg(pl.col(*TOKEN_COUNTS, "serving_mj", "measured_ms").sum(), pl.col("unread_gpus").max())
        .select(*key, "unread_gpus", wholly=without_joules)
        .filter(pl.col("wholly") | (pl.col("unread_gpus") > 0))
        .select(*key, "wholly")
    )
