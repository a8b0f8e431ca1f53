import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import structlog
from loopback_http import LoopbackServer, page, says, serving
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from idlewatt.collectors import sink
from idlewatt.collectors.collection import Collection
from idlewatt.collectors.source import Reading
from idlewatt.stream import metric_names, spool, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.log import Record
from idlewatt.stream.records import GpuRow
from idlewatt.stream.settings import Collect, Engine, Gateway, Log, Settings

PAGE = page(
    b'vllm:generation_tokens_total{model_name="m",engine="0"} 5\n'
    b'vllm:generation_tokens_total{model_name="bad",engine="0"} NaN\n'
)


class Shelf:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.away = False

    def append(self, records: Sequence[Record]) -> None:
        if self.away:
            raise LogUnavailableError("nobody there")
        self.records += records

    def close(self) -> None: ...


class OneGpu:
    name = "one-gpu"
    interval_s = 0.02

    def __init__(self) -> None:
        self.closed = False

    def read(self) -> Reading:
        row = GpuRow(
            ts_ms=1, site="hall", pool="rack", node="n1", gpu_uuid="GPU-1", product="x", power_mw=70_000
        )
        return Reading([row])

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(says(PAGE)) as server:
        yield server


def settings(*engines: Engine) -> Settings:
    return Settings(
        site="hall",
        collect=Collect(
            node="n1",
            pool="rack",
            gpu="none",
            engine_interval_s=0.1,
            send_interval_s=0.05,
            timeout_s=0.5,
            engine=engines,
        ),
    )


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def metrics(collection: Collection) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(collection.metrics)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    # name, then source or topic, then reason
    order = ("source", "topic", "reason")
    return {
        (sample.name, *(sample.labels[label] for label in order if label in sample.labels)): sample.value
        for family in families
        for sample in family.samples
    }


def test_rows_of_all_sources_reach_the_log_and_are_accounted_for(server: LoopbackServer) -> None:
    """Engines and GPUs are read side by side; each collector metric has the name the contract gives it."""
    shelf, gpu = Shelf(), OneGpu()
    engines = (Engine(url=server.url, name="good"), Engine(url="http://127.0.0.1:1/metrics", name="gone"))
    collection = Collection(settings(*engines), shelf, clock=lambda: 42, extra_sources=[gpu])
    collection.start()
    wait_until(lambda: {record.topic for record in shelf.records} == {topics.GPU, topics.ENGINE})
    wait_until(lambda: ("idlewatt_scrape_errors_total", "gone", "unreachable") in metrics(collection))
    shown = metrics(collection)
    collection.stop(5)

    assert shown["idlewatt_scrape_success", "good"] == shown["idlewatt_scrape_success", "one-gpu"] == 1
    assert shown["idlewatt_scrape_success", "gone"] == 0
    assert 0 < shown["idlewatt_scrape_duration_seconds", "good"] < 0.5
    assert shown["idlewatt_sample_errors_total", "good", "nan"] >= 1
    # the log is on this disk, so there is no spool
    expected = {m.name for m in metric_names.METRICS if m.stage == "collector"} - {
        "idlewatt_spool_limit_bytes"
    }
    assert {name[0] for name in shown} == expected
    rows = [row for record in shelf.records for row in decode(record.value)[1].to_dicts()]
    engine_rows = [row for row in rows if "engine" in row]
    assert {(row["engine"], row["pool"], row["ts_ms"], row["output_tokens"]) for row in engine_rows} == {
        ("good", "rack", 42, 5)
    }
    assert gpu.closed
    ended = metrics(collection)
    assert ended["idlewatt_sent_rows_total", topics.GPU] + ended[
        "idlewatt_sent_rows_total", topics.ENGINE
    ] == len(rows)
    # the sources are gone, and so are their series
    assert not any(name[0].startswith("idlewatt_scrape") for name in ended)


def test_stop_is_in_time_while_everything_hangs(server: LoopbackServer) -> None:
    """A silent engine and a log that is away take no more than the time given."""
    server.answer = lambda connection, request: None
    shelf = Shelf()
    shelf.away = True
    collection = Collection(settings(Engine(url=server.url)), shelf, extra_sources=[OneGpu()])
    collection.start()
    wait_until(lambda: bool(server.requests) and metrics(collection)["idlewatt_spool_bytes",] > 0)
    started = time.monotonic()
    collection.stop(0.6)
    assert time.monotonic() - started < 1.2


