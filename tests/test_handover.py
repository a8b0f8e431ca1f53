"""Partitions handed from processor to processor while a real Prometheus looks on: nothing is lost, nothing doubled."""

import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from chaos_books import compare_ledger, metered, read_ledger, read_money, read_raw
from chaos_scene import PROVISIONED
from idlewatt_command import Serving, serving, wait_until
from kafka_broker import KafkaBroker
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import PrometheusServer

from idlewatt.dashboards.provisioning import prometheus_yaml
from idlewatt.stream import metric_names as names
from idlewatt.stream import records
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.prometheus, pytest.mark.timeout(420)]

WINDOW_S: Final = 2
SESSION_S: Final = 6
POOLS: Final = 4
HEAL_S: Final = 60.0
BOOK: Final = '[[price]]\nmodel = "*"\noutput = 1.0\ninput = 0.2\ncached_input = 0.02\n'
# as settings take it from the environment
KNOWN_POOLS: Final = (
    "{"
    + ", ".join(
        f"{pool}.{key} = {value}" for pool, known in PROVISIONED.items() for key, value in known.items()
    )
    + "}"
)
COUNTERS: Final = [m for m in names.METRICS if m.kind == "counter" and m.stage in ("meter", "economy")]
Key = tuple[str, ...]


@dataclass
class Watched:
    """What is left to look at when the last handover is over."""

    settings: Settings
    prometheus: PrometheusServer
    # the processor that is left
    last: Serving
    # Unix seconds between which it all happened
    since_s: float
    until_s: float
    # windows before it are closed, and all that was read of them has arrived
    edge_ms: int

    def over(self, what: str) -> str:
        """A range of what Prometheus saw."""
        return what.replace("RANGE", f"{self.until_s - self.since_s:.0f}s")

    def by(self, expr: str, labels: tuple[str, ...]) -> dict[Key, float]:
        found = self.prometheus.query(self.over(expr), self.until_s)
        return {tuple(sample.labels.get(label, "") for label in labels): sample.value for sample in found}


