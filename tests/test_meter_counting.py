"""Hand-computed examples of docs/metering.md: what readings gain, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from stage_driver import Driver, Message, sums

from idlewatt.processors.meter import stage
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics
from idlewatt.stream.records import TOKEN_COUNTS
from idlewatt.stream.settings import Yardstick

START_MS = 1_790_000_040_000  # on a minute
GRACE_MS = 15_000


def gpu(second: float, energy_mj: int | None, **more: Any) -> records.GpuRow:
    values: dict[str, Any] = {
        "ts_ms": START_MS + round(second * 1000),
        "site": "s",
        "pool": "p",
        "node": "n",
        "gpu_uuid": "GPU-0",
        "product": "H100",
        "energy_mj": energy_mj,
        "power_limit_mw": 700_000,
        "epoch_ms": START_MS - 86_400_000,
        "has_process": False,
    }
    return records.GpuRow(**values | more)


def engine(second: float, output_tokens: int, **more: Any) -> records.EngineRow:
    values: dict[str, Any] = {
        "ts_ms": START_MS + round(second * 1000),
        "site": "s",
        "pool": "p",
        "node": "n",
        "engine": "n:8000",
        "server": "vllm",
        "model_name": "m",
        "output_tokens": output_tokens,
        "input_tokens": 0,
        "cached_input_tokens": 0,
        "advance": "step",
        "requests_running": 0,
        "requests_waiting": 0,
        "epoch_ms": START_MS - 86_400_000,
        "gpus": ["GPU-0"],
    }
    return records.EngineRow(**values | more)


def metered(*rows: Any, config: MeterConfig | None = None, until_s: int = 60) -> Driver[Any]:
    """The meter after these rows, all windows before `until_s` closed."""
    driver = Driver(MeterStage(config or MeterConfig()))
    gpus = [row for row in rows if isinstance(row, records.GpuRow)]
    engines = [row for row in rows if isinstance(row, records.EngineRow)]
    driver.append([Message(topics.GPU, records.GPU, gpus), Message(topics.ENGINE, records.ENGINE, engines)])
    # the clock is followed from the second fold on, when the partition is known to have read everything
    for _ in range(2):
        driver.fold(START_MS + until_s * 1000 + 2 * GRACE_MS)
    return driver


def drawn_mj(driver: Driver[Any]) -> int:
    return sum(row["draw_mj"] for row in driver.rows(records.POWER))


def time_ms(driver: Driver[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in driver.rows(records.POWER):
        found[row["state"]] = found.get(row["state"], 0) + row["gpu_ms"]
    return {state: spent for state, spent in found.items() if spent}


def test_an_increment_over_an_edge_is_split_in_proportion() -> None:
    """1000 mJ from second 8 to second 11 are 666 before the edge and the remainder after it."""
    rows = metered(gpu(8, 5000), gpu(11, 6000), gpu(12, 6000), until_s=20).rows(records.POWER)
    by_window = {row["window_start_ms"] - START_MS: row["draw_mj"] for row in rows if row["state"] != "dark"}
    assert by_window == {0: 666, 10_000: 334}


@pytest.mark.parametrize(
    ("rows", "gained_mj", "measured_ms"),
    [
        ([gpu(0, 100), gpu(5, 400)], 300, 5000),
        ([gpu(0, 100), gpu(5, 400), gpu(5, 400), gpu(0, 100)], 300, 5000),
        # a new epoch that is known brings all it has, from its start on
        ([gpu(0, 100), gpu(5, 400, epoch_ms=START_MS + 2000)], 400, 3000),
        # ... even if the clock of its server is ahead
        ([gpu(0, 100), gpu(5, 400, epoch_ms=START_MS + 300_000), gpu(6, 500, epoch_ms=START_MS + 300_000)], 500, 1001),
        # ... from the reading before on, if it falls since one that began earlier; if not, it is the same, told anew
        ([gpu(0, 900), gpu(5, 400, epoch_ms=START_MS - 60_000)], 400, 5000),
        ([gpu(0, 900), gpu(11, 400, epoch_ms=START_MS - 60_000)], 400, 0),
        ([gpu(0, 100), gpu(5, 400, epoch_ms=START_MS - 60_000)], 300, 5000),
        ([gpu(0, 100), gpu(5, 400, epoch_ms=START_MS)], 300, 5000),
        # ... unless it is further back than an hour
        ([gpu(4000, 100), gpu(4005, 400, epoch_ms=START_MS)], 0, 0),
        ([gpu(0, 100), gpu(5, 400, epoch_ms=1), gpu(6, 700)], 600, 6000),
        ([gpu(0, 100), gpu(4, 50), gpu(5, 400)], 300, 5000),
        # without an epoch a fall is a reset, if the new value can have been drawn since: at 1.3 times 700 W
        ([gpu(0, 9_000_000, epoch_ms=None), gpu(5, 4_550_000, epoch_ms=None)], 4_550_000, 5000),
        ([gpu(0, 9_000_000, epoch_ms=None), gpu(5, 4_550_001, epoch_ms=None)], 0, 0),
        # ... and the limit is known
        ([gpu(0, 900, epoch_ms=None, power_limit_mw=None), gpu(5, 400, epoch_ms=None, power_limit_mw=None)], 0, 0),
        ([gpu(0, 100), gpu(4, None, power_mw=9), gpu(5, 400)], 300, 5000),
        # no counter at all: the trapezoid of power
        ([gpu(0, None, power_mw=300_000), gpu(5, None, power_mw=500_000)], 2_000_000, 5000),
        # ... also of one that had a counter, if its sender begins a new epoch with it; and until the counter is back
        ([gpu(0, 100, power_mw=300_000), gpu(5, None, power_mw=500_000, epoch_ms=START_MS + 5000)], 2_000_000, 5000),
        (
            [
                gpu(0, 100, epoch_ms=None, power_mw=300_000),
                gpu(5, None, power_mw=500_000, epoch_ms=START_MS + 5000),
                gpu(10, None, power_mw=500_000, epoch_ms=START_MS + 5000),
                gpu(15, 9_000, power_mw=500_000, epoch_ms=None),
                gpu(20, 9_300, power_mw=500_000, epoch_ms=None),
            ],
            7_000_300,
            20_000,
        ),
        ([gpu(0, None, power_mw=300_000), gpu(5, 9_000, power_mw=500_000, epoch_ms=START_MS + 1)], 2_000_000, 5000),
        # further apart than the hold: the joules count, the time is dark
        ([gpu(0, 100), gpu(11, 400)], 300, 0),
        ([gpu(0, None, power_mw=300_000), gpu(11, None, power_mw=500_000)], 0, 0),
        # ... also where the machine was started in between: the epoch is the counter's
        ([gpu(0, None, power_mw=300_000), gpu(40, None, power_mw=500_000, epoch_ms=START_MS + 38_000)], 0, 0),
    ],
)  # fmt: skip
def test_what_an_interval_gains(rows: list[records.GpuRow], gained_mj: int, measured_ms: int) -> None:
    """Each case of the table in docs/metering.md."""
    driver = metered(*rows, until_s=4100 if rows[0].ts_ms > START_MS + 60_000 else 60)
    assert drawn_mj(driver) == gained_mj
    assert sum(spent for state, spent in time_ms(driver).items() if state != "dark") == measured_ms
    assert driver.sample("idlewatt_unaccounted_joules_total") == 0


@pytest.mark.parametrize("folds_s", [[60], [10, 20, 30, 60], [30, 60]])
@pytest.mark.parametrize("back_s", [21, 100])
def test_without_a_limit_what_is_drawn_in_the_dark_was_available(folds_s: list[int], back_s: int) -> None:
    """Gaps of a GPU whose limit nobody knows have no headroom, short or long, whenever they are booked; nor have others."""
    driver = Driver(MeterStage(MeterConfig()))
    rows = [gpu(at, 500_000 * at, power_limit_mw=None) for at in (0, 5, back_s, back_s + 5)]
    for until_s in [*folds_s, back_s + 40]:
        came = [row for row in rows if row.ts_ms <= START_MS + until_s * 1000]
        rows = rows[len(came) :]
        driver.append([Message(topics.GPU, records.GPU, came)] if came else [])
        for _ in range(3):
            driver.fold(START_MS + until_s * 1000)
    assert drawn_mj(driver) == 500_000 * (back_s + 5)
    assert {row["state"] for row in driver.rows(records.POWER)} == {"dark", "idle_free"}
    assert sum(row["headroom_mj"] for row in driver.rows(records.POWER)) == 0
    assert driver.sample("idlewatt_available_joules_total") == 500 * (back_s + 5)


@pytest.mark.parametrize("also_s", [[2], [2, 3, 4], [-1, 2], [5, 6, 7]])
def test_a_reading_without_power_between_others_changes_nothing(also_s: list[float]) -> None:
    """What it does not tell, the others do; nothing is refused."""
    good = [gpu(0, 100), gpu(5, 400), gpu(8, 500)]
    with_it = metered(*good, *(gpu(at, None) for at in also_s))
    drawn = {state: spent for state, spent in time_ms(with_it).items() if state != "dark"}
    assert (drawn_mj(with_it), drawn) == (400, {"idle_free": 8000})
    assert not with_it.rejected


@pytest.mark.parametrize("readable_s", [(), range(5)])
def test_a_gpu_whose_power_nobody_can_read_is_dark(readable_s: Sequence[int]) -> None:
    """It is there as long as it is read, with its limit; its engine's tokens are not those of the other GPU alone."""
    config = MeterConfig(forget_ms=60_000)
    driver = Driver(MeterStage(config))
    both = {"gpus": ["GPU-0", "GPU-1"], "requests_running": 1}
    for second in range(300):
        other = gpu(second, 100 * second if second in readable_s else None, gpu_uuid="GPU-1")
        rows = [gpu(second, 500_000 * second), other]
        driver.append(
            [
                Message(topics.GPU, records.GPU, rows),
                Message(topics.ENGINE, records.ENGINE, [engine(second, 1000 * second, **both)]),
            ]
        )
        driver.fold(START_MS + second * 1000)
    assert driver.sample("idlewatt_gpus", state="dark") == 1
    assert driver.sample("idlewatt_coverage_ratio", window="1m", of="watts") == 0.5
    assert driver.sample("idlewatt_tokens_per_joule", window="1m", kind="output") is None
    dark = [row for row in driver.rows(records.POWER) if row["state"] == "dark"]
    latest = max(row["window_start_ms"] for row in dark)
    assert [(row["gpu_ms"], row["headroom_mj"]) for row in dark if row["window_start_ms"] == latest] == [
        (10_000, 7_000_000)
    ]
    assert not driver.rejected


