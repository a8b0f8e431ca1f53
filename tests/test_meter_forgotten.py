"""A node that was cut off for longer than it is remembered: its spool takes back the darkness that was booked meanwhile."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from meter_fleets import pack
from stage_driver import Driver

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records
from idlewatt.stream.records import EngineRow, GpuRow

START_MS = 1_790_000_040_000
CONFIG = MeterConfig(forget_ms=300_000)
LIMIT_MW = 700_000
# it is cut off after two minutes, remembered for five, and its spool comes after the fifteenth
CUT_S, BACK_S, END_S = 120, 900, 1200


def gpu(second: int, node: str) -> GpuRow:
    return GpuRow(
        ts_ms=START_MS + 1000 * second,
        site="s",
        pool="p",
        node=node,
        gpu_uuid=f"GPU-{node}",
        product="H100",
        energy_mj=100_000 * second,
        power_limit_mw=LIMIT_MW,
        epoch_ms=1,
        has_process=node == "cut",
    )


def engine(second: int) -> EngineRow:
    return EngineRow(
        ts_ms=START_MS + 1000 * second,
        site="s",
        pool="p",
        node="cut",
        engine="e",
        server="vllm",
        model_name="m",
        output_tokens=50 * second,
        advance="step",
        requests_running=1,
        requests_waiting=0,
        epoch_ms=1,
        gpus=["GPU-cut"],
    )


def metered(
    messages: int,
    *,
    restarts: bool,
    spool_until_s: int = BACK_S,
    forget_s: Mapping[int, int] = MappingProxyType({}),
) -> Driver[Any]:
    """The spool comes in so many messages, two at a time; then the node is live again.

    `forget_s`: seconds after which it is forgotten, from restarts at such seconds on.
    """
    driver: Driver[Any] = Driver(MeterStage(CONFIG))
    spool = list(range(CUT_S, spool_until_s, 5))
    part = -(-len(spool) // messages)
    # what is read meanwhile queues up behind it
    parts = [spool[at : at + part] for at in range(0, len(spool), part)]
    for second in range(0, END_S, 5):
        own = [second] if second < CUT_S else []
        if second >= BACK_S:
            parts.append([second])
            own = parts.pop(0) + (parts.pop(0) if len(parts) > 1 else [])
        driver.append(pack([gpu(second, "there"), *(gpu(at, "cut") for at in own), *map(engine, own)]))
        # until its spool comes, and when all of it is there
        if not BACK_S <= second < BACK_S + 210 and second % 15:
            continue
        driver.fold(START_MS + 1000 * second)
        if restarts and second % 15 == 0:
            driver.commit()
            if second in forget_s:
                driver.stage = MeterStage(MeterConfig(forget_ms=1000 * forget_s[second]))
            driver.crash()
    for _ in range(3):
        driver.fold(START_MS + 1000 * END_S + 30_000)
    return driver


@pytest.mark.parametrize(
    ("messages", "restarts", "forget_s"),
    [(1, False, {}), (40, True, {}), (1, True, {300: 100}), (1, True, {600: 600})],
)
def test_each_moment_is_in_one_state_again(
    messages: int, restarts: bool, forget_s: Mapping[int, int]
) -> None:
    """Each window of its GPU has ten seconds and what the limit made available; each of its engine's, ten seconds."""
    driver = metered(messages, restarts=restarts, forget_s=forget_s)
    windows: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for row in driver.rows(records.POWER):
        windows[row["window_start_ms"]][0] += row["gpu_ms"]
        windows[row["window_start_ms"]][1] += row["draw_mj"] + row["headroom_mj"]
    assert len(windows) >= END_S // 10
    until_ms = START_MS + 1000 * (END_S - 60)
    wrong = {
        at: sums
        for at, sums in windows.items()
        if START_MS <= at < until_ms and sums != [20_000, 2 * 10 * LIMIT_MW]
    }
    assert wrong == {}
    engines: defaultdict[int, int] = defaultdict(int)
    for row in driver.rows(records.TOKENS):
        engines[row["window_start_ms"]] += row["measured_ms"] + row["silent_ms"]
    assert {at: ms for at, ms in engines.items() if at < until_ms and ms != 10_000} == {}
    dark_ms = sum(row["gpu_ms"] for row in driver.rows(records.POWER) if row["state"] == "dark")
    # nobody knows what was before the first reading of each that is booked anew
    assert 0 < dark_ms <= 10_000 * (messages + 2)


