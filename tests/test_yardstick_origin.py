"""Where the yardstick comes from: what an operator says beats what was learned, and both beat what was published."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from idlewatt.processors.meter import yardstick
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.yardstick import HISTOGRAM_COLUMNS, PAIR, counted, learn, yields
from idlewatt.stream.settings import Yardstick

H100 = "NVIDIA H100 80GB HBM3"
START_MS = 1_760_000_040_000
NOW_MS = START_MS + 60_000
SAMPLE = {"window_start_ms": pl.Int64, "output_tokens": pl.Int64, "serving_mj": pl.Int64}


def histogram_of(samples: pl.DataFrame, min_tokens: int) -> pl.DataFrame:
    """What is known now, when these were learned."""
    new = counted(samples.with_columns(learned_ms=NOW_MS), min_tokens)
    return learn(pl.DataFrame(schema=HISTOGRAM_COLUMNS), new, NOW_MS)


def known_now(histogram: pl.DataFrame, pairs: pl.DataFrame, config: MeterConfig) -> pl.DataFrame:
    nothing = histogram.clear().with_columns(learned_ms=pl.lit(0, pl.Int64))
    pairs = pairs.select(pl.lit(NOW_MS).alias("known_ms"), *PAIR).unique()
    return yields(histogram, nothing, pairs, config)


def found(
    config: MeterConfig, learned: bool, product: str = H100, made: Sequence[int] = (4000,) * 6
) -> tuple[float, str] | None:
    """Tokens per joule and origin of the model m on the product, with or without windows that made so much of 1 kJ."""
    samples = pl.DataFrame(
        {
            "site": "s",
            "pool": "p",
            "product": product,
            "model_name": "m",
            "window_start_ms": [START_MS + 10_000 * n for n in range(len(made))],
            "output_tokens": made,
            "serving_mj": 1_000_000,
        },
        schema_overrides={"serving_mj": pl.Int64},
    )
    histogram = histogram_of(samples if learned else samples.clear(), config.min_tokens)
    rows = known_now(histogram, samples, config).select("yield_utpj", "origin").rows()
    return (rows[0][0] / 1e6, rows[0][1]) if rows else None


@pytest.mark.parametrize(
    ("config", "learned", "product", "expected"),
    [
        (MeterConfig(yardsticks=(Yardstick(tokens_per_joule=2.5),)), True, H100, (2.5, "configured")),
        (MeterConfig(), True, H100, (4.0, "learned")),
        (MeterConfig(), False, H100, (1.35, "published")),
        (MeterConfig(), False, "NVIDIA H200", None),
        (MeterConfig(use_published=False), False, H100, None),
    ],
    ids=["configured", "learned", "published", "not_published", "switched_off"],
)
def test_published_yields_are_the_last_resort(
    config: MeterConfig, learned: bool, product: str, expected: tuple[float, str] | None
) -> None:
    """A figure of others never beats one of one's own, says what it is, and can be switched off."""
    seen = found(config, learned, product)
    assert (seen is None) == (expected is None)
    if seen and expected:
        assert seen[0] == pytest.approx(expected[0], rel=0.03)
        assert seen[1] == expected[1]


def learned_of(**windows: tuple[int, int, int, int]) -> pl.DataFrame:
    """Of each model: how many hours ago, how many windows there were, the tokens and millijoules of each."""
    rows = [
        ("s", "p", H100, model, START_MS + 10_000 * n - hours * 3_600_000, output, serving_mj)
        for model, (hours, count, output, serving_mj) in windows.items()
        for n in range(count)
    ]
    samples = pl.DataFrame(rows, schema={**dict.fromkeys(PAIR, pl.String), **SAMPLE}, orient="row")
    return histogram_of(samples, 100)


def yardsticks_of(histogram: pl.DataFrame, *models: str, **config: Any) -> dict[str, tuple[float, str]]:
    """By model the tokens per joule and whose they are."""
    pairs = pl.DataFrame({"site": "s", "pool": "p", "product": H100, "model_name": models})
    rows = known_now(histogram, pairs, MeterConfig(**config)).iter_rows(named=True)
    return {row["model_name"]: (row["yield_utpj"] / 1e6, row["yardstick_model"]) for row in rows}


