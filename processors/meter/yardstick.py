"""The yardstick: the yield, in output tokens per joule, that an idle joule is held against.

Configured, else learned as the 90th percentile of the pair's serving windows over a trailing day, else that of the pool's
main model on the product, else what was published of the product if that is wanted, else withheld. The price of what was
lost is that of the same model: a small model's yield at a large one's price would be what no watt brings. Yields are kept
as hourly histograms with 32 buckets per doubling: 2 % wide.
"""

import math
from typing import Final

import polars as pl

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.published import published
from idlewatt.stream.clock import HOUR_MS

TRAILING_HOURS: Final = 24
# fewer serving windows than this say nothing about a percentile
MIN_WINDOWS: Final = 6
QUANTILE: Final = 0.9
_BUCKETS_PER_DOUBLING: Final = 32
# Of joules, for which model is the main one: after an upgrade it is the new one within hours, and a request or two at night
# do not outweigh the evening.
_HALF_LIFE_HOURS: Final = 4
# of the joules of the model that took most; of alike ones the first by name is the main one, whoever is ahead
_ALIKE: Final = 0.8
# that are looked up at once, each of all moments; some hundred bytes a row
_ROWS: Final = 500_000
# a thousand times what any engine makes; counters that jump say more, and what follows from it must fit 64 bits
_MOST_TOKENS_PER_JOULE: Final = 1e6
_PRODUCT: Final = ("site", "pool", "product")
PAIR: Final = (*_PRODUCT, "model_name")

HISTOGRAM_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "product": pl.String,
    "model_name": pl.String,
    "hour": pl.Int64,
    "bucket": pl.Int64,
    "windows": pl.Int64,
    "serving_mj": pl.Int64,
}
YIELD_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "product": pl.String,
    "model_name": pl.String,
    "yield_utpj": pl.Int64,
    "origin": pl.String,
    # whose yield it is
    "yardstick_model": pl.String,
}

# what yields() gives
_OF_MOMENTS: Final = {"known_ms": pl.Int64, **YIELD_COLUMNS}
NO_YIELDS: Final = pl.DataFrame(schema=_OF_MOMENTS)


