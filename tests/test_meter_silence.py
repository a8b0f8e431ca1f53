"""Hours of silence are booked in bounded steps, and completely."""

import pytest
from stage_driver import Driver, Message

from idlewatt.processors.meter import yardstick
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics

START_MS = 1_790_000_040_000
GPUS = 5
HOUR_MS = 3_600_000


def reading(ts_ms: int, gpu: int, second: int) -> records.GpuRow:
    return records.GpuRow(
        ts_ms=ts_ms,
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


def test_a_clock_of_years_ago_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row that a partition ever reads is of 1996; windows of all years since are closed in some seconds."""
    learned = []
    learn = yardstick.learn
    monkeypatch.setattr(yardstick, "learn", lambda *args: learned.append(args) or learn(*args))
    driver = Driver(MeterStage(MeterConfig()))
    driver.append([Message(topics.GPU, records.GPU, [reading(START_MS - 30 * 365 * 24 * HOUR_MS, 0, 0)])])
    driver.fold(START_MS)
    driver.append([Message(topics.GPU, records.GPU, [reading(START_MS + s * 1000, 1, s) for s in range(61)])])
    folds = 1
    while driver.fold(START_MS + 90_000).moved:
        folds += 1
        # each costs milliseconds, and an hour of nobody would take as much again
        assert folds < 100
        assert len(learned) < 100
    assert sum(row["gpu_ms"] for row in driver.rows(records.POWER) if row["state"] == "idle_free") == 60_000


def test_silence_is_booked_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that wakes hours later books every GPU's dark time, a bounded number of windows at a time."""
    monkeypatch.setattr("idlewatt.processors.meter.stage._WINDOWS_PER_FOLD", 100)
    driver = Driver(MeterStage(MeterConfig()))
    rows = [reading(START_MS + 1000 * second, gpu, second) for second in range(31) for gpu in range(GPUS)]
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
