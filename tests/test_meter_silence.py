"""Hours of silence are booked in bounded steps, and completely."""

import pytest
from stage_driver import Driver, Message

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics

START_MS = 1_790_000_040_000
GPUS = 5
HOUR_MS = 3_600_000


def test_silence_is_booked_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that wakes hours later books every GPU's dark time, a bounded number of windows at a time."""
    monkeypatch.setattr("idlewatt.processors.meter.stage._WINDOWS_PER_FOLD", 100)
    driver = Driver(MeterStage(MeterConfig()))
    rows = [
        records.GpuRow(
            ts_ms=START_MS + 1000 * second,
            site="s",
            pool="p",
            node="n",
            gpu_uuid=f"GPU-{gpu}",
            product="H100",
            energy_mj=100_000 * second,
            power_limit_mw=700_000,
            epoch_ms=1,
            has_process=False,
        )
        for second in range(31)
        for gpu in range(GPUS)
    ]
    driver.append([Message(topics.GPU, records.GPU, rows)])
    now_ms = START_MS + 30_000 + 2 * HOUR_MS
    folds, moved = 0, True
    while moved:
        written = len(driver.records)
        moved = driver.fold(now_ms).moved
        folds += moved
        booked = [row for row in driver.rows(records.POWER) if row["state"] == "dark"]
        windows = {row["window_start_ms"] for row in booked}
        assert len(driver.records) - written <= 3 * 100, "one fold booked more than it may"
    assert folds > 10
    edge_ms = (now_ms - 2 * 15_000) // 10_000 * 10_000
    dark_ms = sum(row["gpu_ms"] for row in driver.rows(records.POWER) if row["state"] == "dark")
    assert dark_ms == GPUS * (edge_ms - START_MS - 30_000)
    assert len(windows) == (edge_ms - START_MS - 30_000) // 10_000
    drawn_mj = sum(row["draw_mj"] for row in driver.rows(records.POWER))
    assert drawn_mj == GPUS * 3_000_000