class Stage:
    """The processes, by name; each has a port of its own for good."""

    def __init__(self, folder: Path, settings: Settings, book: Path, running: ExitStack) -> None:
        self._folder = folder
        self._running = running
        self._env = {
            "IDLEWATT_LOG__KIND": "kafka",
            "IDLEWATT_LOG__BOOTSTRAP_SERVERS": settings.log.bootstrap_servers,
            "IDLEWATT_LOG__SESSION_TIMEOUT_S": str(SESSION_S),
            "IDLEWATT_PROCESS__GROUP": settings.process.group,
            "IDLEWATT_PROCESS__WINDOW_S": str(WINDOW_S),
            "IDLEWATT_PROCESS__GRACE_S": str(settings.process.grace_s),
            "IDLEWATT_PROCESS__YARDSTICK": "[{tokens_per_joule = 2.0}]",
            "IDLEWATT_PROCESS__POOL": KNOWN_POOLS,
            "IDLEWATT_ECONOMY__BOOK": str(book),
            "IDLEWATT_COLLECT__GPU": "simulated",
            "IDLEWATT_COLLECT__SPOOL_PATH": str(folder / "spool"),
            "IDLEWATT_SIMULATE__OUTAGE_EVERY_S": "86400",
        }
        self.ports = {name: _free_port() for name in ("a", "b", "c")}

    def start(self, name: str, command: str = "process") -> Serving:
        env = self._env | {"IDLEWATT_PORT": str(self.ports.get(name, 0))}
        process = serving(command, log=self._folder / f"{name}.log", env=env)
        return self._running.enter_context(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def watched(
    kafka_session: KafkaBroker, prometheus_tools: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """One processor is killed, one comes, one hangs until it is given up and wakes, one leaves in good order."""
    folder = tmp_path_factory.mktemp("handover")
    book = folder / "book.toml"
    book.write_text(BOOK)
    settings = kafka_session.settings(
        log={"session_timeout_s": SESSION_S},
        process={"window_s": WINDOW_S, "grace_s": 4, "pool": PROVISIONED},
    )
    kafka_session.fresh_topics(settings)
    with ExitStack() as running:
        stage = Stage(folder, settings, book, running)
        a, b = stage.start("a"), stage.start("b")
        collector = stage.start("collector", "collect")
        targets = [f"127.0.0.1:{port}" for port in stage.ports.values()]
        prometheus = PrometheusServer(folder / "prometheus", prometheus_yaml(targets, None, (), "1s"), {})
        running.callback(prometheus.stop)

        def ends_s() -> list[float]:
            return [s.value for s in prometheus.query(f"{names.WINDOW_END.name}")]

        def all_go_on(since_s: float) -> Callable[[], bool]:
            return lambda: len(ends := ends_s()) == POOLS and min(ends) > since_s + WINDOW_S

        def serves(port_of: str) -> bool:
            target = f'instance="127.0.0.1:{stage.ports[port_of]}"'
            return bool(prometheus.query(f"{names.EVENT_TIME_LAG.name}{{{target}}}"))

        wait_until(lambda: serves("a") and serves("b"), "both have partitions", HEAL_S)
        wait_until(all_go_on(time.time()), "every pool has figures", HEAL_S)
        since_s = time.time()
        a.process.kill()
        wait_until(all_go_on(time.time()), "the other has taken over from the dead one", HEAL_S)
        c = stage.start("c")
        wait_until(lambda: serves("c"), "the new one has partitions", HEAL_S)
        b.process.send_signal(signal.SIGSTOP)
        time.sleep(SESSION_S + 2)
        frozen_until_s = time.time()
        b.process.send_signal(signal.SIGCONT)
        wait_until(all_go_on(frozen_until_s), "the new one has taken over from the one that hung", HEAL_S)
        wait_until(lambda: serves("b"), "the one that hung has partitions again", HEAL_S)
        assert b.stop()[0] == 0
        wait_until(all_go_on(time.time()), "the new one has all", HEAL_S)
        until_s = time.time()
        assert collector.stop()[0] == 0
        edge_ms = (read_raw(settings, unix_ms()).newest_ms // (WINDOW_S * 1000) + 1) * WINDOW_S * 1000
        wait_until(all_go_on(edge_ms / 1000), "the last windows are closed", HEAL_S)
        yield Watched(settings, prometheus, c, since_s, until_s, edge_ms)


def test_the_ledger_is_the_truth(watched: Watched) -> None:
    """Every joule, token and second of the raw rows is booked once, whoever had its partition."""
    ledger, _ = read_ledger(watched.settings)
    true = metered(read_raw(watched.settings, unix_ms()), watched.settings, watched.edge_ms)
    decide, _ = compare_ledger(ledger, true, watched.edge_ms)
    assert sum(difference.compared for difference in decide) > 500
    assert {difference.what: difference.found for difference in decide if difference.found} == {}


def test_no_counter_steps_back_or_begins_anew(watched: Watched) -> None:
    """Each counter is one series without an instance from the first processor to the last."""
    seen = 0
    for metric in COUNTERS:
        resets = watched.by(f"resets({metric.name}[RANGE])", metric.labels)
        assert set(resets.values()) <= {0.0}, metric.name
        series = watched.prometheus.query(watched.over(f"{metric.name}"), watched.until_s)
        assert len(series) == len({tuple(s.labels.get(label, "") for label in metric.labels) for s in series})
        assert all("instance" not in sample.labels for sample in series)
        seen += len(series)
    assert seen > 100


def test_the_counters_end_where_the_books_do(watched: Watched) -> None:
    """What the last processor shows is the sum of the ledger and of the money, to the millijoule and the micro-unit."""

    def differing() -> dict[str, dict[Key, tuple[int, int]]]:
        page = _counters(watched.last)
        found = {}
        for metric, where, labels, factor, rows in _booked(watched.settings):
            shown = {
                key: round(value * factor) for key, value in _summed(page, metric, where, labels).items()
            }
            true = {key: sum(by_window.values()) for key, by_window in rows.items()}
            found[f"{metric.name} {where}"] = {
                key: (shown.get(key, 0), true.get(key, 0))
                for key in shown.keys() | true.keys()
                if shown.get(key, 0) != true.get(key, 0)
                # on a busy machine a row comes late, and takes dark time back: counters wait, for they may not fall
                and not ("dark" in key and shown.get(key, 0) > true.get(key, 0))
            }
        return {name: keys for name, keys in found.items() if keys}

    # the economy is a moment behind the meter, and the page behind both
    deadline = time.monotonic() + HEAL_S
    while (left := differing()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == {}


def test_increase_is_what_was_counted_within_a_window(watched: Watched) -> None:
    """increase() of each counter over all the handovers is what it gained, but for the edges of the range."""
    compared = 0
    for metric, where, labels, factor, rows in _booked(watched.settings):
        series = metric.name + "{" + ",".join(f'{name}="{value}"' for name, value in where.items()) + "}"
        by = f"sum by ({', '.join(labels)})"
        increase = watched.by(f"{by} (increase({series}[RANGE]))", labels)
        # counters only grow: the first and the last of the range
        gained = watched.by(f"{by} (max_over_time({series}[RANGE]) - min_over_time({series}[RANGE]))", labels)
        for key, by_window in rows.items():
            most = max(by_window.values()) / factor
            assert abs(increase.get(key, 0.0) - gained.get(key, 0.0)) <= most + 1e-6, (metric.name, key)
            compared += gained.get(key, 0.0) > 2 * most
    assert compared > 30, "too little happened: the test shows nothing"


def _booked(
    settings: Settings,
) -> Iterator[tuple[names.Metric, dict[str, str], tuple[str, ...], int, dict[Key, dict[int, int]]]]:
    """Per counter: metric, which of its series, their labels, how many of the books' units are one of the metric's, and the books."""
    ledger, _ = read_ledger(settings)
    power = [row for name, row in ledger if name == records.POWER.name]
    tokens = [row for name, row in ledger if name == records.TOKENS.name]
    money = read_money(settings)
    pool = ("site", "pool")
    state = (*pool, "state")
    yield names.ENERGY, {"scope": "it"}, state, 1000, _by_window(power, state, lambda r: r["draw_mj"])
    yield names.HEADROOM, {}, state, 1000, _by_window(power, state, lambda r: r["headroom_mj"])
    yield names.AVAILABLE, {}, pool, 1000, _by_window(power, pool, lambda r: r["draw_mj"] + r["headroom_mj"])
    by_product = (*state, "product")
    yield names.GPU_SECONDS, {}, by_product, 1000, _by_window(power, by_product, lambda r: r["gpu_ms"])
    for kind in ("output", "input", "cached_input"):
        model = (*pool, "model_name")
        yield (
            names.TOKENS,
            {"kind": kind},
            model,
            1,
            _by_window(tokens, model, lambda r, of=f"{kind}_tokens": r[of]),
        )
    for metric, kind in (
        (names.REVENUE, "revenue"),
        (names.LOST_REVENUE, "lost_revenue"),
        (names.BENCHMARK_LOST_REVENUE, "benchmark_lost_revenue"),
    ):
        rows = [row for row in money if row["kind"] == kind]
        yield metric, {}, pool, 1_000_000, _by_window(rows, pool, lambda r: r["amount_micro"])


def _counters(process: Serving) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(process.page())
        if family.type == "counter"
        for sample in family.samples
    ]


def _summed(
    page: list[tuple[str, dict[str, str], float]],
    metric: names.Metric,
    where: Mapping[str, str],
    labels: tuple[str, ...],
) -> dict[Key, float]:
    found: dict[Key, float] = defaultdict(float)
    for name, tags, value in page:
        if name == metric.name and where.items() <= tags.items():
            found[tuple(tags.get(label, "") for label in labels)] += value
    return found


def _by_window(
    rows: list[Mapping[str, Any]], labels: tuple[str, ...], amount: Callable[[Mapping[str, Any]], int]
) -> dict[Key, dict[int, int]]:
    found: dict[Key, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        found[tuple(row[label] for label in labels)][row["window_start_ms"]] += amount(row)
    return found
