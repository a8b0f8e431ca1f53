"""A GPU that is called otherwise, or has moved, takes dark time back from where it was booked."""

from dataclasses import replace
from typing import Any

import pytest
from stage_driver import Driver, Message, sums

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics

START_MS = 1_790_000_040_000
CONFIG = MeterConfig()


def reading(second: int, gpu_uuid: str = "GPU-0", **more: Any) -> records.GpuRow:
    row = records.GpuRow(
        ts_ms=START_MS + 1000 * second,
        site="s",
        pool="p",
        node="n",
        gpu_uuid=gpu_uuid,
        product="H100",
        energy_mj=100_000 * second,
        power_limit_mw=700_000,
        epoch_ms=1,
        has_process=False,
    )
    return replace(row, **more)


def fold(driver: Driver[object], rows: list[records.GpuRow], second: int) -> None:
    driver.append([Message(topics.GPU, records.GPU, rows)])
    driver.fold(START_MS + 1000 * second)
    driver.commit()


@pytest.fixture
def driver() -> Driver[object]:
    """GPU-0 was read for half a minute, and is silent while the clock goes on to five minutes."""
    driver = Driver(MeterStage(CONFIG))
    fold(driver, [reading(second) for second in range(31)], 31)
    fold(driver, [reading(second, "GPU-1") for second in range(301)], 301)
    return driver


def by_product(driver: Driver[object]) -> dict[tuple[object, ...], tuple[int, ...]]:
    """Dark milliseconds and their millijoules, once it is sure that no window or minute has less than nothing."""
    rows = driver.rows(records.POWER)
    assert all(ms > 0 for (ms,) in sums(rows, ("window_start_ms", "product", "state"), ("gpu_ms",)).values())
    minutes = sums(driver.rows(records.GPU_MINUTE), ("minute_start_ms", "node", "state"), ("gpu_ms",))
    assert all(ms > 0 for (ms,) in minutes.values())
    return sums([row for row in rows if row["state"] == "dark"], ("product",), ("gpu_ms", "draw_mj"))


def test_what_was_dark_is_taken_back_from_where_it_was_booked(driver: Driver[object]) -> None:
    """Whatever the GPU is called meanwhile: nothing stays dark under one name, or is missing under another."""
    dark = by_product(driver)
    assert dark[("H100",)][0] > 200_000
    names = [{"node": "n2", "product": "H100 SXM"}, {"node": "n3", "product": "H100 80GB"}]
    back = [reading(second, **names[second > 150]) for second in range(31, 301)]
    for first in range(0, len(back), 60):
        second = 310 + first
        fold(driver, [*back[first : first + 60], reading(second, "GPU-1")], second + 10)
        if first == 120:
            driver.crash()
    fold(driver, [reading(second, gpu) for second in range(640, 680) for gpu in ("GPU-0", "GPU-1")], 700)
    driver.fold(START_MS + 800_000)
    by_product(driver)
    rows = [row for row in driver.rows(records.POWER) if row["state"] == "dark"]
    dark_windows = {window for window, _ in sums(rows, ("window_start_ms", "product"), ("gpu_ms",))}
    assert not dark_windows & set(range(START_MS, START_MS + 300_000, CONFIG.window_ms))


def test_names_that_flap_leave_less_than_nothing_nowhere(driver: Driver[object]) -> None:
    """Two collectors call it differently while its spool is emptied."""
    back = [reading(second, product="H100 " + "ab"[second // 9 % 2]) for second in range(31, 301)]
    for first in range(0, len(back), 9):
        second = 310 + first
        fold(driver, [*back[first : first + 9], reading(second, "GPU-1")], second + 10)
    driver.fold(START_MS + 700_000)
    driver.fold(START_MS + 800_000)
    by_product(driver)


def test_a_gpu_that_is_renamed_all_the_time_keeps_its_eighth_new_name() -> None:
    """Until the oldest is forgotten, after twice the time that a GPU is remembered."""
    driver: Driver[Any] = Driver(MeterStage(MeterConfig(forget_ms=65_000)))
    called = []
    for second in range(0, 150, 10):
        fold(driver, [reading(second, product=f"{second}")], second)
        called.append(driver.state.gpu_index["product"].item())
    assert called == [*map(str, range(0, 90, 10)), *["80"] * 5, "140"]


def test_a_gap_that_waits_while_the_processor_is_behind_stays_with_its_dark_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is booked when all windows since are closed, and was named longer ago than a GPU is remembered."""
    driver = Driver(MeterStage(MeterConfig(forget_ms=100_000)))
    fold(driver, [reading(second) for second in range(31)], 31)
    fold(driver, [reading(second, "GPU-1") for second in range(121)], 121)
    monkeypatch.setattr("idlewatt.processors.meter.stage._WINDOWS_PER_FOLD", 1)
    later = [
        row
        for second in range(122, 241)
        for row in (reading(second, product="H100 SXM"), reading(second, "GPU-1"))
    ]
    driver.append([Message(topics.GPU, records.GPU, later)])
    while driver.fold(START_MS + 250_000).moved:
        pass
    dark = by_product(driver)
    assert dark[("H100",)][0] > 60_000
    assert all(drawn_mj == gpu_ms * 100 for gpu_ms, drawn_mj in dark.values())


def test_what_was_drawn_over_an_outage_stays_with_its_dark_time(driver: Driver[object]) -> None:
    """A closed window has its dark time and the joules of it under one name."""
    fold(driver, [reading(301, node="n2", product="H100 SXM"), reading(302, "GPU-1")], 320)
    later = [
        row
        for second in range(303, 401)
        for row in (reading(second, node="n2", product="H100 SXM"), reading(second, "GPU-1"))
    ]
    fold(driver, later, 420)
    dark = by_product(driver)
    assert dark[("H100",)][0] > 200_000
    # a tenth of a joule each millisecond
    assert all(drawn_mj == gpu_ms * 100 for gpu_ms, drawn_mj in dark.values())


def test_a_gpu_that_tells_no_power_is_where_its_newest_reading_says() -> None:
    """Also while the spool of the node that it was taken out of is emptied."""
    driver: Driver[Any] = Driver(MeterStage(CONFIG))
    nodes = []
    for second in range(100):
        spooled = [reading(second - 40, node="a", energy_mj=None)] if second >= 60 else []
        here = [reading(second, node="b", energy_mj=None)] if second >= 50 else []
        for rows in (spooled, [*here, reading(second, "GPU-1")]):
            fold(driver, rows, second)
            nodes += driver.state.gpu_index.filter(gpu_uuid="GPU-0")["node"].to_list()
    assert set(nodes) == {"b"}
