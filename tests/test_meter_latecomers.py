"""GPUs and engines whose very first readings come late: a spool of a new node, sent when Kafka is back."""

from collections import defaultdict

import pytest
from stage_driver import Driver, Message

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics
from idlewatt.stream.records import EngineRow, GpuRow

START_MS = 1_790_000_040_000
CONFIG = MeterConfig(window_ms=2000, grace_ms=6000)
LIMIT_MW = 700_000
# The new node's readings, milliseconds after the start: nine seconds of an outage, then nothing, then live.
SPOOLED = range(5_300, 14_301, 1000)
LIVE = range(30_300, 60_301, 1000)
FIRST_MS = START_MS + SPOOLED[0]


def gpu(ms: int, pool: str) -> GpuRow:
    return GpuRow(
        ts_ms=START_MS + ms,
        site="s",
        pool=pool,
        node=pool,
        gpu_uuid=f"GPU-{pool}",
        product="H100",
        energy_mj=300 * ms,
        power_limit_mw=LIMIT_MW,
        epoch_ms=1,
        has_process=True,
    )


def engine(ms: int) -> EngineRow:
    return EngineRow(
        ts_ms=START_MS + ms,
        site="s",
        pool="new",
        node="new",
        engine="e",
        server="vllm",
        model_name="m",
        output_tokens=ms // 10,
        advance="step",
        requests_running=1,
        requests_waiting=0,
        epoch_ms=1,
        gpus=["GPU-new"],
    )


def metered(arrives_ms: int) -> tuple[Driver[object], int]:
    """Second by second, the spool at `arrives_ms`; returns the driver and the edge up to which all is closed."""
    driver: Driver[object] = Driver(MeterStage(CONFIG))
    for ms in range(0, 61_000, 500):
        messages = [Message(topics.GPU, records.GPU, [gpu(ms, "old")])] if ms % 1000 == 0 else []
        own = [*SPOOLED] if ms == arrives_ms else [ms - 200] if ms - 200 in LIVE else []
        if own:
            messages.append(Message(topics.GPU, records.GPU, [gpu(at, "new") for at in own]))
            messages.append(Message(topics.ENGINE, records.ENGINE, [engine(at) for at in own]))
        driver.append(messages)
        driver.fold(START_MS + ms)
    driver.fold(START_MS + 100_000)
    return driver, START_MS + 88_000


@pytest.mark.parametrize("arrives_ms", [15_000, 20_000, 30_000])
def test_every_reading_of_a_latecomer_counts(arrives_ms: int) -> None:
    """Joules, tokens and time are booked from the first reading on, whenever it comes; none is taken back unbooked."""
    driver, edge_ms = metered(arrives_ms)
    power, tokens = defaultdict(int), defaultdict(int)
    available: dict[int, int] = defaultdict(int)
    for row in driver.rows(records.POWER):
        if row["pool"] == "new":
            power[row["state"]] += row["gpu_ms"]
            power["draw_mj"] += row["draw_mj"]
            available[row["window_start_ms"]] += row["draw_mj"] + row["headroom_mj"]
    for row in driver.rows(records.TOKENS):
        for name in ("output_tokens", "measured_ms", "silent_ms"):
            tokens[name] += row[name]
    measured_ms = SPOOLED[-1] - SPOOLED[0] + LIVE[-1] - LIVE[0]
    dark_ms = edge_ms - FIRST_MS - measured_ms
    assert power == {
        "serving": measured_ms,
        "dark": dark_ms,
        "draw_mj": 300 * (LIVE[-1] - SPOOLED[0]),
    }
    assert tokens == {
        "output_tokens": LIVE[-1] // 10 - SPOOLED[0] // 10,
        "measured_ms": measured_ms,
        "silent_ms": dark_ms,
    }
    whole = range(START_MS + 6000, edge_ms, CONFIG.window_ms)
    assert {window: available[window] for window in whole} == dict.fromkeys(whole, LIMIT_MW * 2)


@pytest.mark.parametrize("arrives_ms", [15_000, 20_000, 30_000])
def test_tokens_of_a_spool_are_made_on_the_gpus_that_it_tells_of(arrives_ms: int) -> None:
    """Those of closed windows are booked before the first reading of their GPU, which waits: it was read all the same."""
    driver, _ = metered(arrives_ms)
    # the step that books them closes a window of its own, or several
    closed_ms = START_MS + arrives_ms - CONFIG.grace_ms - 2 * CONFIG.window_ms
    closed = [row for row in driver.rows(records.TOKENS) if row["window_start_ms"] <= closed_ms]
    assert sum(row["output_tokens"] for row in closed) > 0
    assert {row["unread_gpus"] for row in closed} == {0}
