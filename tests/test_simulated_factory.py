"""The simulated AI factory: what can be read there agrees with what really happened."""

import dataclasses
import math
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator

import polars as pl
import pytest
from meter_fleets import pack
from prometheus_client.parser import text_string_to_metric_families
from stage_driver import Driver

from idlewatt.collectors.simulated.building import build_simulated_sources
from idlewatt.collectors.simulated.clocked import ClockedFactory
from idlewatt.collectors.simulated.engine_model import MAX_WAITING
from idlewatt.collectors.simulated.engine_servers import EngineServers
from idlewatt.collectors.simulated.factory import Factory
from idlewatt.collectors.simulated.gateway import SimulatedGateway
from idlewatt.collectors.simulated.gpus import SimulatedGpus
from idlewatt.collectors.simulated.hall import SimulatedEngine
from idlewatt.collectors.simulated.outages import (
    ALL_OUTAGES,
    DRIVER_RELOAD,
    ENGINE_CRASH,
    GPUS_DARK,
    PAGE_HANGS,
    PAGE_MISSING,
    PAGE_REFUSES,
    STALL_MS,
)
from idlewatt.collectors.simulated.truth import HISTORY_MS, Truth
from idlewatt.collectors.source import Source
from idlewatt.processors.economy.usage import UsageState, fold_usage
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records
from idlewatt.stream.errors import SourceError
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.records import EngineRow, GpuRow, UsageRow
from idlewatt.stream.settings import Settings

START_MS = 1_800_000_000_000
STATES = {"serving", "idle_loaded", "idle_free", "other", "dark"}
NONE: frozenset[str] = frozenset()


class Hands:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def seconds(factory: Factory, count: int, step_ms: int = 1000) -> Iterator[int]:
    """Stand at the start, then move on `count` steps."""
    for i in range(count + 1):
        factory.advance(factory.start_ms + i * step_ms)
        yield factory.now_ms


def sight(factory: Factory) -> list[object]:
    """All that can be read now."""
    gpus = [
        (node.dark, group.has_process, gpu.uuid, gpu.energy_mj, gpu.epoch_ms, gpu.power_mw)
        for node in factory.nodes
        for group in node.groups
        for gpu in group.gpus
    ]
    engines = [
        (e.page, e.model.running, e.model.waiting, e.model.epoch_ms, e.model.counters.output_tokens)
        for e in factory.engines
    ]
    return [gpus, engines]


def ten_minutes(**options: object) -> Factory:
    factory = Factory(1, START_MS, tick_ms=1000, **options)  # type: ignore[arg-type]
    factory.advance(START_MS + 600_000)
    return factory


def test_same_seed_same_history_however_it_is_read() -> None:
    """The seed alone decides what happens: not how often somebody looks."""
    often, seldom = Factory(7, START_MS, outage_every_s=10), Factory(7, START_MS, outage_every_s=10)
    for _ in seconds(often, 900, 100):
        sight(often)
    seldom.advance(START_MS + 37_777)
    seldom.advance(START_MS + 90_000)
    assert sight(often) == sight(seldom)
    assert often.truth.power == seldom.truth.power
    assert often.truth.tokens == seldom.truth.tokens
    other = Factory(8, START_MS, outage_every_s=10)
    other.advance(START_MS + 90_000)
    assert sight(other) != sight(often)


def test_nothing_changes_between_ticks_or_backwards() -> None:
    """A factory stands still until its next tick is due, and never goes back."""
    factory = Factory(1, START_MS)
    factory.advance(START_MS + 5000)
    before = sight(factory)
    factory.advance(START_MS + 5099)
    factory.advance(START_MS)
    assert sight(factory) == before
    assert factory.now_ms == START_MS + 5000
    factory.advance(START_MS + 5100)
    assert sight(factory) != before


def test_the_default_plant_has_what_a_demo_shows() -> None:
    """At least 64 GPUs in 4 pools, two products, an idle pool, engines of 2 to 8 GPUs, some that name none."""
    factory = Factory(1, START_MS)
    groups = [group for node in factory.nodes for group in node.groups]
    uuids = [gpu.uuid for group in groups for gpu in group.gpus]
    assert len(uuids) == len(set(uuids)) >= 64
    assert len({node.pool for node in factory.nodes}) == 4
    assert len({node.product for node in factory.nodes}) == 2
    assert {sum(len(group.gpus) for group in node.groups) for node in factory.nodes} == {8}
    assert all(2 <= len(group.gpus) <= 8 for group in groups if group.engine)
    silent = [node for node in factory.nodes for engine in node.engines if not engine.gpus_told]
    # else nobody could tell which of its node's GPUs such an engine holds
    assert len(silent) == len(set(silent)) > 0
    assert not any(group.foreign_job for node in silent for group in node.groups)


