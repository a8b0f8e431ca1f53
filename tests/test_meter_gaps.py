"""Counters that come back after hours are booked in bounded steps, and completely."""

from dataclasses import replace

import pytest
from ledger_truth import assert_true
from stage_driver import Driver, Message

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode

START_MS = 1_790_000_040_000
HOUR_MS = 3_600_000
BACK_MS = START_MS + HOUR_MS
GPUS = 5
ROOM = 100
CONFIG = MeterConfig()


def gpu_rows(since_ms: int, energy_mj: int, limit_mw: int) -> list[records.GpuRow]:
    """Half a minute of every GPU, read each second."""
    return [
        records.GpuRow(
            ts_ms=since_ms + 1000 * second,
            site="s",
            pool="p",
            node="n",
            gpu_uuid=f"GPU-{gpu}",
            product="H100",
            energy_mj=energy_mj + 100_000 * second + gpu,
            power_limit_mw=limit_mw,
            epoch_ms=1,
            has_process=False,
        )
        for second in range(31)
        for gpu in range(GPUS)
    ]


def engine_rows(since_ms: int, output_tokens: int) -> list[records.EngineRow]:
    return [
        records.EngineRow(
            ts_ms=since_ms + 1000 * second,
            site="s",
            pool="p",
            node="n",
            engine="e",
            server="vllm",
            model_name="m",
            output_tokens=output_tokens + 7 * second,
            advance="step",
            epoch_ms=1,
            gpus=["GPU-0"],
        )
        for second in range(31)
    ]


def rows_written(driver: Driver[object], since: int) -> int:
    return sum(decode(record.value)[1].height for record in driver.records[since:])


@pytest.mark.parametrize("watched", [True, False], ids=["silence booked", "processor away too"])
def test_a_long_gap_is_booked_step_by_step(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    """What was drawn and made over an outage is split over all its windows, a bounded number in each fold."""
    monkeypatch.setattr("idlewatt.processors.meter.stage._WINDOWS_PER_FOLD", ROOM)
    monkeypatch.setattr("idlewatt.processors.meter.backlog._PIECES", 40)
    driver = Driver(MeterStage(CONFIG))
    gpus = gpu_rows(START_MS, 0, 700_000)
    # at the second reading after the outage the limit is another one
    back = gpu_rows(BACK_MS, 1_234_567_891, 700_000)
    gpus_back = [*back[:GPUS], *gpu_rows(BACK_MS, 1_234_567_891, 650_000)[GPUS:]]
    engines, engines_back = engine_rows(START_MS, 0), engine_rows(BACK_MS, 98_765)
    driver.append([Message(topics.GPU, records.GPU, gpus), Message(topics.ENGINE, records.ENGINE, engines)])
    if watched:
        settle(driver, BACK_MS - 60_000)
    driver.append(
        [Message(topics.GPU, records.GPU, gpus_back), Message(topics.ENGINE, records.ENGINE, engines_back)]
    )
    now_ms = BACK_MS + 30_000
    folds = settle(driver, now_ms + 2 * CONFIG.grace_ms)
    assert folds > GPUS * HOUR_MS // CONFIG.window_ms // ROOM
    edge_ms = now_ms // CONFIG.window_ms * CONFIG.window_ms
    assert_true(driver, [*gpus, *gpus_back], [*engines, *engines_back], CONFIG, edge_ms)


def test_silence_of_what_was_unknown_is_booked_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """First readings from hours ago, then others with another limit: each fold books a bounded part of what follows."""
    monkeypatch.setattr("idlewatt.processors.meter.stage._WINDOWS_PER_FOLD", ROOM)
    monkeypatch.setattr("idlewatt.processors.meter.backlog._PIECES", 40)
    driver = Driver(MeterStage(CONFIG))
    now_ms = BACK_MS + 30_000
    live = [replace(row, gpu_uuid="live") for row in gpu_rows(BACK_MS, 0, 700_000)[::GPUS]]
    old = gpu_rows(START_MS, 0, 700_000)[:GPUS], engine_rows(START_MS, 0)[:1]
    newer = (
        gpu_rows(START_MS + 10_000, 5_000, 650_000)[:GPUS],
        engine_rows(START_MS + HOUR_MS // 2, 50)[:1],
    )
    driver.append([Message(topics.GPU, records.GPU, live)])
    settle(driver, now_ms + 2 * CONFIG.grace_ms)
    for gpus, engines in (old, newer):
        driver.append(
            [Message(topics.GPU, records.GPU, gpus), Message(topics.ENGINE, records.ENGINE, engines)]
        )
        folds = 0
        # what is late waits a little for what else comes with it, and once more after a crash
        for _ in range(3):
            now_ms += 60_000
            folds += settle(driver, now_ms + 2 * CONFIG.grace_ms)
        assert folds > GPUS * HOUR_MS // CONFIG.window_ms // ROOM
    edge_ms = now_ms // CONFIG.window_ms * CONFIG.window_ms
    assert_true(driver, [*live, *old[0], *newer[0]], [*old[1], *newer[1]], CONFIG, edge_ms)


def settle(driver: Driver[object], now_ms: int) -> int:
    """Fold and commit until nothing moves, restarted at every third fold; how many folds moved."""
    folds, moved = 0, True
    while moved:
        written = len(driver.records)
        moved = driver.fold(now_ms).moved
        folds += moved
        # of a piece come at most a row of its window and one of its minute; a minute in which rows were read is whole
        assert rows_written(driver, written) <= 3 * (ROOM + 6 * GPUS), "one fold booked more than it may"
        assert driver.sample("idlewatt_unaccounted_joules_total") in (0, None)
        driver.commit()
        if folds % 3 == 0:
            driver.crash()
    return folds
