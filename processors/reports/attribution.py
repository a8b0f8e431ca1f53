"""Watts to tiers and consumers, who have none of their own: by their share of a model's output tokens.

A convention, not a measurement. Integers are split so that the parts add up to the whole.
"""

from collections.abc import Sequence
from typing import Final

import polars as pl

from idlewatt.processors.blind_nodes import UNMETERED
from idlewatt.processors.reports.cells import KEY, MEASURES, TOKEN_MEASURES, WATT_MEASURES, Cells

_MODEL: Final = ("site", "model_name")


def with_tiers(cells: pl.DataFrame) -> pl.DataFrame:
    """Cells whose watts stand on the tiers of their model's tokens in their pool; tier stays empty without tokens."""
    key = ("site", "pool", "model_name")
    watts = cells.group_by(key).agg(pl.col(*WATT_MEASURES).sum())
    weights = cells.select(*KEY, pl.col("output_tokens").alias("weight"))
    parts = split(watts, weights.filter(pl.col("tier") != ""), key, "tier", WATT_MEASURES)
    return _summed([cells.drop(WATT_MEASURES), parts], KEY)


def by_consumer(found: Cells, kind: str, key: Sequence[str]) -> pl.DataFrame:
    """`key` (of site, model_name, tier), consumer and MEASURES: the consumers of a kind, and the rest, named "".

    Tokens and revenue are what usage tells of each; the rest is what engines made beyond it, and negative where
    usage tells of more than they made: that more is in unmade_tokens, in proportion to output tokens. Tokens of a kind that
    nobody read the watts of are everybody's in proportion to tokens of that kind, what they bring in proportion to revenue.
    """
    cells = with_tiers(found.cells) if "tier" in key else found.cells
    # a site's watts are its own consumers', whether or not sites are told apart
    models = list(dict.fromkeys((*key, "site", "model_name")))
    whole = cells.group_by(models).agg(pl.col(*MEASURES).sum())
    # of all tiers together: on which of them an engine sold in part of an hour is an estimate
    made = found.cells.group_by(_MODEL).agg(made=pl.col("output_tokens").sum())
    spent = (
        found.consumed.rename({kind: "consumer"})
        .filter(pl.col("consumer") != "")
        .group_by(*models, "consumer")
        .agg(pl.col(*TOKEN_MEASURES).sum())
        .join(made, on=_MODEL, how="left")
        .with_columns(unmade_tokens=_unmade())
        .drop("made")
    )
    told = spent.group_by(models).agg(pl.col(*TOKEN_MEASURES).sum().name.prefix("told_"))
    both = whole.join(told, on=models, how="full", coalesce=True).with_columns(
        pl.exclude(models).fill_null(0)
    )
    rest = both.select(
        *models,
        pl.lit("").alias("consumer"),
        *(pl.col(name) - pl.col(f"told_{name}") for name in TOKEN_MEASURES),
    )
    tokens = pl.concat([spent.select(rest.columns), rest])
    shared = [("output_tokens", WATT_MEASURES), *((name, [to]) for name, to in UNMETERED.items())]
    parts = [
        split(
            whole.select(*models, *measures),
            tokens.select(*models, "consumer", weight=name),
            models,
            "consumer",
            measures,
        )
        for name, measures in shared
    ]
    return _summed([tokens.drop(UNMETERED.values()), *parts], [*key, "consumer"])


def _unmade() -> pl.Expr:
    output, made = pl.col("output_tokens"), pl.col("made").fill_null(0)
    told = output.sum().over(_MODEL)
    return pl.when(told > made).then(output * (told - made) // told).otherwise(0)


def split(
    amounts: pl.DataFrame, weights: pl.DataFrame, key: Sequence[str], who: str, measures: Sequence[str]
) -> pl.DataFrame:
    """`amounts` (a row for each key) over those in `weights` (key, who, weight) in proportion; else to who = ""."""
    shares = (
        weights.filter(pl.col("weight") > 0)
        .sort(*key, who)
        .with_columns(
            end=pl.col("weight").cum_sum().over(key),
            whole=pl.col("weight").sum().over(key),
        )
        .with_columns(begin=pl.col("end") - pl.col("weight"))
        .drop("weight")
    )
    rows = amounts.join(shares, on=list(key), how="left").with_columns(
        pl.col(who).fill_null(""),
        pl.col("begin").fill_null(0),
        pl.col("end", "whole").fill_null(1),
    )
    return rows.select(
        *key,
        who,
        *((_part(name, "end") - _part(name, "begin")).alias(name) for name in measures),
    )


def _part(measure: str, edge: str) -> pl.Expr:
    return pl.col(measure) * pl.col(edge) // pl.col("whole")


def _summed(frames: Sequence[pl.DataFrame], key: Sequence[str]) -> pl.DataFrame:
    """A measure that a frame lacks is 0 there."""
    rows = pl.concat(frames, how="diagonal")
    return rows.group_by(key).agg(pl.col(*MEASURES).sum()).sort(key)