@pytest.mark.parametrize("last_s", [55, 60, 115])
def test_a_gpu_whose_power_nobody_can_read_is_remembered_from_when_it_was_read_last(last_s: int) -> None:
    """As any other is, however long ago its first reading was."""
    driver = Driver(MeterStage(MeterConfig(forget_ms=60_000)))
    for second in range(0, 200, 5):
        gone = [gpu(second, None, gpu_uuid="GPU-1")] if second <= last_s else []
        driver.append([Message(topics.GPU, records.GPU, [gpu(second, 100 * second), *gone])])
        driver.fold(START_MS + second * 1000)
    known_ms = sums(driver.rows(records.GPU_MINUTE), ("gpu_uuid",), ("gpu_ms",))
    assert known_ms["GPU-1",] == ((last_s + 60) * 1000,)


def test_a_gpu_whose_power_nobody_can_read_has_the_limit_it_tells() -> None:
    """Its first readings may know none yet, and later ones another."""
    limits = [None, None, *[700_000] * 18, *[300_000] * 41]
    rows = [gpu(second, None, power_limit_mw=limit) for second, limit in enumerate(limits)]
    assert (
        sum(row["headroom_mj"] for row in metered(*rows).rows(records.POWER)) == 700_000 * 18 + 300_000 * 40
    )


