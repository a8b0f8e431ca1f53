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


def learn(histogram: pl.DataFrame, samples: pl.DataFrame, min_tokens: int, now_ms: int) -> pl.DataFrame:
    """Count the yields of closed windows, and forget those of hours too long before `now_ms`.

    `samples`: site, pool, product, model_name, window_start_ms, output_tokens, serving_mj of windows that
    were wholly measured, by servers whose counter moves while they work.
    """
    usable = samples.filter((pl.col("output_tokens") >= min_tokens) & (pl.col("serving_mj") > 0))
    windows = usable.group_by(*PAIR, "window_start_ms").agg(pl.col("output_tokens", "serving_mj").sum())
    per_joule = pl.col("output_tokens") * 1000.0 / pl.col("serving_mj")
    counted = windows.select_seq(
        *PAIR,
        (pl.col("window_start_ms") // HOUR_MS).alias("hour"),
        (per_joule.log(2) * _BUCKETS_PER_DOUBLING).floor().cast(pl.Int64).alias("bucket"),
        pl.lit(1, pl.Int64).alias("windows"),
        "serving_mj",
    )
    recent = pl.col("hour") > now_ms // HOUR_MS - TRAILING_HOURS
    return (
        pl.concat([histogram, counted])
        .filter(recent)
        .group_by(*PAIR, "hour", "bucket")
        .agg(pl.col("windows", "serving_mj").sum())
        .sort(*PAIR, "hour", "bucket")
    )


def yields(histogram: pl.DataFrame, pairs: pl.DataFrame, config: MeterConfig) -> pl.DataFrame:
    """The yardstick of each (site, pool, product, model_name) in `pairs`: YIELD_COLUMNS, no row where withheld."""
    learned = _percentiles(histogram)
    rows = (
        pairs.select_seq(*PAIR)
        .unique()
        .join(learned, on=list(PAIR), how="left")
        .join(_main(histogram, learned), on=list(_PRODUCT), how="left")
        .sort(*PAIR)
    )
    out: list[tuple[str, str, str, str, int, str, str]] = []
    for *pool, product, model, own_utpj, main, main_utpj in rows.iter_rows():
        whose = model or main or ""
        if (configured := config.configured_yield(product, model)) is not None:
            found = round(configured * 1e6), "configured"
        elif own_utpj is not None:
            found = own_utpj, "learned"
        elif main is not None:
            whose = main
            configured = config.configured_yield(product, main)
            found = main_utpj if configured is None else round(configured * 1e6), "pool"
        elif config.use_published and (known := published(product)) and known.tokens_per_joule:
            found = round(known.tokens_per_joule * 1e6), "published"
        else:
            continue
        out.append((*pool, product, model, *found, whose))
    return pl.DataFrame(out, schema=YIELD_COLUMNS, orient="row")


def _main(histogram: pl.DataFrame, learned: pl.DataFrame) -> pl.DataFrame:
    """_PRODUCT, main and main_utpj: of the models that took most joules, those of late counting most."""
    age_hours = pl.col("hour").max().over(_PRODUCT) - pl.col("hour")
    # sums of floats are the same in the same order only
    hours = histogram.join(learned, on=list(PAIR)).sort(*PAIR, "hour", "bucket")
    weighed = hours.with_columns_seq(weight=pl.col("serving_mj") * 0.5 ** (age_hours / _HALF_LIFE_HOURS))
    models = weighed.group_by(PAIR, maintain_order=True).agg(
        pl.col("weight").sum(), main_utpj=pl.col("learned_utpj").first()
    )
    return (
        models.filter(pl.col("weight") >= _ALIKE * pl.col("weight").max().over(_PRODUCT))
        .unique(_PRODUCT, keep="first", maintain_order=True)
        .select_seq(*_PRODUCT, pl.col("model_name").alias("main"), "main_utpj")
    )


def _percentiles(histogram: pl.DataFrame) -> pl.DataFrame:
    """PAIR and learned_utpj of those with enough windows; micro-tokens per joule."""
    named = histogram.filter(pl.col("model_name") != "")
    counts = named.group_by(*PAIR, "bucket").agg(pl.col("windows").sum()).sort(*PAIR, "bucket")
    total = pl.col("windows").sum().over(PAIR)
    reached = pl.col("windows").cum_sum().over(PAIR) >= QUANTILE * total
    middle = ((pl.col("bucket") + 0.5) / _BUCKETS_PER_DOUBLING * math.log(2)).exp()
    return (
        counts.filter((total >= MIN_WINDOWS) & reached)
        .group_by(*PAIR, maintain_order=True)
        .agg(pl.col("bucket").first())
        .select_seq(
            *PAIR,
            (middle.clip(upper_bound=_MOST_TOKENS_PER_JOULE) * 1e6)
            .round()
            .cast(pl.Int64)
            .alias("learned_utpj"),
        )
    )
