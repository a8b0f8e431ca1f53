"""What is read long after it was sent is booked as if it had been read at once."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from ledger_truth import assert_true
from meter_fleets import START_MS, Row, pack
from stage_driver import Driver, sums
from truth import truth

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.processors.meter.state import LAYOUT
from idlewatt.processors.snapshot import read_snapshot, write_snapshot
from idlewatt.stream import records, topics
from idlewatt.stream.records import EngineRow, GpuRow


def gpu(second: int, gpu_uuid: str = "G", node: str = "n", **more: Any) -> GpuRow:
    values: dict[str, Any] = {"has_process": True, "power_limit_mw": 700_000, "epoch_ms": 1} | more
    return GpuRow(
        ts_ms=START_MS + 1000 * second,
        site="s",
        pool="p",
        node=node,
        gpu_uuid=gpu_uuid,
        product="H100",
        energy_mj=100_000 * second,
        **values,
    )


def engine(
    second: float, output_tokens: int, name: str = "E", node: str = "n", gpu_uuid: str = "G", running: int = 1
) -> EngineRow:
    return EngineRow(
        ts_ms=START_MS + round(1000 * second),
        site="s",
        pool="p",
        node=node,
        engine=name,
        server="vllm",
        model_name="m",
        output_tokens=output_tokens,
        advance="step",
        requests_running=running,
        epoch_ms=1,
        gpus=[gpu_uuid],
    )


def assert_all_true(driver: Driver[Any], rows: list[Row], config: MeterConfig) -> None:
    gpus = [row for row in rows if isinstance(row, GpuRow)]
    engines = [row for row in rows if isinstance(row, EngineRow)]
    assert_true(driver, gpus, engines, config, driver.state.edge_ms)


def every_other_minute() -> list[Row]:
    """An engine that serves so, on one GPU, for two and a half hours."""
    rows: list[Row] = []
    made = 0
    for second in range(0, 9000, 10):
        serves = second // 60 % 2 == 0
        made += 100 * serves
        rows += [gpu(second), engine(second, made, running=serves)]
    return rows


@pytest.mark.parametrize("at_once", [10**6, 500])
def test_hours_that_are_closed_in_one_step_have_all_that_engines_did(at_once: int) -> None:
    """An engine that serves every other minute, for two and a half hours; segments are kept for one."""
    rows = every_other_minute()
    config = MeterConfig()
    driver = Driver(MeterStage(config))
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        driver.append(pack(some))
        driver.fold(some[-1].ts_ms)
    driver.fold(START_MS + 9_030_000)
    assert_all_true(driver, rows, config)


@pytest.mark.parametrize("at_once", [100, 10**6])
def test_an_outage_of_hours_is_booked_as_what_was_done_in_it(at_once: int) -> None:
    """The processor followed the clock meanwhile; then the spools come, the engine's before the GPU's."""
    rows = every_other_minute()
    before, away = rows[:20], rows[20:]
    config = MeterConfig()
    driver = Driver(MeterStage(config))
    driver.append(pack(before))
    driver.fold(START_MS + 100_000)
    while driver.fold(START_MS + 9_000_000).moved:
        pass
    for first in range(0, len(away), at_once):
        driver.append(pack(away[first : first + at_once]))
        driver.fold(START_MS + 9_000_000 + first)
    for second in (9_030, 9_060):
        driver.fold(START_MS + 1000 * second)
    assert_all_true(driver, rows, config)


def test_a_gigawatt_is_counted_for_years() -> None:
    """In 107 days it makes more millijoules than 64 bits hold; counters go on rising, and nothing is unaccounted for."""
    driver = Driver(MeterStage(MeterConfig(pue=2.0)))
    driver.append(pack([gpu(second) for second in range(0, 300, 10)]))
    driver.fold(START_MS + 300_000)
    driver.commit()
    assert driver.committed is not None
    scalars, frames = read_snapshot(LAYOUT, driver.committed[0])
    years = (1 << 63) - 1
    for name in ("power_totals", "measured_totals", "available_totals"):
        amounts = pl.selectors.ends_with("_mj")
        frames[name] = frames[name].with_columns(
            pl.when(amounts > 0).then(amounts + years).otherwise(amounts)
        )
    driver.committed = (write_snapshot(LAYOUT, scalars, frames), *driver.committed[1:])
    driver.crash()
    driver.append(pack([gpu(second) for second in range(300, 600, 10)]))
    driver.fold(START_MS + 600_000)
    shown = [driver.sample("idlewatt_energy_joules_total", scope=scope) for scope in ("it", "facility")]
    shown.append(driver.sample("idlewatt_available_joules_total"))
    assert all(joules is not None and joules >= years / 1000 for joules in shown)
    assert driver.sample("idlewatt_unaccounted_joules_total") == 0


@pytest.mark.parametrize("later", [1.05, 1.5, None])
def test_joules_at_the_utility_are_those_of_the_pue_they_were_booked_with(later: float | None) -> None:
    """Another PUE after a restart changes nothing of the past: Prometheus would take a fall for a reset."""
    driver = Driver(MeterStage(MeterConfig(pue=1.2)))
    for second in range(0, 300, 10):
        driver.append(pack([gpu(second)]))
    driver.fold(START_MS + 300_000)
    driver.commit()

    def joules(**labels: str) -> float:
        return driver.sample("idlewatt_energy_joules_total", **labels)

    before = joules(scope="it"), joules(scope="facility")
    assert before[1] == pytest.approx(1.2 * before[0])
    driver.stage = MeterStage(MeterConfig(pue=later))
    driver.crash()
    assert joules(scope="facility") == before[1]
    for second in range(300, 400, 10):
        driver.append(pack([gpu(second)]))
    driver.fold(START_MS + 400_000)
    added = joules(scope="it") - before[0]
    assert added > 0
    assert joules(scope="facility") - before[1] == pytest.approx(added * (later or 0))


@pytest.mark.parametrize(
    ("before_ms", "after_ms", "change_s"),
    [
        (10_000, 20_000, 110),
        (15_000, 20_000, 130),
        (20_000, 5000, 110),
    ],
)
def test_windows_of_another_length_begin_where_those_of_before_end(
    before_ms: int, after_ms: int, change_s: int
) -> None:
    """A setting that is changed under way loses no time, and books none twice; a node's spool spans the change."""
    driver = Driver(MeterStage(MeterConfig(window_ms=before_ms)))
    rows: list[Row] = []
    spool: list[Row] = []
    for second in range(0, 400, 5):
        there: list[Row] = [gpu(second), engine(second, 100 * second)]
        spool.append(gpu(second, "away", "n2", has_process=False))
        if not 60 <= second < 200:
            there, spool = there + spool, []
        rows += there
        driver.append(pack(there))
        driver.fold(there[0].ts_ms)
        if second == change_s:
            driver.commit()
            driver.stage = MeterStage(MeterConfig(window_ms=after_ms))
            driver.crash()
    edge_ms = driver.state.edge_ms
    assert edge_ms % after_ms == 0
    power, tokens = driver.rows(records.POWER), driver.rows(records.TOKENS)
    in_window = sums(power, ("window_start_ms", "window_ms"), ("gpu_ms",))
    assert all(gpu_ms <= 2 * window_ms for (_, window_ms), (gpu_ms,) in in_window.items())
    expected = truth(
        [row for row in rows if isinstance(row, GpuRow)],
        [row for row in rows if isinstance(row, EngineRow)],
        window_ms=5000,
        grace_ms=15_000,
        forget_ms=86_400_000,
        edge_ms=edge_ms,
    )
    amounts = ("gpu_ms", "draw_mj", "headroom_mj")
    true: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for (*_, state), found in expected.power.items():
        true[(state,)] = [a + b for a, b in zip(true[(state,)], found, strict=False)]
    booked = sums(power, ("state",), amounts)
    assert {state: row for state, row in booked.items() if any(row)} == {k: tuple(v) for k, v in true.items()}
    assert sum(row["output_tokens"] for row in tokens) == sum(row[0] for row in expected.tokens.values())