def test_kafka_has_a_spool_and_the_embedded_log_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool stands beside the process, holds what Kafka does not take, and belongs to one collector."""
    monkeypatch.chdir(tmp_path)
    shelf = Shelf()
    embedded = Collection(settings(), shelf, extra_sources=[OneGpu()])
    embedded.stop(1)
    assert list(tmp_path.iterdir()) == []
    assert ("idlewatt_spool_limit_bytes",) not in metrics(embedded)

    kafka = settings().model_copy(update={"log": Log(kind="kafka")})
    shelf.away = True
    collection = Collection(kafka, shelf, extra_sources=[OneGpu()])
    other = OneGpu()
    with pytest.raises(ConfigError, match=r"collect\.spool_path: another collector uses idlewatt-spool"):
        Collection(kafka, shelf, extra_sources=[other])
    assert other.closed
    collection.start()
    wait_until(lambda: bool(list(tmp_path.glob("idlewatt-spool/*.spool"))))
    collection.stop(0.2)
    shown = metrics(collection)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("idlewatt-spool/*.spool"))
    assert shown["idlewatt_spool_bytes",] == on_disk > 0
    assert shown["idlewatt_spool_limit_bytes",] == kafka.collect.spool_max_bytes
    assert shown["idlewatt_spool_dropped_rows_total", topics.GPU] == 0


@pytest.mark.parametrize("broken", [errno.EROFS, errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_spool_whose_disk_is_broken_stops_no_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """Kafka may well be there: rows go to it, and what is amiss is said and counted until the disk is mended.

    A setting that is wrong ends the start.
    """
    monkeypatch.chdir(tmp_path)

    def refuse(folder: Path) -> int:
        raise OSError(broken, os.strerror(broken))

    lock = spool._lock
    monkeypatch.setattr(spool, "_lock", refuse)
    monkeypatch.setattr(sink, "_OPEN_SPOOL_EVERY_S", 0.01)
    shelf = Shelf()
    with structlog.testing.capture_logs() as events:
        collection = Collection(
            settings().model_copy(update={"log": Log(kind="kafka")}), shelf, extra_sources=[OneGpu()]
        )
    assert [(event["event"], event["log_level"]) for event in events] == [("spool_failed", "error")]
    collection.start()
    wait_until(lambda: metrics(collection)["idlewatt_sent_rows_total", topics.GPU] > 0)
    wait_until(lambda: metrics(collection)["idlewatt_sample_errors_total", "spool", "failed"] > 2)
    assert ("idlewatt_spool_limit_bytes",) not in metrics(collection)
    monkeypatch.setattr(spool, "_lock", lock)
    wait_until(lambda: ("idlewatt_spool_limit_bytes",) in metrics(collection))
    assert metrics(collection)["idlewatt_sample_errors_total", "spool", "failed"] > 2
    collection.stop(1)
    monkeypatch.setattr(spool, "_lock", refuse)
    broken = errno.EACCES
    with pytest.raises(ConfigError, match=r"collect\.spool_path"):
        Collection(settings().model_copy(update={"log": Log(kind="kafka")}), shelf, extra_sources=[OneGpu()])


def test_sources_must_have_names_of_their_own(server: LoopbackServer) -> None:
    """Two engines at one address, or with one name, could not be told apart in any figure."""
    twice = Engine(url=server.url)
    with pytest.raises(ConfigError, match=rf"n1:{server.address.split(':')[1]}.*name"):
        Collection(settings(twice, twice), Shelf())
    gpu = OneGpu()
    with pytest.raises(ConfigError, match="one-gpu"):
        Collection(settings(Engine(url=server.url, name="one-gpu")), Shelf(), extra_sources=[gpu])
    assert gpu.closed


def test_a_page_is_read_by_one_source(server: LoopbackServer) -> None:
    """Under two names its tokens would count twice; however its url is written, and without showing its password."""
    port = server.address.split(":")[1]
    one = Engine(url=server.url, name="one")
    two = Engine(url=f"http://me:secret@127.0.0.1:{port}{server.url.split(port)[1]}", name="two")
    with pytest.raises(ConfigError, match=r"\[\[collect\.engine\]\] one and two have one url") as refused:
        Collection(settings(one, two), Shelf())
    assert "secret" not in str(refused.value)
    Collection(settings(one, Engine(url=f"{server.url}?other", name="two")), Shelf()).stop(1)
    collect = settings().collect.model_copy(
        update={"gateway": (Gateway(url=server.url, name="a"), Gateway(url=server.url, name="b"))}
    )
    with pytest.raises(ConfigError, match=r"gateway.* have one url"):
        Collection(settings().model_copy(update={"collect": collect}), Shelf())


def test_nothing_to_read_is_a_config_error() -> None:
    """A collector without sources would be silent for ever."""
    with pytest.raises(ConfigError, match=r"collect\.gpu.*collect\.engine"):
        Collection(settings(), Shelf())


def test_collectors_do_not_load_what_processors_need() -> None:
    """Importing polars would double the memory of the agent on every node."""
    modules = "idlewatt.collectors.collection, idlewatt.collectors.gpu_nvml, idlewatt.stream.metrics_server"
    script = f"import sys, {modules}; print('polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
