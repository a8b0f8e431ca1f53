"""What an idle joule would have made, by what the pool made in the last 24 hours."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from meter_fleets import Row, pack
from stage_driver import Driver

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.processors.meter.yardstick import HISTOGRAM_COLUMNS
from idlewatt.stream import records
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.records import EngineRow, GpuRow

# a full hour
START_MS = 472_222 * HOUR_MS


def gpu(ms: int, energy_mj: int, gpu_uuid: str = "p", pool: str = "p") -> GpuRow:
    return GpuRow(
        ts_ms=START_MS + ms,
        site="s",
        pool=pool,
        node=gpu_uuid,
        gpu_uuid=gpu_uuid,
        product="no such",
        energy_mj=energy_mj,
        power_limit_mw=700_000,
        epoch_ms=1,
        has_process=True,
    )


def engine(ms: int, tokens: int, *gpus: str, running: bool = True, pool: str = "p") -> EngineRow:
    return EngineRow(
        ts_ms=START_MS + ms,
        site="s",
        pool=pool,
        node=gpus[0],
        engine=gpus[0],
        server="vllm",
        model_name="m",
        output_tokens=tokens,
        advance="step",
        requests_running=int(running),
        epoch_ms=1,
        gpus=list(gpus),
    )


def readings(ms: int, energy_mj: int, tokens: int, *, running: bool, pool: str = "p") -> list[Row]:
    """A GPU of a pool and the engine on it."""
    return [gpu(ms, energy_mj, pool, pool), engine(ms, tokens, pool, running=running, pool=pool)]


def folded(rows: list[Row], at_once: int, config: MeterConfig, histogram: pl.DataFrame) -> Driver[Any]:
    driver = Driver(MeterStage(config))
    driver.state = replace(driver.state, histogram=histogram)
    fold(driver, rows, at_once)
    return driver


def fold(driver: Driver[Any], rows: list[Row], at_once: int) -> None:
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        driver.append(pack(some))
        driver.fold(some[-1].ts_ms)


def caught_up(rows: list[Row], at_once: int, forget_ms: int) -> Driver[Any]:
    """Whose processor read the first 20 rows and was away, however long entities are known."""
    driver: Driver[Any] = Driver(MeterStage(MeterConfig(forget_ms=forget_ms, use_published=False)))
    fold(driver, rows[:20], 20)
    fold(driver, rows[20:], at_once)
    return driver


@pytest.mark.parametrize("at_once", [30, 900])
def test_windows_without_one_of_the_engines_gpus_teach_nothing(at_once: int) -> None:
    """Its collector started a quarter of an hour later, before or after the processor: the yield of both is learned."""
    rows: list[Row] = []
    for second in range(0, 1800, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if second >= 900:
            rows.append(gpu(1000 * second, 500_000 * second, "b"))
    none = pl.DataFrame(schema=HISTOGRAM_COLUMNS)
    driver = folded(rows, at_once, MeterConfig(use_published=False), none)
    learned = driver.sample("idlewatt_yardstick_tokens_per_joule", model_name="m")
    assert learned == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("pool", ["q", None])
def test_tokens_per_joule_are_withheld_while_a_named_gpu_is_not_read_in_its_pool(pool: str | None) -> None:
    """The tokens of two GPUs over the joules of one would be twice what they are."""
    rows: list[Row] = []
    for second in range(0, 180, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if pool is not None:
            rows.append(gpu(1000 * second, 500_000 * second, "b", pool))
    driver = folded(rows, 30, MeterConfig(), pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    assert driver.sample("idlewatt_tokens_per_joule", window="1m", kind="output", pool="p") is None
    assert driver.sample("idlewatt_coverage_ratio", window="1m", of="watts", pool="p") == 0.5
    # the ledger tells those who know nothing of GPUs
    assert {row["unread_gpus"] for row in driver.rows(records.TOKENS)} == {1}


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_tokens_of_before_a_named_gpu_was_read_are_told_however_rows_are_read(at_once: int) -> None:
    """A processor that catches up has the GPU's first reading before it closes the windows in which nobody read it."""
    rows: list[Row] = []
    for second in range(0, 400, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if second >= 222:
            rows.append(gpu(1000 * second, 500_000 * second, "b"))
    driver = folded(rows, at_once, MeterConfig(), pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    told = {row["window_start_ms"] - START_MS: row["unread_gpus"] for row in driver.rows(records.TOKENS)}
    assert told == {start_ms: int(start_ms + 10_000 <= 225_000) for start_ms in told}
    assert set(told.values()) == {0, 1}
    # seconds: 380 of the one GPU; of the other 155 that were read and 220 that were not
    coverage = driver.sample("idlewatt_coverage_ratio", window="1h", of="watts", pool="p")
    assert coverage == pytest.approx(1 - 220 / (380 + 155 + 220))


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_a_node_that_joins_darkens_nothing_from_before_it_was_there(at_once: int) -> None:
    """Also where a processor that catches up hears of it before it closes those windows."""
    rows: list[Row] = []
    for second in range(0, 400, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a")]
        if second >= 200:
            rows += [gpu(1000 * second, 500_000 * second, "b"), engine(1000 * second, 1000 * second, "b")]
    driver = folded(rows, at_once, MeterConfig(), pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    assert driver.sample("idlewatt_coverage_ratio", window="1h", of="watts", pool="p") == 1
    assert driver.sample("idlewatt_tokens_per_joule", window="1h", kind="output", pool="p") == pytest.approx(
        2
    )


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_a_named_gpu_that_is_forgotten_is_not_read_from_then_on(at_once: int) -> None:
    """Until then it is dark; the tokens of both GPUs stand over the joules of one all the while."""
    rows: list[Row] = []
    for second in range(0, 400, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if second <= 100:
            rows.append(gpu(1000 * second, 500_000 * second, "b"))
    driver = folded(rows, at_once, MeterConfig(forget_ms=100_000), pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    told = {row["window_start_ms"] - START_MS: row["unread_gpus"] for row in driver.rows(records.TOKENS)}
    assert told == {start_ms: int(start_ms >= 200_000) for start_ms in told}
    assert set(told.values()) == {0, 1}
    assert driver.sample("idlewatt_coverage_ratio", window="1m", of="watts", pool="p") == 0.5
    assert driver.sample("idlewatt_tokens_per_joule", window="5m", kind="output", pool="p") is None


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_time_between_two_spans_in_which_nobody_read_a_gpu_counts_as_it_was(at_once: int) -> None:
    """A GPU that was read for a while, and an engine that was gone for a while, told all at once or as it came."""
    rows: list[Row] = []
    for second in range(0, 400, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if 50 <= second < 150:
            rows.append(gpu(1000 * second, 500_000 * second, "b"))
        rows.append(gpu(1000 * second, 500_000 * second, "c", "q"))
        if not 50 <= second < 300:
            rows.append(replace(engine(1000 * second, 1000 * second, "never"), pool="q"))
    driver = caught_up(rows, at_once, 100_000)
    told = {
        row["window_start_ms"] - START_MS: row["unread_gpus"]
        for row in driver.rows(records.TOKENS)
        if row["pool"] == "p"
    }
    # the last reading at 145 s, and forgotten from the edge after 245 s on
    assert told == {start_ms: int(not 50_000 <= start_ms < 250_000) for start_ms in told}
    # of "b" 195 s that it was known for, 95 of them read, and 180 that it was not
    coverage = driver.sample("idlewatt_coverage_ratio", window="1h", of="watts", pool="p")
    assert coverage == pytest.approx((380 + 95) / (380 + 195 + 180))
    # the engine was known until the edge after 145 s, and from 300 s on
    coverage = driver.sample("idlewatt_coverage_ratio", window="1h", of="watts", pool="q")
    assert coverage == pytest.approx(380 / (380 + 150 + 80))


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_a_named_gpu_that_was_forgotten_is_not_read_until_it_is_back(at_once: int) -> None:
    """Also where a processor that catches up reads of both in one step."""
    rows: list[Row] = []
    for second in range(0, 400, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if not 100 <= second < 300:
            rows.append(gpu(1000 * second, 500_000 * second, "b"))
    driver = caught_up(rows, at_once, 100_000)
    told = {row["window_start_ms"] - START_MS: row["unread_gpus"] for row in driver.rows(records.TOKENS)}
    # the last reading at 95 s, and forgotten from the edge after 195 s on
    assert told == {start_ms: int(200_000 <= start_ms < 300_000) for start_ms in told}
    # of "b" 195 s that it was known for, 95 of them read, 100 that it was not, and 80 that were read again
    coverage = driver.sample("idlewatt_coverage_ratio", window="1h", of="watts", pool="p")
    assert coverage == pytest.approx((380 + 95 + 80) / (380 + 195 + 100 + 80))


@pytest.mark.parametrize(
    ("read_s", "unread_s"),
    [
        ([*range(200, 400, 5)], range(200)),
        # the last reading at 95 s, and forgotten from the edge after 195 s on
        ([*range(0, 100, 5)], range(200, 400)),
        ([*range(0, 40, 5), *range(200, 400, 5)], range(140, 200)),
    ],
)
@pytest.mark.parametrize("every_s", [20, 220])
def test_tokens_that_come_late_are_of_the_gpus_that_were_read_then(
    read_s: list[int], unread_s: range, every_s: int
) -> None:
    """An engine that is cut off names a GPU of another node, which is read first, forgotten or back before its spool comes."""
    driver: Driver[Any] = Driver(MeterStage(MeterConfig(forget_ms=100_000, use_published=False)))
    spool: list[Row] = []
    for second in range(0, 400, 5):
        ms, energy_mj = 1000 * second, 500_000 * second
        spool += [gpu(ms, energy_mj, "a"), engine(ms, 1000 * second, "a", "b")]
        there = [gpu(ms, energy_mj, "there"), *([gpu(ms, energy_mj, "b")] if second in read_s else [])]
        if not 150 <= second < 240:
            there, spool = there + spool, []
        if second == 240:
            driver.commit()
            driver.crash()
        driver.append(pack(there))
        if second % (every_s if second < 240 else 20) == 0:
            driver.fold(START_MS + ms)
    told = [
        (row["window_start_ms"] - START_MS, row["unread_gpus"])
        for row in driver.rows(records.TOKENS)
        if row["output_tokens"]
    ]
    assert sum(150_000 <= start_ms < 230_000 for start_ms, _ in told) >= 8
    assert told == [(start_ms, int(start_ms // 1000 in unread_s)) for start_ms, _ in told]


def beside_others(read_s: range, at_once: int, forget_ms: int) -> tuple[dict[int, Any], dict[int, bool]]:
    """Engines that name no GPU, each beside a GPU of its node that is read in these seconds; one is scaled in at 100 s.

    By window, in ms since the start: tokens lost by another that idles, and whether the one that was scaled in is stopped.
    """
    rows: list[Row] = []
    for second in range(0, 400, 5):
        ms, energy_mj, tokens = 1000 * second, 500_000 * second, 1000 * second
        rows += [gpu(ms, energy_mj, "a"), replace(engine(ms, tokens, "a"), gpus=[])]
        rows += [gpu(ms, energy_mj, "idle"), engine(ms, 0, "idle", running=False)]
        rows.append(replace(gpu(ms, energy_mj, "q", "q"), has_process=second < 100))
        if second < 100:
            rows.append(replace(engine(ms, tokens, "q", pool="q"), gpus=[]))
        if second in read_s:
            rows.append(replace(gpu(ms, energy_mj, "second"), node="a", has_process=False))
            rows.append(replace(gpu(ms, energy_mj, "third", "q"), node="q", has_process=False))
    driver = caught_up(rows, at_once, forget_ms)
    lost = {
        row["window_start_ms"] - START_MS: row["lost_tokens_draw"]
        for row in driver.rows(records.POWER)
        if row["state"] == "idle_loaded"
    }
    told = {
        row["window_start_ms"] - START_MS: row["stopped"]
        for row in driver.rows(records.TOKENS)
        if row["pool"] == "q" and row["silent_ms"] == 10_000
    }
    return lost, told


def test_a_gpu_that_is_lost_while_its_node_is_cut_off_is_forgotten_in_the_spool() -> None:
    """Its last reading, at 195 s, comes with all others of two outages' length: from the edge after 295 s on nobody read it."""
    driver: Driver[Any] = Driver(MeterStage(MeterConfig(forget_ms=100_000, use_published=False)))
    spool: list[Row] = []
    for second in range(0, 600, 5):
        ms, energy_mj = 1000 * second, 500_000 * second
        there = [gpu(ms, energy_mj, "there")]
        spool += [gpu(ms, energy_mj, "a"), engine(ms, 1000 * second, "a", "b")]
        if second < 200:
            spool.append(gpu(ms, energy_mj, "b"))
        if not 100 <= second < 400:
            there, spool = there + spool, []
        driver.append(pack(there))
        if second % 20 == 0:
            driver.fold(START_MS + ms)
    told = {
        row["window_start_ms"] - START_MS: row["unread_gpus"]
        for row in driver.rows(records.TOKENS)
        if row["output_tokens"] and row["window_start_ms"] < START_MS + 350_000
    }
    assert told == {start_ms: int(start_ms >= 300_000) for start_ms in range(0, 350_000, 10_000)}


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_a_gpu_that_joins_the_node_of_an_engine_that_names_none_was_not_there_before(at_once: int) -> None:
    """Of what that one made a yield is learned, and where it was scaled in, nobody misses it, in a catch-up too."""
    lost, told = beside_others(range(250, 400), at_once, 86_400_000)
    assert lost[200_000] == pytest.approx(10_000, rel=0.03)
    assert set(told.values()) == {True}
    assert min(told) < 150_000 < 350_000 < max(told)


@pytest.mark.parametrize("at_once", [30, 100_000])
def test_a_gpu_that_is_forgotten_left_the_node_of_an_engine_that_names_none(at_once: int) -> None:
    """From then on of what that one makes a yield is learned, and where it was scaled in, nobody misses it, in a catch-up too."""
    lost, told = beside_others(range(51), at_once, 100_000)
    assert lost[300_000] == pytest.approx(10_000, rel=0.03)
    assert told == {start_ms: start_ms >= 150_000 for start_ms in range(100_000, 190_000, 10_000)}


def test_a_gpu_that_nobody_reads_is_missing_once_whoever_names_it() -> None:
    """Seven engines on the instances of one GPU; an engine that came back under another name."""
    rows: list[Row] = []
    for second in range(0, 180, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a")]
        instances = [engine(1000 * second, 1000 * second, "mig") for _ in range(7)]
        rows += [replace(row, engine=f"instance {n}") for n, row in enumerate(instances)]
    driver = folded(rows, 40, MeterConfig(), pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    assert driver.sample("idlewatt_coverage_ratio", window="1m", of="watts", pool="p") == 0.5


@pytest.mark.parametrize("neighbour", [False, True])
def test_a_day_without_work_leaves_nothing_to_go_by(neighbour: bool) -> None:
    """The pool served for an hour; whether another of its partition works on changes nothing."""
    rows: list[Row] = []
    for minute in range(0, 25 * 60, 3):
        serves = minute < 60
        energy_mj = minute * 6_000_000
        rows += readings(60_000 * minute, energy_mj, 600 * min(minute, 60), running=serves)
        if neighbour:
            rows += readings(60_000 * minute, energy_mj, 600 * minute, running=True, pool="q")
    config = MeterConfig(window_ms=360_000, grace_ms=300_000)
    driver = folded(rows, 400, config, pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    idle = [row for row in driver.rows(records.POWER) if row["pool"] == "p" and row["state"] == "idle_loaded"]
    known = {(row["window_start_ms"] - START_MS) // HOUR_MS: row["lost_tokens_draw"] for row in idle}
    assert known[2] > 0
    assert known[23] == known[2]
    assert known[24] is None


def test_a_full_hour_begins_at_the_same_window_however_rows_are_read() -> None:
    """The oldest hour, of which most is known, is forgotten when a new one begins, not a step before."""
    rows: list[Row] = []
    for n in range(60):
        ms = 5_000 * n - 120_000
        rows += readings(ms, 500_000 * n, 100 * n, running=True)
        rows += readings(ms, 250_000 * n, 0, running=False, pool="q")
    long_ago = [("s", "q", "no such", model, START_MS // HOUR_MS - 24, 200, 50, 10**9) for model in ("", "m")]
    histogram = pl.DataFrame(long_ago, schema=HISTOGRAM_COLUMNS, orient="row")
    lost = []
    for at_once in (8, 120):
        driver = folded(rows, at_once, MeterConfig(), histogram)
        lost.append(
            {
                row["window_start_ms"] - START_MS: row["lost_tokens_draw"]
                for row in driver.rows(records.POWER)
                if row["pool"] == "q" and row["state"] == "idle_loaded"
            }
        )
    shared = lost[0].keys() & lost[1].keys()
    assert {ms: lost[0][ms] for ms in shared} == {ms: lost[1][ms] for ms in shared}
    assert lost[0][-20_000] > 0
    assert lost[0][20_000] is None


@pytest.mark.parametrize("read_s", [600, 300, 0])
def test_tokens_beside_the_joules_of_some_of_their_gpus_teach_nothing(read_s: int) -> None:
    """An engine on two nodes, of which one is read for so long; by half of its joules it would be twice as good."""
    rows: list[Row] = []
    for second in range(0, 600, 5):
        rows += [gpu(1000 * second, 500_000 * second, "a"), engine(1000 * second, 1000 * second, "a", "b")]
        if second < read_s:
            rows.append(gpu(1000 * second, 500_000 * second, "b"))
        rows += [gpu(1000 * second, 100_000 * second, "c"), engine(1000 * second, 0, "c", running=False)]
    driver = folded(rows, 50, MeterConfig(), pl.DataFrame(schema=HISTOGRAM_COLUMNS))
    lost = {
        row["window_start_ms"] - START_MS: row["lost_tokens_draw"]
        for row in driver.rows(records.POWER)
        if row["state"] == "idle_loaded"
    }
    assert lost[550_000] == (pytest.approx(1000, rel=0.03) if read_s else None)