@pytest.mark.parametrize(
    ("row", "schema", "reason"),
    [
        (gpu(105.001, 100), "gpu", "clock_ahead"),
        (gpu(3, 100, ts_ms=1000), "gpu", "clock_before_1990"),
        (gpu(3, -1), "gpu", "negative"),
        (gpu(3, 200, power_limit_mw=0), "gpu", "negative"),
        (gpu(3, 2**63 - 14), "gpu", "implausible"),
        (gpu(3, 2**53), "gpu", "implausible"),
        (gpu(3, 200, epoch_ms=START_MS + 3_603_001), "gpu", "epoch_ahead"),
        (engine(3600, 100), "engine", "clock_ahead"),
        (engine(3, -5), "engine", "negative"),
        (engine(3, 2**62), "engine", "implausible"),
        (engine(3, 100, model_name="m" * 513), "engine", "name_too_long"),
        (gpu(3, 100, pool="p" * 513), "gpu", "name_too_long"),
        (engine(3, 20, epoch_ms=START_MS + 3_603_001), "engine", "epoch_ahead"),
        (engine(3, 5, advance="whenever"), "engine", "unknown_advance"),
    ],
)
def test_a_row_that_cannot_be_true_costs_nothing_else(row: Any, schema: str, reason: str) -> None:
    """It is left out and counted by its reason; its neighbours count as if it had not come."""
    good = [gpu(0, 100), gpu(5, 400), engine(0, 10), engine(5, 30)]
    driver = metered(*good, row)
    assert driver.rejected[schema, reason] == 1
    assert drawn_mj(driver) == 300
    assert sum(found["output_tokens"] for found in driver.rows(records.TOKENS)) == 20


@pytest.mark.parametrize(
    "row",
    [
        gpu(105, 100),
        gpu(3, 2**53 - 1),
        gpu(3, 0, power_limit_mw=1),
        gpu(3, 100, epoch_ms=START_MS + 3_603_000),
        engine(3, 0, model_name="m" * 512),
    ],
)
def test_a_row_that_may_just_be_true_is_taken(row: Any) -> None:
    """Ahead of the clock by no more than the grace, no larger or longer than is said; any limit is one."""
    assert metered(row).rejected == {}


def test_what_another_gpu_tells_changes_no_reading() -> None:
    """A reading is judged by the last one taken of its GPU, whether or not another's counter falls in the same lot."""
    mixed = [gpu(0, 1000), gpu(5, 500, epoch_ms=None), *(gpu(5 + n, 500 + 10 * n) for n in (2, 4, 6))]
    falls = [gpu(0, 10, gpu_uuid="GPU-1", pool="q"), gpu(5, 5, gpu_uuid="GPU-1", pool="q")]
    driver = metered(*mixed, *falls)
    assert driver.rejected == {("gpu", "counter_decrease"): 1}
    assert drawn_mj(driver) == drawn_mj(metered(*mixed)) == 560


