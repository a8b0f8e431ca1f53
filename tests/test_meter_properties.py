"""Whatever way readings travel, the meter's sums are those of the second computation in truth.py."""

import random
from dataclasses import replace
from typing import Any
from unittest import mock

import polars as pl
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from meter_fleets import START_MS, Fleet, delivery, fleets
from stage_driver import Driver, sums
from truth import Truth, truth

from idlewatt.processors.meter import classifying
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records

MINUTE_MS = 60_000
POWER_KEY = ("site", "pool", "window_start_ms", "product", "model_name", "state")
TOKEN_KEY = ("site", "pool", "window_start_ms", "node", "engine", "model_name")
MINUTE_KEY = ("site", "pool", "gpu_uuid", "minute_start_ms", "state")
WINDOW_KEY = ("site", "pool", "window_start_ms")
POWER_SUMS = ("gpu_ms", "draw_mj", "headroom_mj", "estimated_mj")
# unread_gpus and stopped do not add up, and are no part of the truth: test_meter_latecomers.py and test_meter_yardsticks.py
# tell what they are, also of what comes late
TOKEN_SUMS = (
    "output_tokens",
    "input_tokens",
    "cached_input_tokens",
    "serving_mj",
    "measured_ms",
    "silent_ms",
)
SEEDS = st.integers(0, 10**6)


def meter(fleet: Fleet) -> Driver[Any]:
    return Driver(MeterStage(fleet.config))


def live(driver: Driver[Any], fleet: Fleet, rng: random.Random, **how: Any) -> int:
    """Fold every message as it arrives, and nothing now and then; when the last one did."""
    arrivals = delivery(fleet, rng, **how)
    now_ms = arrivals[0].now_ms
    for arrival in arrivals:
        if arrival.began_ms > now_ms + fleet.config.grace_ms:
            driver.fold(arrival.began_ms - 1)
        driver.append(arrival.messages)
        driver.fold(arrival.now_ms)
        now_ms = arrival.now_ms
    return now_ms


