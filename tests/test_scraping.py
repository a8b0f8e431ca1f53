"""The prometheus.yml that is shipped, on a real Prometheus: what it keeps, what it drops, and handovers."""

import http.server
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from panel_queries import page_queries, panel_queries
from prometheus_server import StartPrometheus

from idlewatt.dashboards import alerts, recording, rules
from idlewatt.dashboards import queries as q
from idlewatt.dashboards.provisioning import prometheus_yaml
from idlewatt.stream.metric_names import METRICS, MONEY_END, UNCOSTED_GPU_SECONDS, WINDOW_END, Metric

pytestmark = pytest.mark.prometheus

# every value a label can have, from the definitions; a label that is not here has one value of its own
LABEL_VALUES: Final = {
    "pool": ("a", "b"),
    "kind": ("output", "input", "cached_input"),
    "state": ("serving", "idle_loaded", "idle_free", "other", "dark"),
    "scope": ("it", "facility"),
    "part": ("draw", "headroom"),
    "demand": ("waiting", "none", "unknown"),
    "window": ("1m", "5m", "1h", "6h", "3d"),
    "of": ("watts", "tokens"),
    "currency": ("USD",),
    "basis": ("energy", "all_in"),
    "cost_basis": ("usage", "allocation"),
    "origin": ("book", "published"),
    "capital": ("benchmark", "book"),
    "consumer_kind": ("function", "team", "agent_family", "engineer"),
    "stage": ("meter", "economy"),
}


@dataclass
class Page:
    """A /metrics page of a process; `body` is what it says now, None is a process that does not answer."""

    body: Callable[[], str] | None
    address: str = ""


@pytest.fixture
def pages() -> Iterator[Callable[..., Page]]:
    """Starts pages on free ports of the loopback."""
    servers = []

    def serve(body: Callable[[], str] | None) -> Page:
        page = Page(body)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if page.body is None:
                    self.send_error(503)
                    return
                text = page.body().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        page.address = f"127.0.0.1:{server.server_address[1]}"
        return page

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def config(*pages_: Page) -> str:
    return prometheus_yaml([page.address for page in pages_], None, (), "250ms")


def everything(metric: Metric, value: float) -> str:
    """All series a metric can have."""
    values = [LABEL_VALUES.get(label, (f"a-{label}",)) for label in metric.labels]
    lines = [f"# TYPE {metric.name} {metric.kind}"]
    for combination in itertools.product(*values):
        pairs = ",".join(f'{label}="{v}"' for label, v in zip(metric.labels, combination, strict=True))
        lines.append(f"{metric.name}{{{pairs}}} {value}" if pairs else f"{metric.name} {value}")
    return "\n".join(lines) + "\n"


def test_every_panel_shows_data(prometheus_server: StartPrometheus, pages: Callable[..., Page]) -> None:
    """With every series Idlewatt can export, every query of every panel and page has a result, and no rule is an error."""
    scrapes = itertools.count(1)

    def body() -> str:
        now = next(scrapes) * 1000
        # all is priced: what is not blinds a panel
        grows = {m for m in METRICS if m.kind == "counter" and m is not UNCOSTED_GPU_SECONDS}
        # and all figures are of now: old ones are shown on no panel
        clocks = dict.fromkeys((WINDOW_END, MONEY_END), time.time())
        return "".join(everything(m, clocks.get(m, now if m in grows else 1)) for m in METRICS)

    server = prometheus_server(
        config(pages(body)),
        {"rules/recording.yaml": rules.recording_yaml(), "rules/alerts.yaml": rules.alerts_yaml()},
    )
    server.wait_for("count_over_time(idlewatt_window_end_timestamp_seconds[1m]) > 3")
    # gauges are looked up by the quarter of a minute
    server.wait_for(q.tokens_per_joule(q.EVERYWHERE))
    queries = [
        *((str(query), query.expr) for query in panel_queries()),
        *((expr, expr) for expr in page_queries()),
    ]
    assert [name for name, expr in queries if not server.query(expr)] == []
    every_rule = (*recording.RECORDING, *recording.RECORDING_DAY, *alerts.ALERTS)
    assert len(server.rules()) == len(every_rule)
    for rule in every_rule:
        server.query(rule.expr)


def test_a_handover_keeps_the_series(prometheus_server: StartPrometheus, pages: Callable[..., Page]) -> None:
    """A pool's counter goes on as one series when another processor serves it, and nothing is lost between."""

    def pool(tokens: int) -> str:
        return f'idlewatt_tokens_total{{site="n",pool="a",model_name="m",kind="output"}} {tokens}\n'

    def own(messages: int) -> str:
        return f'idlewatt_messages_total{{topic="t",partition="0"}} {messages}\n'

    first, second = pages(lambda: pool(1000) + own(5)), pages(lambda: own(7))
    server = prometheus_server(config(first, second))
    server.wait_for("idlewatt_tokens_total == 1000")
    server.wait_for("count(up == 1) == 2")

    # the first gives the pool back in good order, then the second dies with it
    first.body = lambda: own(5)
    second.body = lambda: pool(1400) + own(7)
    server.wait_for("idlewatt_tokens_total == 1400")
    first.body = lambda: pool(1500) + own(5)
    second.body = None
    server.wait_for("idlewatt_tokens_total == 1500")

    assert server.value("count(count_over_time(idlewatt_tokens_total[5m]))") == 1
    assert server.value("resets(idlewatt_tokens_total[5m])") == 0
    assert (
        server.value("max_over_time(idlewatt_tokens_total[5m]) - min_over_time(idlewatt_tokens_total[5m])")
        == 500
    )
    # the second's end marks the series as stale for up to a scrape of the first
    (series,) = server.query("last_over_time(idlewatt_tokens_total[5m])")
    assert "instance" not in series.labels


def test_a_process_keeps_its_own_series(
    prometheus_server: StartPrometheus, pages: Callable[..., Page]
) -> None:
    """What a process says of itself is told apart by instance, as is which one does not answer."""
    own = "".join(everything(m, 1) for m in METRICS if m.stage in ("pipeline", "collector"))
    first, second = pages(lambda: own), pages(lambda: own)
    server = prometheus_server(config(first, second))
    server.wait_for("count(up == 1) == 2")
    for metric in METRICS:
        if metric.stage in ("pipeline", "collector"):
            instances = {
                sample.labels["instance"]
                for sample in server.wait_for(f"count by (instance) ({metric.name})")
            }
            assert instances == {first.address, second.address}, metric.name
    assert {target["labels"]["instance"] for target in server.targets()} == {first.address, second.address}
    second.body = None
    (down,) = server.wait_for("up == 0")
    assert down.labels["instance"] == second.address
    assert down.labels["job"] == q.JOB


def test_it_is_this_prometheus_and_its_config_must_be_right(prometheus_server: StartPrometheus) -> None:
    """The fixture never takes another server for its own, and says what is wrong with a configuration."""
    assert prometheus_server(config()).value("vector(2)") == 2
    with pytest.raises(AssertionError, match="field nonsense not found"):
        prometheus_server("nonsense: true\n")