def counted(samples: pl.DataFrame, min_tokens: int) -> pl.DataFrame:
    """The yields of closed windows, a row each: HISTOGRAM_COLUMNS, and learned_ms of the sample.

    `samples`: site, pool, product, model_name, window_start_ms, output_tokens, serving_mj, learned_ms of windows that
    were wholly measured, by servers whose counter moves while they work.
    """
    per_joule = pl.col("output_tokens") * 1000.0 / pl.col("serving_mj")
    return samples.filter((pl.col("output_tokens") >= min_tokens) & (pl.col("serving_mj") > 0)).select_seq(
        *PAIR,
        (pl.col("window_start_ms") // HOUR_MS).alias("hour"),
        (per_joule.log(2) * _BUCKETS_PER_DOUBLING).floor().cast(pl.Int64).alias("bucket"),
        pl.lit(1, pl.Int64).alias("windows"),
        "serving_mj",
        "learned_ms",
    )


def learn(histogram: pl.DataFrame, new: pl.DataFrame, now_ms: int) -> pl.DataFrame:
    """Add rows of counted(), and forget those of hours too long before `now_ms`."""
    recent = pl.col("hour") > now_ms // HOUR_MS - TRAILING_HOURS
    return (
        pl.concat([histogram, new.select_seq(*HISTOGRAM_COLUMNS)])
        .filter(recent)
        .group_by(*PAIR, "hour", "bucket")
        .agg(pl.col("windows", "serving_mj").sum())
        .sort(*PAIR, "hour", "bucket")
    )


def yields(
    histogram: pl.DataFrame, new: pl.DataFrame, pairs: pl.DataFrame, config: MeterConfig
) -> pl.DataFrame:
    """The yardstick of each (known_ms, site, pool, product, model_name) in `pairs`: known_ms and YIELD_COLUMNS, no row where
    withheld.

    Of each moment known_ms by the histogram and what of `new`, rows of counted(), was learned by then.
    """
    learned, main = _learned(histogram, new, pairs["known_ms"].unique())
    rows = (
        pairs.join(learned, on=["known_ms", *PAIR], how="left")
        .join(main, on=["known_ms", *_PRODUCT], how="left")
        .sort("known_ms", *PAIR)
    )
    out: list[tuple[int, str, str, str, str, int, str, str]] = []
    for known_ms, *pool, product, model, own_utpj, main_model, main_utpj in rows.select_seq(
        "known_ms", *PAIR, "learned_utpj", "main", "main_utpj"
    ).iter_rows():
        whose = model or main_model or ""
        if (configured := config.configured_yield(product, model)) is not None:
            found = round(configured * 1e6), "configured"
        elif own_utpj is not None:
            found = own_utpj, "learned"
        elif main_model is not None:
            whose = main_model
            configured = config.configured_yield(product, main_model)
            found = main_utpj if configured is None else round(configured * 1e6), "pool"
        elif config.use_published and (known := published(product)) and known.tokens_per_joule:
            found = round(known.tokens_per_joule * 1e6), "published"
        else:
            continue
        out.append((known_ms, *pool, product, model, *found, whose))
    return pl.DataFrame(out, schema=_OF_MOMENTS, orient="row")


def _learned(
    histogram: pl.DataFrame, new: pl.DataFrame, moments: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was known at these moments: known_ms, PAIR, learned_utpj; and known_ms, _PRODUCT, main, main_utpj."""
    first_ms = pl.lit(-1, pl.Int64).alias("learned_ms")
    rows = pl.concat([histogram.with_columns_seq(first_ms), new]).filter(pl.col("model_name") != "")
    # integers group and join several times faster than names; they order as the names do
    names = rows.select_seq(*PAIR).unique().sort(*PAIR)
    names = names.with_columns_seq(
        pair=pl.int_range(pl.len()), product_id=pl.struct(*_PRODUCT).rle_id().cast(pl.Int64)
    )
    rows = rows.join(names, on=list(PAIR)).drop(PAIR)
    windows = rows.group_by("pair", "bucket", "learned_ms").agg(pl.col("windows").sum())
    joules = rows.group_by("product_id", "pair", "hour", "learned_ms").agg(pl.col("serving_mj").sum())
    at_once = max(1, _ROWS // max(1, windows.height + joules.height))
    own, main = [], []
    for some in moments.to_frame().iter_slices(at_once):
        own.append(_percentiles(_known(windows, some)))
        main.append(_main(_known(joules, some), own[-1]))
    return (
        pl.concat(own).join(names.select_seq(*PAIR, "pair"), on="pair").drop("pair"),
        pl.concat(main)
        .join(names.select_seq(*_PRODUCT, pl.col("model_name").alias("main"), "pair"), on="pair")
        .drop("pair"),
    )


def _known(rows: pl.DataFrame, moments: pl.DataFrame) -> pl.DataFrame:
    """Of each moment what was learned by then."""
    return rows.join(moments, how="cross").filter(pl.col("learned_ms") <= pl.col("known_ms"))


def _main(joules: pl.DataFrame, learned: pl.DataFrame) -> pl.DataFrame:
    """known_ms, pair, main_utpj: of the models that took most joules, those of late counting most."""
    product = ("known_ms", "product_id")
    age_hours = pl.col("hour").max().over(product) - pl.col("hour")
    # of floats the sum would depend on their order
    weight = (pl.col("serving_mj") * 0.5 ** (age_hours / _HALF_LIFE_HOURS)).round().cast(pl.Int64)
    models = (
        joules.join(learned, on=["known_ms", "pair"])
        .group_by(*product, "pair", "learned_utpj", "hour")
        .agg(pl.col("serving_mj").sum())
        .with_columns_seq(weight=weight)
        .group_by(*product, "pair", "learned_utpj")
        .agg(pl.col("weight").sum())
    )
    return (
        models.filter(pl.col("weight") >= _ALIKE * pl.col("weight").max().over(product))
        .filter(pl.col("pair") == pl.col("pair").min().over(product))
        .select_seq("known_ms", "pair", main_utpj="learned_utpj")
    )


def _percentiles(windows: pl.DataFrame) -> pl.DataFrame:
    """known_ms, pair and learned_utpj of those with enough windows; micro-tokens per joule."""
    pair = ("known_ms", "pair")
    counts = windows.group_by(*pair, "bucket").agg(pl.col("windows").sum()).sort(*pair, "bucket")
    total = pl.col("windows").sum().over(pair)
    reached = pl.col("windows").cum_sum().over(pair) >= QUANTILE * total
    middle = ((pl.col("bucket") + 0.5) / _BUCKETS_PER_DOUBLING * math.log(2)).exp()
    return (
        counts.filter((total >= MIN_WINDOWS) & reached)
        .group_by(*pair)
        .agg(pl.col("bucket").min())
        .select_seq(
            *pair,
            (middle.clip(upper_bound=_MOST_TOKENS_PER_JOULE) * 1e6)
            .round()
            .cast(pl.Int64)
            .alias("learned_utpj"),
        )
    )