@pytest.mark.parametrize(
    "lie",
    [{"epoch_ms": START_MS - 90_000_000}, {"energy_mj": 5}, {"energy_mj": None, "power_mw": 9}],
    ids=["stale_epoch", "counter_decrease", "counter_missing"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_readings_dropped_for_so_long_that_the_last_is_forgotten_begin_anew(
    lie: dict[str, Any], at_once: bool
) -> None:
    """It is forgotten 40 s after the last reading that was taken, however many are read at once."""
    rows = [gpu(0, 1000), *(gpu(5 * n, **{"energy_mj": 10 * n} | lie) for n in range(1, 20))]
    driver = Driver(MeterStage(MeterConfig(forget_ms=40_000)))
    for some in [rows] if at_once else [[row] for row in rows]:
        driver.append([Message(topics.GPU, records.GPU, some)])
        driver.fold(some[-1].ts_ms)
    driver.fold(START_MS + 150_000)
    assert driver.rejected == {("gpu", reason): 7 for _, reason in driver.rejected} != {}
    # from the first reading for 40 s, from the eighth one after it for 55, and until it is forgotten
    assert time_ms(driver) == {"idle_free": 55_000, "dark": 65_000}


@pytest.mark.parametrize(("silent_s", "gained_mj"), [(39.999, 300), (40, 0)])
def test_a_reading_after_so_long_a_silence_that_it_is_forgotten_is_a_first_one(
    silent_s: float, gained_mj: int
) -> None:
    """Before that it brings what its counter gained meanwhile."""
    driver = metered(gpu(0, 100), gpu(silent_s, 400), config=MeterConfig(forget_ms=40_000))
    assert drawn_mj(driver) == gained_mj


def test_what_is_forgotten_sooner_than_a_window_lasts_is_still_counted_while_it_speaks() -> None:
    """Readings that say no more than their neighbours are left out: what lies between is no silence."""
    rows = [row for s in range(61) for row in (gpu(s, 500 * s), engine(s, 100 * s, requests_running=1))]
    driver = metered(*rows, config=MeterConfig(forget_ms=5_000))
    assert drawn_mj(driver) == 30_000
    assert sum(row["output_tokens"] for row in driver.rows(records.TOKENS)) == 6_000


@pytest.mark.parametrize(("before_ms", "late"), [(0, {}), (1, {"gpu": 1})])
def test_a_row_of_a_closed_window_is_late(before_ms: int, late: dict[str, int]) -> None:
    """The reading at the edge is the next window's first."""
    driver = metered(gpu(0, 100))
    driver.append([Message(topics.GPU, records.GPU, [gpu(60 - before_ms / 1000, 400)])])
    assert driver.fold(START_MS + 90_000).late == late


def test_counters_that_jump_end_nothing() -> None:
    """The most that is taken as a counter, of one engine beside an honest pool: the pool's figures stay what they are."""
    honest = [gpu(s, 100 * s, gpu_uuid="GPU-1", pool="q", node="m") for s in range(151)]
    rows: list[Any] = [gpu(s, 100_000 * s) for s in range(151)]
    rows += [engine(s, min(s, 100) * (2**53 - 1) // 100) for s in range(151)]
    driver = metered(*sorted([*honest, *rows], key=lambda row: row.ts_ms), until_s=150)
    of_pool = [row["draw_mj"] for row in driver.rows(records.POWER) if row["pool"] == "q"]
    assert sum(of_pool) == 15_000
    assert driver.sample("idlewatt_yardstick_tokens_per_joule", origin="learned") == 1e6


def test_gpus_that_wait_behind_an_old_row_are_no_reason_to_close_more_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first row ever is most of a day old: what a fold closes is bounded by all GPUs, not by the one that was read."""
    monkeypatch.setattr(stage, "_WINDOWS_PER_FOLD", 1000)
    driver = Driver(MeterStage(MeterConfig()))
    rows = [
        gpu(-80_000, 0, gpu_uuid="GPU-old", epoch_ms=None),
        *(gpu(0, 0, gpu_uuid=f"GPU-{n}") for n in range(99)),
    ]
    driver.append([Message(topics.GPU, records.GPU, rows)])
    driver.fold(START_MS)
    assert driver.state.edge_ms <= rows[0].ts_ms + 11 * 10_000


@pytest.mark.parametrize("counter", [None, 9_000_000])
def test_a_gpu_without_counter_has_no_older_epoch(counter: int | None) -> None:
    """Its collector was started anew after its clock, a little ahead, was set right; it may have a counter then."""
    before = [gpu(s, None, power_mw=70_000, epoch_ms=START_MS + 5_000) for s in range(6, 31)]
    after = [gpu(s, counter, power_mw=70_000, epoch_ms=START_MS + 4_000) for s in range(31, 61)]
    driver = metered(gpu(5, 1, power_mw=70_000), *before, *after)
    assert driver.rejected == {}
    assert drawn_mj(driver) == 70_000 * (26 if counter else 55)


def test_an_engine_of_a_version_that_counts_less_goes_on() -> None:
    """It was rolled back: its new process never had the counter of cached tokens."""
    before = [engine(s, 100 * s) for s in range(31)]
    since_ms = START_MS + 30_500
    after = [engine(s, 100 * (s - 30), cached_input_tokens=None, epoch_ms=since_ms) for s in range(31, 61)]
    driver = metered(*(gpu(s, 100_000 * s) for s in range(61)), *before, *after)
    assert driver.rejected == {}
    assert sum(row["output_tokens"] for row in driver.rows(records.TOKENS)) == 6_000
    lost = metered(*before, *(engine(s, 100 * s, cached_input_tokens=None) for s in range(31, 61)))
    assert lost.rejected == {("engine", "counter_missing"): 30}


def test_a_row_of_years_ago_is_no_beginning() -> None:
    """A node whose clock was not set yet is in a partition's first rows: windows begin with those of now."""
    old = gpu(-10 * 365 * 86_400, 5, gpu_uuid="GPU-1", epoch_ms=None)
    driver = metered(old, *(gpu(s, 100_000 * s) for s in range(61)))
    assert driver.state.edge_ms == START_MS + 60_000
    assert sum(row["draw_mj"] for row in driver.rows(records.POWER)) == 6_000_000
    assert driver.folded is not None
    assert driver.folded.needed == {}


def test_what_a_forgotten_engine_did_is_nobody_elses() -> None:
    """It served for 40 s and is forgotten after a minute; a GPU of the next engine tells late what it did meanwhile."""
    driver = Driver(MeterStage(MeterConfig(forget_ms=60_000)))
    for s in range(230):
        rows: list[Any] = [engine(s, 100 * s)] if s < 40 else []
        if s >= 200:
            rows = [engine(s, 5, engine="n2:8000", node="n2", gpus=["GPU-1"])]
        driver.append([Message(topics.GPU, records.GPU, [gpu(s, 100 * s, has_process=True)])])
        driver.append([Message(topics.ENGINE, records.ENGINE, rows)])
        driver.fold(START_MS + 1000 * s + 10)
    late = [gpu(s, 100 * s, gpu_uuid="GPU-1", node="n2", has_process=True) for s in range(229)]
    driver.append([Message(topics.GPU, records.GPU, late)])
    for until_s in (230, 300):
        driver.fold(START_MS + 1000 * until_s)
    minutes = [row for row in driver.rows(records.GPU_MINUTE) if row["gpu_uuid"] == "GPU-1"]
    assert {row["state"] for row in minutes} == {"other", "idle_loaded", "dark"}
    assert {row["engine"] for row in driver.rows(records.TOKENS) if row["serving_mj"]} == {"n:8000"}


def test_states_of_a_gpu() -> None:
    """Tokens or running requests serve, a silent engine leaves the GPU dark, a foreign or forgotten process is other."""
    seconds = range(61)
    serving = [engine(s, 10 * s) for s in seconds]
    assert set(time_ms(metered(*(gpu(s, s) for s in seconds), *serving))) == {"serving"}
    running = [engine(s, 10, requests_running=1) for s in seconds]
    assert set(time_ms(metered(*(gpu(s, s) for s in seconds), *running))) == {"serving"}
    idle = [engine(s, 10) for s in seconds]
    assert set(time_ms(metered(*(gpu(s, s) for s in seconds), *idle))) == {"idle_loaded"}
    silent = [engine(s, 10) for s in range(21)]
    held = [gpu(s, s, has_process=True) for s in seconds]
    assert time_ms(metered(*held, *silent)) == {"idle_loaded": 20_000, "dark": 40_000}
    forgotten = metered(*held, *silent, config=MeterConfig(forget_ms=35_000))
    assert time_ms(forgotten) == {"idle_loaded": 20_000, "dark": 35_000, "other": 5_000}
    assert set(time_ms(metered(*held))) == {"other"}
    assert set(time_ms(metered(*(gpu(s, s) for s in seconds)))) == {"idle_free"}
    assert set(time_ms(metered(*(gpu(s, s, has_process=None) for s in seconds)))) == {"dark"}


def two_models(until_s: int, kind: str = "output_tokens") -> list[records.EngineRow]:
    """Of ten tokens that two servers make, or read, on one GPU nine are zeta's."""
    served = {"alpha": ("n:8000", 100), "zeta": ("n:8001", 900)}
    return [
        replace(engine(s, 0, engine=name, model_name=model), **{kind: per_s * s})
        for model, (name, per_s) in served.items()
        for s in range(until_s + 1)
    ]


def served_by(driver: Driver[Any]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """By model: GPU time, draw and headroom while it served."""
    rows = [row for row in driver.rows(records.POWER) if row["state"] == "serving"]
    return sums(rows, ("model_name",), ("gpu_ms", "draw_mj", "headroom_mj"))


@pytest.mark.parametrize("kind", ["output_tokens", "input_tokens"])
def test_models_on_one_gpu_bear_its_watts_by_their_tokens(kind: str) -> None:
    """Who makes nine tokens of ten has nine tenths of the GPU's time, draw and headroom; the GPU has them all.

    Where none makes any, who reads them.
    """
    driver = metered(*(gpu(s, 500_000 * s) for s in range(61)), *two_models(60, kind))
    alpha, zeta = (6_000, 3_000_000, 1_200_000), (54_000, 27_000_000, 10_800_000)
    assert served_by(driver) == {("alpha",): alpha, ("zeta",): zeta}
    minute = sums(driver.rows(records.GPU_MINUTE), ("state",), ("gpu_ms", "draw_mj", "headroom_mj"))
    assert minute["serving",] == (60_000, 30_000_000, 12_000_000)


def test_watts_that_come_after_their_tokens_are_shared_as_their_joules() -> None:
    """By the tokens that are booked with them: where a spool comes late there are none, and each model has half."""
    driver = metered(*(gpu(s, 0, gpu_uuid="GPU-1") for s in range(91)), *two_models(60))
    late = [gpu(s, 500_000 * s) for s in range(61)]
    driver.append([Message(topics.GPU, records.GPU, late)])
    for until_s in (120, 180):
        driver.fold(START_MS + until_s * 1000)
    half = (30_000, 15_000_000, 6_000_000)
    assert served_by(driver) == {("alpha",): half, ("zeta",): half}
    joules = sums(driver.rows(records.TOKENS), ("model_name",), ("serving_mj",))
    assert joules == {("alpha",): (15_000_000,), ("zeta",): (15_000_000,)}


@pytest.mark.parametrize(
    ("draw_mw", "burnt", "unused"), [(100_000, 15_000, 90_000), (20, 6, 105_000), (19, 0, 105_000)]
)
def test_lost_tokens_are_idle_joules_times_the_yardstick(draw_mw: int, burnt: int, unused: int) -> None:
    """60 s at 100 W and a limit of 700 W: 6 kJ burnt and 36 kJ unused, at 2.5 tokens per joule.

    Half a token in a window is one.
    """
    config = MeterConfig(yardsticks=(Yardstick(tokens_per_joule=2.5),))
    driver = metered(*(gpu(s, draw_mw * s) for s in range(61)), config=config)
    rows = driver.rows(records.POWER)
    assert sum(row["lost_tokens_draw"] for row in rows) == burnt
    assert sum(row["lost_tokens_headroom"] for row in rows) == unused
    assert driver.sample("idlewatt_lost_tokens_total", part="draw") == burnt
    assert driver.sample("idlewatt_yardstick_tokens_per_joule", origin="configured") == 2.5


def test_a_yield_is_learned_from_the_minutes_before() -> None:
    """A minute of serving at 4 tokens per joule is the yardstick of what idles afterwards; before, it is withheld."""
    rows: list[Any] = [gpu(s, 100_000 * s) for s in range(151)]
    rows += [engine(s, 400 * min(s, 60)) for s in range(151)]
    driver = metered(*rows, until_s=150)
    learned = driver.sample("idlewatt_yardstick_tokens_per_joule", origin="learned")
    assert learned == pytest.approx(4, rel=0.03)
    idle = [row for row in driver.rows(records.POWER) if row["state"] == "idle_loaded"]
    assert all(row["lost_tokens_draw"] == pytest.approx(4000, rel=0.03) for row in idle)
    early = metered(*rows[:40], *rows[151:191], until_s=30)
    assert early.sample("idlewatt_yardstick_tokens_per_joule") is None


def test_ratios_are_withheld_where_too_little_is_known() -> None:
    """Tokens per joule need coverage and tokens; coverage is told beside them."""
    whole = metered(*(gpu(s, 100_000 * s) for s in range(61)), *(engine(s, 50 * s) for s in range(61)))
    assert whole.sample("idlewatt_tokens_per_joule", window="1m", kind="output") == pytest.approx(0.5)
    assert whole.sample("idlewatt_coverage_ratio", window="1m", of="watts") == 1
    held = [gpu(s, 100_000 * s, has_process=True) for s in range(61)]
    half = metered(*held, *(engine(s, 50 * s) for s in range(31)))
    assert half.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(0.5)
    assert half.sample("idlewatt_tokens_per_joule", window="1m", kind="output") is None
    few = metered(*(gpu(s, 100_000 * s) for s in range(61)), *(engine(s, s) for s in range(61)))
    assert few.sample("idlewatt_tokens_per_joule", window="1m", kind="output") is None
    rows = [row for s in range(31) for row in (gpu(s, 100_000 * s), engine(s, 50 * s))]
    enough = metered(*rows, config=MeterConfig(coverage_floor=0.5, min_tokens=1500))
    assert enough.sample("idlewatt_tokens_per_joule", window="1m", kind="output") == pytest.approx(0.5)


def test_what_was_made_before_gpus_were_read_stands_over_no_joules() -> None:
    """Of an engine that was read for four minutes before its GPU the yield is that of the fifth; if it names it, too little."""
    gpus = [gpu(s, 100_000 * s, has_process=True) for s in range(240, 301)]
    engines = [engine(s, 50 * s, gpus=[]) for s in range(301)]
    unnamed = metered(*gpus, *engines, until_s=300)
    assert unnamed.sample("idlewatt_tokens_per_joule", window="5m", kind="output") == pytest.approx(0.5)
    assert unnamed.sample("idlewatt_tokens_total", kind="output") == 50 * 300
    # before the GPU is read, nobody knows that it will be
    engines = [replace(row, gpus=["GPU-0"]) for row in engines]
    named = metered(*engines[:241], until_s=220)
    named.append(
        [Message(topics.GPU, records.GPU, gpus), Message(topics.ENGINE, records.ENGINE, engines[241:])]
    )
    named.fold(START_MS + 300_000 + 2 * GRACE_MS)
    assert named.sample("idlewatt_coverage_ratio", window="5m", of="watts") == pytest.approx(1 / 5, abs=0.1)
    assert named.sample("idlewatt_tokens_per_joule", window="5m", kind="output") is None
    assert named.sample("idlewatt_tokens_per_joule", window="1m", kind="output") == pytest.approx(0.5)


def test_what_is_made_on_nodes_whose_gpus_nobody_reads_is_withheld() -> None:
    """Of engines that name no GPUs. What only embeds beside others is no such case: it may have no share in the joules."""

    def of_nodes(read: int, unread: int, *, output: int = 50) -> Driver[Any]:
        seconds, is_read = range(61), [n < read for n in range(read + unread)]
        return metered(
            *(
                gpu(s, 100_000 * s, gpu_uuid=f"GPU-{n}", node=f"n{n}", has_process=True)
                for s in seconds
                for n in range(read)
            ),
            *(
                engine(s, (50 if seen else output) * s, node=f"n{n}", engine=f"n{n}:8000", gpus=[])
                for s in seconds
                for n, seen in enumerate(is_read)
            ),
        )

    few = of_nodes(1, 9)
    assert few.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(0.1)
    assert few.sample("idlewatt_tokens_per_joule", window="1m", kind="output") is None
    assert few.sample("idlewatt_tokens_total", kind="output") == 10 * 50 * 60
    most = of_nodes(9, 1)
    assert most.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(0.9)
    # one that makes as much as the nine others
    large = of_nodes(9, 1, output=450)
    assert large.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(0.5)
    embedding = of_nodes(1, 9, output=0)
    assert embedding.sample("idlewatt_tokens_per_joule", window="1m", kind="output") == pytest.approx(0.5)


@pytest.mark.parametrize("is_named", [False, True])
def test_output_of_gpus_that_nobody_reads_is_not_thinned_by_what_others_make(is_named: bool) -> None:
    """Nineteen engines that only embed make most of the tokens and none of the output; chats stand beside a burst of batches."""

    def of_twenty(read: dict[str, int], unread: dict[str, int], *, burst_s: int = 300) -> Driver[Any]:
        rows: list[Any] = []
        for s in range(0, 301, 10):
            for n in range(19):
                rows.append(gpu(s, 100_000 * s, gpu_uuid=f"GPU-{n}", node=f"n{n}", has_process=True))
            for n in range(20):
                made = {
                    kind: per_s * (s if n < 19 else min(s, burst_s))
                    for kind, per_s in ({"output_tokens": 0} | (read if n < 19 else unread)).items()
                }
                gpus = [f"GPU-{n}"] if is_named else []
                rows.append(replace(engine(s, 0, node=f"n{n}", engine=f"n{n}:8000", gpus=gpus), **made))
        return metered(*rows, until_s=300)

    embeds = of_twenty({"input_tokens": 20_000}, {"output_tokens": 4_000, "input_tokens": 8_000})
    agents = {"output_tokens": 200, "input_tokens": 400, "cached_input_tokens": 16_000}
    reasons = of_twenty(agents, {"output_tokens": 2_500, "input_tokens": 1_000})
    # in one window of thirty as much as the others in all of them
    batches = of_twenty({"output_tokens": 10}, {"output_tokens": 5_700}, burst_s=10)
    for driver, share in ((embeds, 0), (reasons, 19 * 200 / (19 * 200 + 2_500)), (batches, 0.5)):
        found = driver.sample("idlewatt_coverage_ratio", window="5m", of="tokens")
        assert found == pytest.approx(share)
        assert driver.sample("idlewatt_tokens_per_joule", window="5m", kind="output") is None
    alike = of_twenty(agents, agents)
    # a few tokens of a kind that nobody else makes say nothing of the rest
    probed = of_twenty(
        {"input_tokens": 20_000, "output_tokens": 200}, agents | {"cached_input_tokens": 10}, burst_s=1
    )
    for driver in (alike, probed):
        assert driver.sample("idlewatt_tokens_per_joule", window="5m", kind="output") is not None


def test_a_server_that_counts_at_a_requests_end_is_judged_over_more_than_a_minute() -> None:
    """A minute is shorter than many requests, whose end would be a leap; no window of it is a yardstick."""
    driver = metered(
        *(gpu(s, 100_000 * s) for s in range(91)),
        *(engine(s, 50 * s, advance="request_end") for s in range(91)),
        until_s=90,
    )
    assert driver.sample("idlewatt_tokens_per_joule", window="1m", kind="output") is None
    assert driver.sample("idlewatt_tokens_per_joule", window="5m", kind="output") == pytest.approx(0.5)
    assert driver.sample("idlewatt_yardstick_tokens_per_joule") is None


@pytest.mark.parametrize(("until_s", "yielded"), [(3600, 1000 / 360_000), (3610, None)])
def test_an_hour_is_as_long_as_its_windows(until_s: int, yielded: float | None) -> None:
    """A thousand tokens in the first 10 s count until the window that ends an hour later, and not in the next."""
    rows = [row for s in range(0, 3611, 10) for row in (gpu(s, 100_000 * s), engine(s, min(s, 10) * 100))]
    hour = metered(*rows, until_s=until_s).sample("idlewatt_tokens_per_joule", window="1h", kind="output")
    assert hour == (pytest.approx(yielded) if yielded else None)


@pytest.mark.parametrize("read_at_once", [1, 7, 1000])
def test_a_reading_that_is_dropped_holds_up_none_that_follow(read_at_once: int) -> None:
    """Its output fell and its input is far ahead: those after it are held against the one before it, not against it."""
    rows = [engine(s, 50 * s, input_tokens=100 * s) for s in range(61)]
    rows[30] = engine(30, 7, input_tokens=10**9)
    driver = Driver(MeterStage(MeterConfig()))
    for start in range(0, 61, read_at_once):
        some = rows[start : start + read_at_once]
        driver.append([Message(topics.ENGINE, records.ENGINE, some)])
        driver.fold(some[-1].ts_ms)
    driver.fold(START_MS + 60_000 + 2 * GRACE_MS)
    driver.fold(START_MS + 60_000 + 2 * GRACE_MS)
    booked = driver.rows(records.TOKENS)
    assert [sum(row[kind] for row in booked) for kind in ("output_tokens", "input_tokens")] == [3000, 6000]
    assert driver.rejected == {("engine", "counter_decrease"): 1}


@pytest.mark.parametrize(("fallen_to", "gained"), [(1_000_000, 1_000_000), (1_000_001, 0), (999_999_000, 0)])
def test_a_fall_to_more_tokens_than_a_server_makes_is_no_reset(fallen_to: int, gained: int) -> None:
    """Of a counter without an epoch that says a billion: whichever of its kinds fell, or is as large."""
    for kind in TOKEN_COUNTS:
        before = [engine(s, 1, epoch_ms=None) for s in range(11)]
        before = [replace(row, **{kind: 10**9 + s}) for s, row in enumerate(before)]
        after = [
            replace(row, **{kind: fallen_to + s}, ts_ms=row.ts_ms + 11_000) for s, row in enumerate(before)
        ]
        booked = metered(*before, *after).rows(records.TOKENS)
        assert sum(row[kind] for row in booked) == 10 + gained + 10


def test_a_server_that_tells_its_epoch_now_may_count_less() -> None:
    """One of several processes without an epoch is started anew as one, of a version that knows no cached tokens."""
    before = [engine(s, 900 + s, cached_input_tokens=5, epoch_ms=None) for s in range(31)]
    after = [engine(s, s, cached_input_tokens=None, epoch_ms=START_MS + 50_000) for s in range(61, 121)]
    driver = metered(*before, *after, until_s=120)
    assert driver.rejected == {}
    assert sum(row["output_tokens"] for row in driver.rows(records.TOKENS)) == 30 + 120 - 61


@pytest.mark.parametrize("ahead_s", [90, 1800])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_clock_that_was_ahead_costs_no_later_server_its_tokens(ahead_s: int, at_once: bool) -> None:
    """It said that a server began after it was read; the one that really began after that is newer."""
    before = [engine(s, 900 + s, epoch_ms=START_MS + 1000 * ahead_s) for s in range(31)]
    after = [engine(s, 5 * s, epoch_ms=START_MS + 50_000, cached_input_tokens=None) for s in range(61, 121)]
    stopped = [gpu(s, 100 * s) for s in range(121)]
    if at_once:
        driver = metered(*before, *after, *stopped, until_s=120)
    else:
        driver = metered(*before, *stopped[:31])
        for row in after:
            driver.append([Message(topics.ENGINE, records.ENGINE, [row])])
            driver.fold(row.ts_ms)
        driver.fold(START_MS + 180_000)
    assert driver.rejected == {}
    assert sum(row["output_tokens"] for row in driver.rows(records.TOKENS)) == 30 + 5 * 120


def test_of_two_servers_behind_one_address_no_more_is_believed_if_their_clock_is_ahead() -> None:
    """Each says that it began later than it was read: the one that began first is refused, as with a clock that is right."""

    def answered(ahead_ms: int) -> list[Any]:
        began_ms = {0: START_MS - 40_000 + ahead_ms, 1: START_MS - 60_000 + ahead_ms}
        return [engine(s, 4000 + 2000 * (s % 2) + 100 * s, epoch_ms=began_ms[s % 2]) for s in range(121)]

    found = [metered(*answered(ahead_ms), until_s=120) for ahead_ms in (0, 600_000)]
    assert [driver.rejected for driver in found] == [{("engine", "stale_epoch"): 60}] * 2
    assert [sum(row["output_tokens"] for row in driver.rows(records.TOKENS)) for driver in found] == [
        12_000
    ] * 2


@pytest.mark.parametrize("named", [["GPU-1"], []])
def test_an_engine_that_has_stopped_is_missed_by_nobody(named: list[str]) -> None:
    """Scaled in, it leaves a GPU without a process; one that has a process, tells nothing of it or is not read may serve."""

    def left(has_process: bool | None, read_s: int = 121) -> Driver[Any]:
        rows: list[Any] = []
        for s in range(121):
            rows += [gpu(s, 100_000 * s), engine(s, 50 * s)]
            if s <= 30:
                rows.append(engine(s, 50 * s, engine="n:8001", node="m", gpus=named))
            if s < read_s:
                held = True if s < 35 else has_process
                rows.append(gpu(s, 100_000 * s, gpu_uuid="GPU-1", node="m", has_process=held))
        return metered(*rows, until_s=120)

    stopped = left(has_process=False)
    assert stopped.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == 1
    # 3000 tokens of the other one, over what both GPUs drew
    assert stopped.sample("idlewatt_tokens_per_joule", window="1m", kind="output") == pytest.approx(0.25)
    told = [row for row in stopped.rows(records.TOKENS) if row["engine"] == "n:8001" and row["silent_ms"]]
    # the ledger has the silence all the same
    assert sum(row["silent_ms"] for row in told) == 90_000
    assert [row["stopped"] for row in told] == [False] + [True] * 8
    for driver in (left(has_process=True), left(has_process=None), left(has_process=False, read_s=35)):
        assert driver.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(0.5)
        assert not any(row["stopped"] for row in driver.rows(records.TOKENS))


def test_an_engine_has_stopped_whoever_is_known_to_name_its_gpu_later() -> None:
    """Also where its successor is heard of before the windows close in which nobody was there."""
    rows: list[Any] = []
    for s in range(121):
        rows.append(gpu(s, 100_000 * s, has_process=s < 35 or s >= 85))
        if s <= 30:
            rows.append(engine(s, 50 * s, gpus=[]))
        if s >= 90:
            rows.append(engine(s, 50 * (s - 90), engine="n:8001", epoch_ms=START_MS + 86_000))
    told = [row for row in metered(*rows, until_s=120).rows(records.TOKENS) if row["stopped"]]
    assert {row["window_start_ms"] - START_MS for row in told} == {40_000, 50_000, 60_000, 70_000}
    assert {row["engine"] for row in told} == {"n:8000"}


def test_a_model_that_was_swapped_for_another_is_not_silent() -> None:
    """Its engine tells of the other one; when that falls silent too, or tells of one of two, coverage falls."""
    gpus = [gpu(s, 100_000 * s, has_process=True) for s in range(121)]
    swapped = [engine(s, 50 * s) for s in range(31)]
    swapped += [engine(s, 50 * (s - 30), model_name="other") for s in range(33, 121)]
    one = metered(*gpus, *swapped, until_s=120)
    assert one.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == 1
    assert one.sample("idlewatt_tokens_per_joule", window="1m", kind="output") == pytest.approx(0.5)
    # what the two were silent for while the engine started is told
    assert sum(row["silent_ms"] for row in one.rows(records.TOKENS)) == 90_000
    both = metered(*gpus, *swapped[:-30], until_s=120)
    assert both.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(1 / 2)
    # it has served both all the time, and one cannot be read any more
    two = [engine(s, 50 * s, model_name="other") for s in range(121)]
    left_out = metered(*gpus, *two, *swapped[:31], until_s=120)
    assert left_out.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(1 / 2)
    assert left_out.sample("idlewatt_tokens_per_joule", window="1m", kind="output") is None
    neighbour = [engine(s, 50 * s, engine="n:8001") for s in range(121)]
    beside = metered(*gpus, *neighbour, *swapped[:31], until_s=120)
    assert beside.sample("idlewatt_coverage_ratio", window="1m", of="tokens") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("glitch_mj", "believed_mj", "dark_ms"), [(250_000, 250_000, 1000), (5 * 10**12, 0, 2000)]
)
def test_one_false_reading_of_energy_books_nothing(glitch_mj: int, believed_mj: int, dark_ms: int) -> None:
    """Of a counter that says 900 MJ. A low one may be a reset; to get back from it is none, nor is a leap."""
    true = {s: 900_000_000_000 + 500_000 * s for s in range(61)}
    driver = metered(*(gpu(s, mj if s != 30 else glitch_mj, epoch_ms=None) for s, mj in true.items()))
    assert drawn_mj(driver) == 58 * 500_000 + believed_mj
    assert time_ms(driver) == {"idle_free": 60_000 - dark_ms, "dark": dark_ms}


def test_provisioned_watts_replace_the_limit() -> None:
    """What is set aside for a pool's GPUs is what is available."""
    config = MeterConfig(provisioned_mw={"p": 1_000_000})
    driver = metered(*(gpu(s, 100_000 * s) for s in range(61)), config=config)
    assert driver.sample("idlewatt_available_joules_total") == 60_000