def test_what_a_spool_lacks_stays_dark_for_as_long_as_the_node_is_remembered() -> None:
    """Half of the time came late, and then nothing for as long again: both darknesses are booked, and once each."""
    driver = metered(1, restarts=False, spool_until_s=CUT_S + 200)
    spent: defaultdict[str, int] = defaultdict(int)
    for row in driver.rows(records.GPU_MINUTE):
        if row["gpu_uuid"] == "GPU-cut" and row["minute_start_ms"] < START_MS + 1000 * BACK_S:
            spent[row["state"]] += row["gpu_ms"]
    assert spent["serving"] == pytest.approx(1000 * (CUT_S + 200), abs=20_000)
    assert sum(spent.values()) == 1000 * (CUT_S + 200 - 5 + 300)


def test_a_pool_that_is_gone_has_counters_and_no_clock() -> None:
    """So the alert on pools whose clock vanished tells it from one that nobody serves; one with engines alone, too."""
    driver: Driver[Any] = Driver(MeterStage(MeterConfig(forget_ms=300_000)))
    made = [dataclasses.replace(engine(second), pool="engines") for second in (0, 5, 10)]
    driver.append(pack([*made, *(gpu(second, "there") for second in (0, 5, 10))]))
    driver.fold(START_MS + 60_000)
    clock = "idlewatt_window_end_timestamp_seconds"
    for minute in (1, 60, 65):
        driver.fold(START_MS + 60_000 * minute)
        assert driver.sample(clock, pool="p") == driver.sample(clock, pool="engines") is not None
    for hour in (2, 96):
        driver.fold(START_MS + 3_600_000 * hour)
        assert driver.sample(clock, pool="p") is driver.sample(clock, pool="engines") is None
        assert driver.sample("idlewatt_available_joules_total", pool="p") is not None
        assert driver.sample("idlewatt_tokens_total", pool="engines", kind="output") is not None


def test_a_pool_that_is_gone_takes_its_counters_with_it() -> None:
    """Nodes that come with a new name each are pools of their own, and each would be kept for ever."""
    config = MeterConfig(forget_ms=300_000)
    driver: Driver[Any] = Driver(MeterStage(config))
    gone = [dataclasses.replace(gpu(second, "cut"), pool="gone") for second in range(0, 300, 5)]
    made = [dataclasses.replace(engine(second), pool="gone") for second in range(0, 300, 5)]
    driver.append(pack([*gone, *made, *(gpu(second, "there") for second in range(0, 300, 5))]))
    driver.fold(START_MS + 300_000)
    totals = ("power_totals", "available_totals", "token_totals", "measured_totals", "booked")
    counted: list[set[int]] = []
    for hour in range(6, 7 * 24 + 12, 6):
        driver.append(pack([gpu(3600 * hour + second, "there") for second in (0, 5, 10)]))
        driver.fold(START_MS + 3_600_000 * hour)
        kept = {getattr(driver.state, name).filter(pool="gone").height for name in totals}
        counted.append(kept)
        assert driver.sample("idlewatt_unaccounted_joules_total", pool="p") == 0
    # for a week, and all at once
    last = counted.index({0})
    assert last in (7 * 4 - 1, 7 * 4)
    assert all(0 not in kept for kept in counted[:last])
    assert driver.sample("idlewatt_energy_joules_total", pool="gone") is None
    assert driver.sample("idlewatt_energy_joules_total", pool="p", state="idle_free") is not None