@pytest.mark.parametrize("limit_mw", [500_000, None])
def test_what_was_available_never_falls(limit_mw: int | None) -> None:
    """Late readings tell a lower power limit than dark time was booked with; Prometheus would take it for a reset."""
    driver = Driver(MeterStage(MeterConfig()))
    seen: list[float] = []
    for second in range(0, 300, 10):
        rows: list[Row] = [gpu(second)] if second < 60 else []
        if second == 200:
            rows = [gpu(late, power_limit_mw=limit_mw) for late in range(60, 200, 5)]
        driver.append(pack(rows))
        driver.fold(START_MS + 1000 * second)
        available = driver.sample("idlewatt_available_joules_total")
        seen += [] if available is None else [available]
    assert len(seen) > 20
    assert seen == sorted(seen)


@pytest.mark.parametrize("gpus_at_once", [10, 1000])
def test_a_spool_is_judged_by_what_came_with_it_whichever_topic_is_ahead(gpus_at_once: int) -> None:
    """A node was cut off for five minutes; the processor was away too, and reads one topic faster than the other."""
    log: list[tuple[int, Row]] = []
    for second in range(0, 600, 5):
        came = second if not 100 <= second < 400 else 400 + second // 1000
        other = [gpu(second, "L", "n2"), engine(second, second, "EL", "n2", "L")]
        log += [(second, row) for row in other]
        log += [(came, row) for row in (gpu(second), engine(second, 10 * second))]
    rows = [row for _, row in sorted(log, key=lambda told: told[0])]
    config = MeterConfig()
    driver = Driver(MeterStage(config))
    for row in rows:
        driver.append(pack([row]))
    while any(driver.behind(topic) for topic in driver.log):
        driver.fold(START_MS + 600_000, {topics.GPU: gpus_at_once, topics.ENGINE: 10})
    for second in (630, 690):
        driver.fold(START_MS + 1000 * second)
    assert_all_true(driver, rows, config)


