"""Whether a driven meter has booked what truth.py says."""

from collections.abc import Sequence
from typing import Any

from stage_driver import Driver, sums
from truth import truth

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.stream import records


def assert_true(
    driver: Driver[Any],
    gpus: Sequence[records.GpuRow],
    engines: Sequence[records.EngineRow],
    config: MeterConfig,
    edge_ms: int,
) -> None:
    """Watts by state and tokens by engine, in each window up to the edge."""
    expected = truth(
        gpus,
        engines,
        window_ms=config.window_ms,
        grace_ms=config.grace_ms,
        forget_ms=config.forget_ms,
        edge_ms=edge_ms,
    )
    power_key = ("site", "pool", "window_start_ms", "product", "model_name", "state")
    power = sums(driver.rows(records.POWER), power_key, ("gpu_ms", "draw_mj", "headroom_mj", "estimated_mj"))
    assert power == {key: tuple(row) for key, row in expected.power.items()}
    token_key = ("site", "pool", "window_start_ms", "node", "engine", "model_name")
    made = sums(driver.rows(records.TOKENS), token_key, ("output_tokens", "measured_ms", "silent_ms"))
    assert made == {key: (row[0], *row[4:]) for key, row in expected.tokens.items()}
    assert driver.sample("idlewatt_unaccounted_joules_total") == 0