def drain(driver: Driver[Any], fleet: Fleet, now_ms: int) -> int:
    """Let the clock run on until all that has come by `now_ms` is booked and its minutes are over; their end."""
    edge_ms = -(-now_ms // MINUTE_MS) * MINUTE_MS
    driver.fold(edge_ms + 2 * fleet.config.grace_ms + fleet.config.window_ms // 2)
    return edge_ms


def truth_of(fleet: Fleet, edge_ms: int) -> Truth:
    config = fleet.config
    return truth(
        fleet.gpu_rows,
        fleet.engine_rows,
        window_ms=config.window_ms,
        grace_ms=config.grace_ms,
        forget_ms=config.forget_ms,
        edge_ms=edge_ms,
        provisioned_mw=config.provisioned_mw,
    )


def assert_true(driver: Driver[Any], fleet: Fleet, edge_ms: int, *, late: bool = False) -> None:
    """Every sum of the ledger is the truth's, and everything measured is accounted for.

    `late`: what served is compared by pool and window only, for late joules are shared by themselves.
    """
    expected = truth_of(fleet, edge_ms)
    power = driver.rows(records.POWER)
    tokens = driver.rows(records.TOKENS)
    assert_shared_alike(power, tokens)
    told_power = _told(expected.power, POWER_KEY, POWER_SUMS)
    told = _told(expected.tokens, TOKEN_KEY, TOKEN_SUMS)
    if late:
        power, told_power = ([_unshared(row) for row in rows] for rows in (power, told_power))
    assert sums(power, POWER_KEY, POWER_SUMS) == sums(told_power, POWER_KEY, POWER_SUMS)
    by_engine = tuple(name for name in TOKEN_SUMS if not (late and name == "serving_mj"))
    assert sums(tokens, TOKEN_KEY, by_engine) == sums(told, TOKEN_KEY, by_engine)
    assert sums(tokens, WINDOW_KEY, ("serving_mj",)) == sums(told, WINDOW_KEY, ("serving_mj",))
    minutes = driver.rows(records.GPU_MINUTE)
    over = {key: row for key, row in expected.minutes.items() if key[3] + MINUTE_MS <= edge_ms}
    assert sums(minutes, MINUTE_KEY, ("gpu_ms", "draw_mj", "headroom_mj")) == _nonzero(over)
    assert_accounted(driver)


def assert_shared_alike(power: list[dict[str, Any]], tokens: list[dict[str, Any]]) -> None:
    """The joules that a model served with are the same among watts as beside its tokens, in every pool and window."""
    serving = [row for row in power if row["state"] == "serving"]
    key = (*WINDOW_KEY, "model_name")
    assert sums(serving, key, ("draw_mj",)) == sums(tokens, key, ("serving_mj",))


def _told(expected: Any, key: tuple[str, ...], of: tuple[str, ...]) -> list[dict[str, Any]]:
    """Sums of the truth as rows of the ledger."""
    return [dict(zip((*key, *of), (*names, *row), strict=True)) for names, row in expected.items()]


def _unshared(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "model_name": ""} if row["state"] == "serving" else row


def assert_accounted(driver: Driver[Any]) -> None:
    families = {f.name: f for f in driver.stage.families([driver.state])}
    rest = families["idlewatt_unaccounted_joules_total"].samples
    assert not [sample for sample in rest if sample.value]


def _nonzero(expected: dict[Any, list[int]]) -> dict[Any, tuple[int, ...]]:
    return {key: tuple(row) for key, row in expected.items() if any(row)}


@examples(6)
@given(fleets(), SEEDS)
def test_arrival_changes_no_sum(fleet: Fleet, seed: int) -> None:
    """Cutting, repeating and shuffling within a third of the grace gives the truth, once the clock has run on."""
    driver = meter(fleet)
    now_ms = live(driver, fleet, random.Random(seed), repeats=0)
    assert_true(driver, fleet, drain(driver, fleet, now_ms))


@examples(3)
@given(fleets(shared=True), SEEDS)
def test_models_on_one_gpu_share_its_watts(fleet: Fleet, seed: int) -> None:
    """What a GPU drew, had to spare and was there for while several models served is split as its joules are."""
    driver = meter(fleet)
    now_ms = live(driver, fleet, random.Random(seed), repeats=0)
    assert_true(driver, fleet, drain(driver, fleet, now_ms))


@examples(6)
@given(fleets(), SEEDS)
def test_sums_are_true_at_any_edge(fleet: Fleet, seed: int) -> None:
    """While readings still come, the windows that are closed already hold what the truth has up to their edge."""
    driver = meter(fleet)
    live(driver, fleet, random.Random(seed))
    edge_ms = (fleet.newest_ms - fleet.config.grace_ms) // fleet.config.window_ms * fleet.config.window_ms
    assert_true(driver, fleet, max(edge_ms, START_MS))


@examples(6)
@given(fleets(), SEEDS)
def test_crashes_change_no_sum(fleet: Fleet, seed: int) -> None:
    """Work that was not committed is done again: from any commit on, with topics read at any pace, sums are true."""
    rng = random.Random(seed)
    driver = meter(fleet)
    arrivals = delivery(fleet, rng)
    for arrival in arrivals:
        driver.append(arrival.messages)
    now_ms = arrivals[-1].now_ms
    driver.commit()
    # what one topic tells of the time before the other's first message is late
    driver.fold(now_ms, counts=dict.fromkeys(driver.log, 1))
    crashes = rng.randint(0, 5)
    largest = rng.choice([1, 3, 20])
    while any(driver.behind(topic) for topic in driver.log):
        driver.fold(now_ms, counts={topic: rng.randint(0, largest) for topic in driver.log})
        if rng.random() < 0.3:
            driver.commit()
        if crashes and rng.random() < 0.2:
            crashes -= 1
            driver.crash()
    edge_ms = drain(driver, fleet, now_ms)
    driver.commit()
    driver.crash()
    driver.fold(now_ms)
    assert_true(driver, fleet, edge_ms)


@examples(6)
@given(fleets(clean=True, overdraw=False), SEEDS)
def test_energy_and_time_are_conserved(fleet: Fleet, seed: int) -> None:
    """Draw adds up to the counters' differences, draw and headroom to limit x time, states to all the time there was."""
    driver = meter(fleet)
    edge_ms = drain(driver, fleet, live(driver, fleet, random.Random(seed)))
    minutes = sums(
        driver.rows(records.GPU_MINUTE),
        ("pool", "gpu_uuid"),
        ("gpu_ms", "draw_mj", "headroom_mj"),
    )
    for key, rows in _by_gpu(fleet).items():
        first, last = rows[0], rows[-1]
        gpu_ms, draw_mj, headroom_mj = minutes[key]
        assert gpu_ms == edge_ms - first.ts_ms
        assert draw_mj == (last.energy_mj or 0) - (first.energy_mj or 0)
        limit_mw = fleet.config.provisioned_mw.get(first.pool, first.power_limit_mw) or 0
        window_ms = fleet.config.window_ms
        whole, part_ms = divmod(first.ts_ms - START_MS // MINUTE_MS * MINUTE_MS, window_ms)
        windows = (edge_ms - START_MS // MINUTE_MS * MINUTE_MS) // window_ms - whole
        assert draw_mj + headroom_mj == windows * (limit_mw * window_ms // 1000) - limit_mw * part_ms // 1000


def _by_gpu(fleet: Fleet) -> dict[tuple[str, str], list[records.GpuRow]]:
    found: dict[tuple[str, str], list[records.GpuRow]] = {}
    for row in fleet.gpu_rows:
        found.setdefault((row.pool, row.gpu_uuid), []).append(row)
    return found


@examples(6)
@given(fleets(overdraw=False), SEEDS, st.sampled_from([0, 90_000, 600_000]))
def test_late_nodes_are_counted(fleet: Fleet, seed: int, late_ms: int) -> None:
    """What a node sends late is booked in its windows and states, as if it had come in time."""
    rng = random.Random(seed)
    nodes = sorted({row.node for row in fleet.rows})
    in_time = replace(fleet.gpu_rows[0], ts_ms=START_MS, node="in time", gpu_uuid="in time")
    fleet = replace(fleet, rows=(in_time, *fleet.rows))
    driver = meter(fleet)
    now_ms = live(driver, fleet, rng, late_ms={node: late_ms for node in nodes if rng.random() < 0.6})
    assert_true(driver, fleet, drain(driver, fleet, now_ms), late=True)


@examples(6)
@given(fleets(forget=True), SEEDS)
def test_forgetting_is_in_event_time(fleet: Fleet, seed: int) -> None:
    """When an entity is given up depends on its readings, not on how they travel."""
    driver = meter(fleet)
    now_ms = live(driver, fleet, random.Random(seed), repeats=0)
    assert_true(driver, fleet, drain(driver, fleet, now_ms))


@examples(3)
@given(fleets(), SEEDS)
def test_pieces_that_are_judged_by_themselves_are_judged_a_few_at_a_time(fleet: Fleet, seed: int) -> None:
    """However many readings a fold brings, memory is taken for so many of them and what engines did meanwhile."""
    heights = []

    def judge(pieces: pl.DataFrame, *others: pl.DataFrame) -> pl.DataFrame:
        heights.append(pieces.height)
        return piece_by_piece(pieces, *others)

    piece_by_piece = classifying._piece_by_piece
    with mock.patch.multiple(classifying, _PAIRS=7, _piece_by_piece=judge):
        driver = meter(fleet)
        now_ms = live(driver, fleet, random.Random(seed))
        assert_true(driver, fleet, drain(driver, fleet, now_ms))
    assert max(heights, default=0) <= 7