def test_what_has_no_yield_of_its_own_has_that_of_the_pools_main_model() -> None:
    """And tells whose: of a small model that took most joules, not of a large one, nor of both; configured or not."""
    histogram = learned_of(
        small=(0, 7, 40_000, 2_000_000), large=(0, 8, 1000, 1_000_000), rare=(0, 5, 900_000, 9_000_000)
    )
    for yardsticks, expected in ((), 20.0), ((Yardstick(model="small", tokens_per_joule=15),), 15.0):
        found = yardsticks_of(histogram, "", "small", "large", "rare", yardsticks=yardsticks)
        assert {model: whose for model, (_, whose) in found.items()} == {
            "": "small",
            "small": "small",
            "large": "large",
            "rare": "small",
        }
        per_joule = {model: tokens for model, (tokens, _) in found.items()}
        assert per_joule == pytest.approx(
            {"": expected, "small": expected, "large": 1, "rare": expected}, rel=0.03
        )


@pytest.mark.parametrize(
    ("windows", "main"),
    [
        # one request at night to a model that is hardly used, learned or not, does not outweigh the evening
        ({"large": (3, 240, 1000, 5_000_000), "rare": (0, 1, 9000, 5_000_000)}, "large"),
        ({"large": (9, 240, 1000, 5_000_000), "small": (0, 6, 9000, 5_000_000)}, "large"),
        # nor do a few joules more or less count among alike models
        ({"b": (0, 99, 1000, 5_000_000), "c": (0, 98, 9000, 5_000_000)}, "b"),
        ({"b": (0, 98, 1000, 5_000_000), "c": (0, 99, 9000, 5_000_000)}, "b"),
        ({"b": (0, 70, 1000, 5_000_000), "c": (0, 99, 9000, 5_000_000)}, "c"),
        # one that took another's place is the main one within hours
        ({"new": (0, 60, 1000, 5_000_000), "old": (5, 99, 1000, 5_000_000)}, "new"),
    ],
)
def test_the_main_model_changes_with_what_the_pool_does_and_not_by_a_hair(
    windows: dict[str, tuple[int, int, int, int]], main: str
) -> None:
    """Or what a free GPU loses would jump between what a small and what a large model brings."""
    assert yardsticks_of(learned_of(**windows), "")[""][1] == main


@pytest.mark.parametrize(
    ("made", "min_tokens", "expected"),
    [
        ([4000] * 9 + [8000], 4000, 4.0),
        ([4000] * 8 + [8000] * 2, 4000, 8.0),
        ([4000] * 9 + [8000], 4001, None),
        ([4000] * 5, 100, None),
    ],
)
def test_a_learned_yield_is_that_of_the_ninth_window_of_ten(
    made: Sequence[int], min_tokens: int, expected: float | None
) -> None:
    """Of those, six at least, in which so many tokens were made."""
    seen = found(MeterConfig(min_tokens=min_tokens, use_published=False), True, made=made)
    assert seen == (None if expected is None else (pytest.approx(expected, rel=0.03), "learned"))


def test_moments_are_looked_up_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that learns sixty times in an hour takes hardly more memory than one that learns once."""
    minutes = range(NOW_MS, NOW_MS + 3_600_000, 60_000)
    samples = pl.DataFrame(
        [
            ("s", "p", H100, model, now_ms - 10_000, 1000 + now_ms // 1000 % 977, 100_000 * size, now_ms)
            for now_ms in minutes
            for size, model in enumerate("abcd", 1)
        ],
        schema={**dict.fromkeys(PAIR, pl.String), **SAMPLE, "learned_ms": pl.Int64},
        orient="row",
    )
    new, histogram = counted(samples, 100), histogram_of(samples.drop("learned_ms"), 100)
    pairs = pl.DataFrame({"known_ms": minutes}).join(samples.select(PAIR).unique(), how="cross")
    expected = yields(histogram, new, pairs, MeterConfig())
    assert expected["yield_utpj"].n_unique() > 10
    monkeypatch.setattr(yardstick, "_ROWS", 1000)
    looked_up = []
    known = yardstick._known
    monkeypatch.setattr(
        yardstick,
        "_known",
        lambda rows, some: looked_up.append(rows.height * some.height) or known(rows, some),
    )
    assert_frame_equal(yields(histogram, new, pairs, MeterConfig()), expected)
    assert 0 < max(looked_up) <= 1000