@pytest.mark.parametrize("restart_s", [224, 228])
def test_a_restart_while_a_spool_is_emptied_judges_nothing_too_soon(restart_s: int) -> None:
    """A node was cut off for 200 s; its engine's rows come 7 s after its GPU's, and nobody else is in the partition."""
    config = MeterConfig()
    driver = Driver(MeterStage(config))
    gpus = [gpu(second, has_process=False) for second in range(200)]
    engines = [engine(second, 50 * second) for second in range(200)]
    for second in range(20):
        driver.append(pack([gpus[second], engines[second]]))
        driver.fold(START_MS + 1000 * second)
    for second in range(20, 260):
        # twenty seconds of them in each
        came = 20 * (second - 219)
        driver.append(pack(gpus[came : came + 20] if came > 0 else []))
        driver.append(pack(engines[came - 140 : came - 120] if came > 140 else []))
        if second == 219:
            driver.commit()
        if second == restart_s:
            driver.crash()
        driver.fold(START_MS + 1000 * second)
    driver.fold(START_MS + 400_000)
    assert_all_true(driver, [*gpus, *engines], config)


@pytest.mark.parametrize("at_once", [True, False])
def test_nobody_is_forgotten_while_his_late_readings_wait(at_once: bool) -> None:
    """A GPU's spool comes 20 s before it is forgotten; all is read as it comes, or together after 10 minutes."""
    config = MeterConfig(forget_ms=300_000)
    live: list[Row] = [gpu(second, "L", "n2", has_process=False) for second in range(0, 700, 5)]
    dead: list[Row] = [gpu(second, has_process=False) for second in range(0, 31, 5)]
    back: list[Row] = [gpu(second, has_process=False) for second in range(250, 400, 5)]
    rest = sorted([*live[63:], *back[12:]], key=lambda row: row.ts_ms)
    came = [
        sorted([*dead, *live[:7]], key=lambda row: row.ts_ms),
        live[7:63],
        back[:12],
        *([row] for row in rest),
    ]
    driver = Driver(MeterStage(config))
    for number, rows in enumerate(came):
        driver.append(pack(rows))
        if not at_once or number == 0:
            driver.fold(max(row.ts_ms for some in came[: number + 1] for row in some) + 100)
    for second in (696, 720, 780, 840):
        driver.fold(START_MS + 1000 * second)
    assert_all_true(driver, [*live, *dead, *back], config)


@pytest.mark.parametrize("at_once", [3, 100_000])
def test_an_engine_that_was_forgotten_is_there_from_its_return_on(at_once: int) -> None:
    """While nobody knew it to be there, what its GPU's process did is other work, and not dark; or another's that names none."""
    config = MeterConfig(forget_ms=60_000)
    driver = Driver(MeterStage(config))
    rows: list[Row] = []
    spool: list[Row] = [gpu(second, "H", "n2") for second in range(165, 600, 5)]
    made = 0
    for second in range(0, 600, 5):
        rows += [gpu(second), gpu(second, "H", "n2")] if second < 165 else [gpu(second)]
        if second < 100 or second >= 305:
            made += 100
            rows.append(replace(engine(second + 0.777, made), gpus=["G", "H"]))
        if 200 <= second < 250:
            rows.append(replace(engine(second + 0.888, 200 * second, "F"), gpus=[]))
    for some in (rows[:3], *(rows[at : at + at_once] for at in range(3, len(rows), at_once))):
        driver.append(pack(some))
        driver.fold(some[-1].ts_ms + 10)
    driver.fold(START_MS + 660_000)
    assert_all_true(driver, rows, config)
    driver.append(pack(spool))
    for second in (661, 720):
        driver.fold(START_MS + 1000 * second)
    minutes = sums(driver.rows(records.GPU_MINUTE), ("gpu_uuid", "minute_start_ms", "state"), ("gpu_ms",))
    # while it was known to nobody
    for minute_start_ms in range(START_MS + 180_000, START_MS + 300_000, 60_000):
        assert minutes["H", minute_start_ms, "other"] == (60_000,)


@pytest.mark.parametrize("restart_s", [None, *range(1105, 1140, 5)])
def test_a_restart_counts_nothing_of_the_forgotten_again(restart_s: int | None) -> None:
    """Readings older than an entity is remembered come late: they are booked, and it is forgotten at once."""
    config = MeterConfig(forget_ms=300_000)
    driver = Driver(MeterStage(config))
    rows: list[Row] = []
    for second in range(1000, 1200, 5):
        some: list[Row] = [gpu(second, "L", "n2"), engine(second, second, "EL", "n2", "L")]
        if second == 1100:
            some += [
                row
                for s in range(400, 461, 5)
                for row in (gpu(s, "OLD", "n3", has_process=False), engine(s, 100 * s, "EO"))
            ]
        driver.append(pack(some))
        rows += some
        if not 1100 <= second < 1150 and second % 25:
            continue
        driver.fold(START_MS + 1000 * second + 50)
        if second > 1100:
            driver.commit()
        if second == restart_s:
            driver.crash()
    for second in (1220, 1260, 1300, 4600):
        driver.fold(START_MS + 1000 * second)
    assert_all_true(driver, sorted(rows, key=lambda row: row.ts_ms), config)