@pytest.mark.parametrize("tick_ms", [100, 125, 1000])
def test_energy_counters_equal_the_truth(tick_ms: int) -> None:
    """The counters grow by power times time, and by the truth to the millijoule, at any tick."""
    factory = Factory(3, START_MS, tick_ms=tick_ms, outage_every_s=20, outages=ALL_OUTAGES - {DRIVER_RELOAD})
    gpus = [(node, gpu) for node in factory.nodes for group in node.groups for gpu in group.gpus]
    before = [gpu.energy_mj for _, gpu in gpus]
    drawn_uj = [0] * len(gpus)
    for _ in range(120_000 // tick_ms):
        for i, (_, gpu) in enumerate(gpus):
            drawn_uj[i] += gpu.power_mw * tick_ms
        factory.advance(factory.now_ms + tick_ms)
    grown: Counter[tuple[str, str]] = Counter()
    for (node, gpu), past_mj, uj in zip(gpus, before, drawn_uj, strict=True):
        assert past_mj > 0
        assert gpu.energy_mj - past_mj == uj // 1000
        grown[node.pool, node.product.name] += gpu.energy_mj - past_mj
    truth: Counter[tuple[str, str]] = Counter()
    for (pool, product, _, _), (_, draw_mj, _) in factory.truth.power.items():
        truth[pool, product] += draw_mj
    assert grown == truth


def test_energy_counters_equal_the_truth_epoch_by_epoch_over_driver_reloads() -> None:
    """A reload starts the counter at zero in a new epoch; old and new together hold every millijoule."""
    factory = Factory(3, START_MS, tick_ms=1000, outage_every_s=15, outages=frozenset({DRIVER_RELOAD}))
    gpus = [gpu for node in factory.nodes for group in node.groups for gpu in group.gpus]
    total = epochs = 0
    last: list[tuple[int, int, int]] = []
    for _ in seconds(factory, 300):
        seen = [(gpu.epoch_ms, gpu.energy_mj, gpu.power_mw) for gpu in gpus]
        for (epoch_ms, energy_mj, power_mw), (epoch_now_ms, energy_now_mj, _) in zip(
            last, seen, strict=False
        ):
            if epoch_now_ms == epoch_ms:
                assert energy_now_mj - energy_mj == power_mw  # one second of it
                total += energy_now_mj - energy_mj
            else:
                epochs += 1
                assert energy_now_mj == 0
                assert epoch_now_ms == factory.now_ms
                total += power_mw
        last = seen
    assert epochs >= 16
    assert total == sum(draw_mj for _, draw_mj, _ in factory.truth.power.values())


def test_token_counters_equal_the_truth_over_restarts() -> None:
    """Read as seldom as a dying process stalls, the counters tell every token of every process."""
    factory = Factory(
        5, START_MS, tick_ms=1000, outage_every_s=10, outages=frozenset({ENGINE_CRASH, DRIVER_RELOAD})
    )
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    last: dict[str, tuple[int, Counter[str]]] = {}
    restarts = 0
    for _ in seconds(factory, 200, STALL_MS):
        for engine in factory.engines:
            if engine.page is not None:
                continue
            c = engine.model.counters
            now = Counter(output=c.output_tokens, input=c.input_tokens, cached=c.cached_input_tokens)
            epoch_ms, before = last.get(engine.name, (engine.model.epoch_ms, now))
            if epoch_ms != engine.model.epoch_ms:
                restarts += 1
                before = Counter()
            counted[engine.name].update({kind: now[kind] - before[kind] for kind in now})
            last[engine.name] = engine.model.epoch_ms, now
    assert restarts > 10
    truth = {
        engine: Counter(output=output, input=computed, cached=cached)
        for (_, _, engine, _), (output, computed, cached) in factory.truth.tokens.items()
    }
    assert {name: tokens for name, tokens in counted.items() if tokens.total()} == truth
    assert all(tokens["output"] and tokens["input"] and tokens["cached"] for tokens in truth.values())


def test_states_partition_the_time() -> None:
    """In every window each GPU is in one state all the time, and draws no more than is available."""
    factory = ten_minutes(outage_every_s=30)
    gpus = Counter(node.pool for node in factory.nodes for group in node.groups for _ in group.gpus)
    limits = {node.product.name: node.product.limit_mw for node in factory.nodes}
    rows = factory.truth.rows(10_000)
    time: Counter[tuple[str, int]] = Counter()
    for row in rows:
        time[row.pool, row.window_start_ms] += row.gpu_ms
        assert row.site == "default"
        assert row.available_mj == row.gpu_ms * limits[row.product] // 1000
        assert 0 < row.draw_mj <= row.available_mj
        assert bool(row.model_name) == (row.state in ("serving", "idle_loaded"))
    windows = range(START_MS, START_MS + 600_000, 10_000)
    assert time == Counter({(pool, start): gpus[pool] * 10_000 for pool in gpus for start in windows})
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in factory.truth.rows(60_000):
        total = sums[row.pool, row.product, row.model_name, row.state]
        total[:] = (total[0] + row.gpu_ms, total[1] + row.draw_mj, total[2] + row.available_mj)
    assert sums == factory.truth.power


def test_ten_minutes_have_everything() -> None:
    """A default run of ten minutes shows all states, queues, idle engines in every asked pool, and outages."""
    factory = Factory(1, START_MS)
    factory.advance(START_MS + 600_000)
    assert {state for _, _, _, state in factory.truth.power} == STATES
    assert set(factory.truth.waiting_ms) == {"chat", "code", "agents"}
    for pool in ("chat", "code", "agents"):
        for state in ("serving", "idle_loaded"):
            time_ms = sum(
                row[0] for key, row in factory.truth.power.items() if (key[0], key[3]) == (pool, state)
            )
            assert time_ms > 600_000
    assert "serving" not in {state for pool, _, _, state in factory.truth.power if pool == "batch"}
    assert len(factory.truth.outages) >= 3
    waiting = factory.truth.waiting_rows(10_000)
    assert sum(row.waiting_ms for row in waiting) == sum(factory.truth.waiting_ms.values())
    assert all(0 < row.waiting_ms <= 10_000 for row in waiting)
    tokens = [sum(values) for values in zip(*factory.truth.tokens.values(), strict=True)]
    by_window = factory.truth.token_rows(10_000)
    assert tokens == [
        sum(row.output_tokens for row in by_window),
        sum(row.input_tokens for row in by_window),
        sum(row.cached_input_tokens for row in by_window),
    ]


def test_only_the_outages_asked_for_happen() -> None:
    """All kinds happen in time; with none allowed, nothing is ever dark, down or away."""
    assert {outage.kind for outage in ten_minutes(outage_every_s=15).truth.outages} == ALL_OUTAGES
    calm = Factory(1, START_MS, tick_ms=1000, outage_every_s=1, outages=NONE)
    for _ in seconds(calm, 300):
        assert not any(node.dark for node in calm.nodes)
        assert all(engine.page is None for engine in calm.engines)
    assert not calm.truth.outages


def test_power_stays_within_physics() -> None:
    """No GPU draws less than a bare idle one or more than its limit, and the states differ as they should."""
    factory = Factory(2, START_MS, outage_every_s=20)
    means: dict[tuple[str, str], list[int]] = defaultdict(list)
    for _ in seconds(factory, 240):
        for node in factory.nodes:
            for group in node.groups:
                for gpu in group.gpus:
                    assert 0.96 * node.product.bare_idle_mw <= gpu.power_mw <= node.product.limit_mw
                    means[node.product.name, group.state].append(gpu.power_mw)
    for product in {node.product.name for node in factory.nodes}:
        free, loaded, serving = (
            math.fsum(means[product, state]) / len(means[product, state])
            for state in ("idle_free", "idle_loaded", "serving")
        )
        assert free * 1.5 < loaded < serving / 2


def test_an_engine_serves_if_and_only_if_requests_run() -> None:
    """A second makes tokens if requests run when it begins, output tokens unless all of them are in prefill."""
    factory = Factory(4, START_MS, tick_ms=1000, outages=NONE)
    prefill_only = queued = 0
    last: list[tuple[int, int, int, int]] = []
    for _ in seconds(factory, 300):
        now = [
            (e.model.running, e.model.decoding, e.model.counters.output_tokens, e.model.counters.input_tokens)
            for e in factory.engines
        ]
        if last:
            for (running, decoding, output, computed), (_, _, output_now, computed_now) in zip(
                last, now, strict=True
            ):
                assert (output_now > output) == (decoding > 0)
                assert (output_now > output or computed_now > computed) == (running > 0)
                prefill_only += running > 0 and not decoding
        last = now
        queued = max(queued, *(engine.model.waiting for engine in factory.engines))
    assert prefill_only > 0
    assert 0 < queued <= MAX_WAITING


def test_the_factory_refuses_what_makes_no_factory() -> None:
    """A tick that crosses seconds and an unknown outage are errors that say what would be right."""
    with pytest.raises(ValueError, match="tick_ms must divide 1000"):
        Factory(1, START_MS, tick_ms=300)
    with pytest.raises(ValueError, match=r"no outage is called .*earthquake.*engine_crash"):
        Factory(1, START_MS, outages=frozenset({"earthquake"}))
    with pytest.raises(ValueError, match="multiple of 1000"):
        Factory(1, START_MS).truth.rows(1500)


def test_truth_forgets_whole_windows_but_no_sums() -> None:
    """After two hours old windows go, never in part; the totals stay."""
    truth = Truth("s")
    for i in range(HISTORY_MS // 1000 + 100):
        truth.add_power(START_MS + i * 1000, ("p", "h", "", "other"), 1000, 5, 7)
    rows = truth.rows(60_000)
    assert {row.gpu_ms for row in rows[:-1]} == {60_000}
    assert START_MS < rows[0].window_start_ms < START_MS + 180_000
    assert truth.power == {("p", "h", "", "other"): [7_300_000, 36_500, 51_100]}


@pytest.fixture
def served() -> Iterator[tuple[Hands, Factory, EngineServers]]:
    """A factory with many page outages and its servers."""
    clock = Hands()
    factory = Factory(
        1,
        START_MS,
        tick_ms=1000,
        outage_every_s=5,
        outages=frozenset({ENGINE_CRASH, PAGE_REFUSES, PAGE_HANGS, PAGE_MISSING}),
    )
    servers = EngineServers(ClockedFactory(factory, clock))
    yield clock, factory, servers
    servers.close()


def fetch(url: str, timeout_s: float = 5) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=timeout_s) as response:
        return response.headers["Content-Type"], response.read().decode()


def until(clock: Hands, factory: Factory, wrong: str | None, *, up: bool = True) -> SimulatedEngine:
    """Let time pass until some engine's page is in that condition."""
    for _ in range(2000):
        clock.now_ms += 1000
        factory.advance(clock.now_ms)
        for engine in factory.engines:
            if engine.page == wrong and engine.model.up == up and (wrong or engine.model.waiting):
                return engine
    raise AssertionError(f"no page was ever {wrong}")


def test_pages_are_real_vllm_pages(served: tuple[Hands, Factory, EngineServers]) -> None:
    """A page parses as Prometheus text, has vLLM's names, labels and traps, and tells the engine's figures."""
    clock, factory, servers = served
    engine = until(clock, factory, None)
    content_type, body = fetch(servers.urls[engine.name])
    assert content_type.startswith("text/plain; version=0.0.4")
    assert len(body.splitlines()) > 100
    families = {family.name: family for family in text_string_to_metric_families(body)}
    samples = {
        (sample.name, sample.labels.get("source") or sample.labels.get("finished_reason")): sample
        for family in families.values()
        for sample in family.samples
        if "le" not in sample.labels
    }
    counters = engine.model.counters
    prompt = counters.input_tokens + counters.cached_input_tokens
    assert counters.output_tokens > 10**6
    for name, label, value in (
        ("vllm:generation_tokens_total", None, counters.output_tokens),
        ("vllm:prompt_tokens_total", None, prompt),
        ("vllm:prompt_tokens_cached_total", None, counters.cached_input_tokens),
        ("vllm:prompt_tokens_by_source_total", "local_compute", counters.input_tokens),
        ("vllm:prompt_tokens_by_source_total", "local_cache_hit", counters.cached_input_tokens),
        ("vllm:prompt_tokens_by_source_total", "external_kv_transfer", 0),
        ("vllm:num_requests_running", None, engine.model.running),
        ("vllm:num_requests_waiting", None, engine.model.waiting),
        ("vllm:request_success_total", "stop", counters.stopped),
    ):
        sample = samples[name, label]
        assert sample.value == value, name
        assert (sample.labels["engine"], sample.labels["model_name"]) == ("0", engine.model_name)
    started_s = engine.model.epoch_ms / 1000
    assert samples["process_start_time_seconds", None].value == started_s
    assert samples["vllm:generation_tokens_created", None].value == started_s
    assert 0 < samples["vllm:kv_cache_usage_perc", None].value <= 1
    trap = families["vllm:iteration_tokens_total"]
    assert trap.type == "histogram"
    steps = [s.value for s in trap.samples if s.name.endswith("_bucket")]
    assert steps == sorted(steps)
    assert steps[-1] == samples["vllm:iteration_tokens_total_count", None].value > 0
    work = counters.output_tokens + counters.input_tokens
    assert samples["vllm:iteration_tokens_total_sum", None].value == pytest.approx(work, rel=1e-9)


def test_pages_fail_as_real_ones_do(served: tuple[Hands, Factory, EngineServers]) -> None:
    """A page closes the connection, hangs or is missing during its outage, and answers again afterwards."""
    clock, factory, servers = served
    url = servers.urls[until(clock, factory, PAGE_MISSING).name]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(url)
    with pytest.raises(TimeoutError):
        fetch(servers.urls[until(clock, factory, PAGE_HANGS).name], timeout_s=0.3)
    for up in (True, False):
        engine = until(clock, factory, PAGE_REFUSES, up=up)
        with pytest.raises(ConnectionError):
            fetch(servers.urls[engine.name])
    while engine.page is not None:
        clock.now_ms += 1000
        factory.advance(clock.now_ms)
    families = text_string_to_metric_families(fetch(servers.urls[engine.name])[1])
    (started,) = (family for family in families if family.name == "process_start_time_seconds")
    assert started.samples[0].value * 1000 == engine.model.epoch_ms > START_MS
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(servers.urls[engine.name].replace("/metrics", "/health"))


def test_a_dark_node_is_unreachable_and_its_joules_come_back() -> None:
    """While a node is dark its GPUs cannot be read; what they drew meanwhile is in their counters afterwards."""
    clock = Hands()
    factory = Factory(1, START_MS, tick_ms=1000, outage_every_s=5, outages=frozenset({GPUS_DARK}))
    while not any(node.dark for node in factory.nodes):
        clock.now_ms += 1000
        factory.advance(clock.now_ms)
    node = next(node for node in factory.nodes if node.dark)
    source = SimulatedGpus(ClockedFactory(factory, clock), node, interval_s=1)
    gpus = [gpu for group in node.groups for gpu in group.gpus]
    expected = {gpu.uuid: gpu.energy_mj for gpu in gpus}
    dark_s = 0
    while node.dark:
        with pytest.raises(SourceError, match=node.name) as caught:
            source.read()
        assert caught.value.reason == "unreachable"
        dark_s += 1
        for gpu in gpus:
            expected[gpu.uuid] += gpu.power_mw
        clock.now_ms += 1000
        factory.advance(clock.now_ms)
    rows = [row for row in source.read().rows if isinstance(row, GpuRow)]
    assert dark_s >= 15
    assert {row.gpu_uuid: row.energy_mj for row in rows} == expected
    assert {(row.ts_ms, row.epoch_ms) for row in rows} == {(clock.now_ms, gpus[0].epoch_ms)}
    assert any(state == "dark" for _, _, _, state in factory.truth.power)


def test_the_sources_read_the_truth_through_real_http() -> None:
    """Driven second by second, the sources' rows add up to the truth's joules, tokens and states exactly."""
    clock = Hands()
    settings = Settings.model_validate({"site": "hall"})
    factory = Factory(6, START_MS, site="hall", tick_ms=1000, day_s=30, outages=NONE)
    sources, close = build_simulated_sources(settings, clock, factory)
    assert len({source.name for source in sources}) == len(sources)
    assert len(sources) == len(factory.nodes) + len(factory.engines) + 1
    before: dict[str, GpuRow | EngineRow] = {}
    spent: dict[tuple[str | None, ...], UsageRow] = {}
    joules: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    serving_ms: Counter[str] = Counter()
    told: dict[str, bool] = {}
    try:
        for _ in range(31):
            for source in sources:
                (*rows,) = source.read().rows
                for row in rows:
                    assert (row.ts_ms, row.site) == (clock.now_ms, "hall")
                    if isinstance(row, UsageRow):
                        spent[row.model_name, row.team, row.engineer, row.agent_family, row.tier] = row
                        continue
                    key = row.gpu_uuid if isinstance(row, GpuRow) else row.engine
                    past = before.get(key, row)
                    before[key] = row
                    assert past.epoch_ms == row.epoch_ms
                    if isinstance(row, GpuRow) and isinstance(past, GpuRow):
                        joules[row.pool] += (row.energy_mj or 0) - (past.energy_mj or 0)
                    elif isinstance(row, EngineRow) and isinstance(past, EngineRow):
                        tokens["output"] += row.output_tokens - past.output_tokens
                        tokens["input"] += (row.input_tokens or 0) - (past.input_tokens or 0)
                        tokens["cached"] += (row.cached_input_tokens or 0) - (past.cached_input_tokens or 0)
                        serving_ms[row.engine] += 1000 if past is not row and past.requests_running else 0
                        told[row.engine] = bool(row.gpus)
            clock.now_ms += 1000
        # a reading after the last does not move time beyond it
        assert factory.now_ms == clock.now_ms - 1000
    finally:
        close()
        for source in sources:
            source.close()
    drawn: Counter[str] = Counter()
    for (pool, _, _, _), (_, draw_mj, _) in factory.truth.power.items():
        drawn[pool] += draw_mj
    assert joules == drawn
    made = [sum(values) for values in zip(*factory.truth.tokens.values(), strict=True)]
    assert [tokens["output"], tokens["input"], tokens["cached"]] == made
    known = sum(amounts[0] for key, amounts in factory.truth.usage.items() if any(key[:-1]))
    assert sum(row.output_tokens for row in spent.values()) == known < made[0]
    held = {g.engine.name: len(g.gpus) for n in factory.nodes for g in n.groups if g.engine}
    assert sum(serving_ms[name] * count for name, count in held.items()) == sum(
        row[0] for key, row in factory.truth.power.items() if key[3] == "serving"
    )
    assert set(told.values()) == {True, False}


def test_the_settings_make_the_factory() -> None:
    """Seed, site and names come from settings and plant; a factory of another site is refused."""
    clock = Hands()
    settings = Settings.model_validate(
        {"site": "hall", "simulate": {"seed": 9}, "collect": {"gpu_interval_s": 2}}
    )
    sources, close = build_simulated_sources(settings, clock)
    try:
        rows = [row for source in sources for row in source.read().rows if not isinstance(row, UsageRow)]
        uuids = [row.gpu_uuid for row in rows if isinstance(row, GpuRow)]
        assert uuids == [g.uuid for n in Factory(9, START_MS).nodes for group in n.groups for g in group.gpus]
        assert {row.pool for row in rows} == {"chat", "code", "agents", "batch"}
        assert {row.site for row in rows} == {"hall"}
        assert {source.interval_s for source in sources} == {1.0, 2.0, 15.0}
    finally:
        close()
    with pytest.raises(ValueError, match=r"'elsewhere'.*'hall'"):
        build_simulated_sources(settings, clock, Factory(1, START_MS, site="elsewhere"))


def test_started_again_on_the_same_log_all_is_metered() -> None:
    """What restarted in an outage restarts with the factory: nothing is refused, and each joule and token counts once."""
    clock = Hands()
    settings = Settings.model_validate(
        {"collect": {"gpu": "simulated", "timeout_s": 0.1}, "simulate": {"outage_every_s": 4}}
    )
    meter = Driver(MeterStage(MeterConfig()))
    past: dict[str, GpuRow | EngineRow] = {}
    gained: Counter[type[GpuRow | EngineRow]] = Counter()
    for length_s in (90, 30):
        sources, close = build_simulated_sources(settings, clock)
        try:
            for _ in range(0, length_s + 1, 5):
                rows = [row for source in sources for row in rows_of(source)]
                for row in rows:
                    key, count = (
                        (row.gpu_uuid, row.energy_mj)
                        if isinstance(row, GpuRow)
                        else (row.engine, row.output_tokens)
                    )
                    before = past.get(key, row)
                    last = before.energy_mj if isinstance(before, GpuRow) else before.output_tokens
                    gained[type(row)] += count - last if before.epoch_ms == row.epoch_ms else count
                    past[key] = row
                meter.append(pack(rows))
                meter.fold(clock.now_ms)
                clock.now_ms += 5000
        finally:
            close()
            for source in sources:
                source.close()
        clock.now_ms += 25_000
    meter.fold(clock.now_ms)
    assert meter.rejected == {}
    assert sum(row["draw_mj"] for row in meter.rows(records.POWER)) == gained[GpuRow] > 0
    assert sum(row["output_tokens"] for row in meter.rows(records.TOKENS)) == gained[EngineRow] > 0


def rows_of(source: Source) -> list[GpuRow | EngineRow]:
    try:
        return [row for row in source.read().rows if isinstance(row, GpuRow | EngineRow)]
    except SourceError:
        return []


def test_consumers_spend_what_the_engines_make() -> None:
    """Every token of an engine was asked for by somebody, in every second; a known share of them by nobody known."""
    factory = Factory(1, START_MS, tick_ms=1000, outage_every_s=20)
    factory.advance(START_MS + 1_200_000)
    made: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    spent: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for told, rows in ((made, factory.truth.token_rows(1000)), (spent, factory.truth.usage_rows(1000))):
        for row in rows:
            for kind in ("output_tokens", "input_tokens", "cached_input_tokens"):
                told[row.window_start_ms, row.model_name][kind] += getattr(row, kind)
    assert {key: +tokens for key, tokens in spent.items() if +tokens} == made
    usage = factory.truth.usage
    for position, least in enumerate((3, 6, 4, 4, 3)):  # functions, teams, agent families, engineers, tiers
        assert len({key[position] for key, amounts in usage.items() if key[position] and amounts[0]}) >= least
    unknown = sum(amounts[0] for key, amounts in usage.items() if not any(key[:-1]))
    assert 0.03 < unknown / sum(amounts[0] for amounts in usage.values()) < 0.1


def test_consumers_change_nothing_else_and_begin_at_zero() -> None:
    """The gateway tells every counter from its start on, so that none loses what it counts before it is first read."""
    clock = Hands()
    factory = Factory(1, START_MS, site="hall", tick_ms=1000)
    sources, close = build_simulated_sources(Settings.model_validate({"site": "hall"}), clock, factory)
    try:
        [gateway] = [source for source in sources if source.name == "simulated-gateway"]
        names = []
        for _ in range(2):
            rows = [row for row in gateway.read().rows if isinstance(row, UsageRow)]
            names.append(
                {(row.model_name, row.team, row.engineer, row.agent_family, row.tier) for row in rows}
            )
            assert any(row.output_tokens for row in rows) == (clock.now_ms > START_MS)
            clock.now_ms += 600_000
        assert names[0] == names[1]
        assert len(names[0]) == len(rows) >= 20
    finally:
        close()


def test_the_economy_counts_what_consumers_spent() -> None:
    """Read every few seconds, the minutes of usage add up to the truth to the token."""
    clock = Hands()
    factory = Factory(2, START_MS, site="hall", tick_ms=1000, outage_every_s=20)
    gateway = SimulatedGateway(ClockedFactory(factory, clock), interval_s=5)
    state, minutes = UsageState.empty(), []
    for _ in range(60):
        told = [dataclasses.astuple(row) for row in gateway.read().rows]
        rows = pl.DataFrame(told, schema=frame_schema(records.USAGE), orient="row")
        usage = fold_usage(state, rows, clock.now_ms)
        state = usage.state
        minutes.append(usage.minutes)
        assert not usage.rejected
        clock.now_ms += 5000
    names = ("function", "team", "agent_family", "engineer", "tier", "model_name")
    kinds = ("output_tokens", "input_tokens", "cached_input_tokens")
    sums = pl.concat(minutes).group_by(names).agg(pl.col(*kinds).sum())
    spent = {key[:6]: list(key[6:]) for key in sums.select(*names, *kinds).iter_rows()}
    known = {key: amounts for key, amounts in factory.truth.usage.items() if any(key[:-1]) and any(amounts)}
    assert spent == known
