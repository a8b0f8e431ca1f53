"""Where the yardstick comes from: what an operator says beats what was learned, and both beat what was published."""

import polars as pl
import pytest

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.yardstick import HISTOGRAM_COLUMNS, learn, yields
from idlewatt.stream.settings import Yardstick

H100 = "NVIDIA H100 80GB HBM3"
START_MS = 1_760_000_040_000


def found(config: MeterConfig, learned: bool, product: str = H100) -> tuple[float, str] | None:
    """Tokens per joule and origin of the model m on the product, with or without a minute of serving at 4."""
    samples = pl.DataFrame(
        {
            "site": "s",
            "pool": "p",
            "product": product,
            "model_name": "m",
            "window_start_ms": [START_MS + 10_000 * n for n in range(6)],
            "output_tokens": 4000,
            "serving_mj": 1_000_000,
        }
    )
    histogram = pl.DataFrame(schema=HISTOGRAM_COLUMNS)
    if learned:
        histogram = learn(histogram, samples, 100, START_MS + 60_000)
    rows = yields(histogram, samples, config).select("yield_utpj", "origin").rows()
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
