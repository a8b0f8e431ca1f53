"""A real Kafka that is away or refuses, and a real collector that is killed meanwhile."""

import itertools
import random
import time
from pathlib import Path

import pytest
import structlog.testing
from idlewatt_command import Serving, serving, wait_until
from kafka.admin import ConfigResource
from kafka_broker import KafkaBroker

from idlewatt.collectors.packing import pack
from idlewatt.collectors.sink import Sink
from idlewatt.stream import topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import RefusedMessageError
from idlewatt.stream.kafka_appender import KafkaAppender
from idlewatt.stream.kafka_clients import open_admin
from idlewatt.stream.log import Record
from idlewatt.stream.opening import read_topic
from idlewatt.stream.records import GpuRow
from idlewatt.stream.spool import Spool
from idlewatt.stream.spool_frames import WaitingMessage


def shown(collector: Serving, name: str) -> float:
    """The sum of a family on the collector's page."""
    return sum(float(line.split()[-1]) for line in collector.page().splitlines() if line.startswith(name))


def files(spool: Path) -> list[Path]:
    return list(spool.glob("*.spool"))


@pytest.mark.kafka
def test_an_outage_and_a_kill_in_it_cost_no_spooled_sample(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    """The next collector sends every second of the outage, in order, and then what it reads itself."""
    settings = kafka_broker.fresh_topics(kafka_broker.settings())
    spool = tmp_path / "spool"
    env = {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": settings.log.bootstrap_servers,
        "IDLEWATT_COLLECT__GPU": "simulated",
        "IDLEWATT_COLLECT__SPOOL_PATH": str(spool),
        # only our own outage
        "IDLEWATT_SIMULATE__OUTAGE_EVERY_S": "86400",
    }
    with serving("collect", log=tmp_path / "first.txt", env=env) as first:
        wait_until(lambda: shown(first, "idlewatt_sent_rows_total") > 0, "rows arrive")
        assert files(spool) == []
        kafka_broker.stop()
        try:
            away_ms = time.time() * 1000
            sizes = set()

            def grew_again_and_again() -> bool:
                sizes.add(shown(first, "idlewatt_spool_bytes"))
                return len(sizes) > 4 and bool(files(spool))

            wait_until(grew_again_and_again, "rows are spooled")
            first.process.kill()
            first.process.wait()
            killed_ms = time.time() * 1000
        finally:
            kafka_broker.start()
    with serving("collect", log=tmp_path / "second.txt", env=env) as second:
        wait_until(lambda: shown(second, "idlewatt_sent_rows_total") > 0, "the spool is sent")
        wait_until(lambda: shown(second, "idlewatt_spool_bytes") == 0, "nothing waits any more")
        assert shown(second, "idlewatt_spool_dropped_rows_total") == 0
        assert second.stop()[0] == 0
    assert files(spool) == []

    times: dict[str, list[int]] = {}
    for message in read_topic(settings, topics.GPU):
        for uuid, ts_ms in decode(message.value)[1].select("gpu_uuid", "ts_ms").rows():
            times.setdefault(uuid, []).append(ts_ms)
    assert len(times) == 80
    for read_ms in times.values():
        # an append that failed half way comes again, which adds nothing
        once = list(dict.fromkeys(read_ms))
        assert once == sorted(once)
        before = [ts_ms for ts_ms in once if ts_ms < killed_ms]
        assert before[-1] > away_ms
        # what was still in memory: an append that waited for Kafka, and an interval
        assert killed_ms - before[-1] < 9_000
        # one reading a second, and one that a busy machine may have skipped
        assert max(later - earlier for earlier, later in itertools.pairwise(before)) < 2_900


def reading(ts_ms: int, product: str = "x", gpu: int = 0) -> GpuRow:
    return GpuRow(ts_ms=ts_ms, site="s", pool="p", node="n", gpu_uuid=f"GPU-{gpu}", product=product)


@pytest.mark.kafka
def test_a_message_that_kafka_never_takes_costs_itself_alone(
    kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    """In the middle of a spool it is dropped, counted and said; all others arrive, and the spool goes on."""
    settings = kafka_broker.fresh_topics(kafka_broker.settings())
    with open_admin(settings.log) as admin:
        admin.alter_configs([ConfigResource("topic", topics.GPU, {"max.message.bytes": "20000"})])
    rng = random.Random(1)
    too_large = [reading(1010, rng.randbytes(20_000).hex())]
    spool = Spool(tmp_path / "spool", 1 << 26)
    for rows in ([reading(t)] for t in range(1000, 1010)):
        spool.append([m for m in pack(rows) if isinstance(m, WaitingMessage)])
    spool.append([m for m in pack(too_large) if isinstance(m, WaitingMessage)])
    for rows in ([reading(t)] for t in range(1011, 1100)):
        spool.append([m for m in pack(rows) if isinstance(m, WaitingMessage)])
    sink = Sink(KafkaAppender(settings.log, "test"), 1.0, spool=spool)
    with structlog.testing.capture_logs() as logged:
        wait_until(sink.send, "the spool is sent")
        sink.put([reading(1100)])
        wait_until(sink.send, "what comes later is sent")
    state = sink.state()
    sink.stop(5.0)
    assert (state.dropped_rows[topics.GPU], state.waiting_rows) == (1, 0)
    assert state.sent_rows[topics.GPU] == 100
    (said,) = (event for event in logged if event["event"] == "append_failed")
    assert said["topic"] == topics.GPU
    assert isinstance(said["exc_info"], RefusedMessageError)
    assert "max.message.bytes" in str(said["exc_info"])
    times = [
        ts_ms
        for message in read_topic(settings, topics.GPU)
        for ts_ms in decode(message.value)[1].get_column("ts_ms")
    ]
    once = list(dict.fromkeys(times))
    assert set(once) == {*range(1000, 1010), *range(1011, 1101)}


@pytest.mark.kafka
def test_what_no_broker_could_be_sent_is_refused_too(kafka_broker: KafkaBroker) -> None:
    """A message beyond what the client sends at all is refused at once, and the appender goes on."""
    settings = kafka_broker.fresh_topics(kafka_broker.settings())
    appender = KafkaAppender(settings.log, "test")
    with pytest.raises(RefusedMessageError, match=r"idlewatt\.gpu"):
        appender.append([Record(topics.GPU, b"k", bytes(40 * 1024 * 1024))])
    appender.append([Record(topics.GPU, b"k", b"small")])
    appender.close()
    assert [message.value for message in read_topic(settings, topics.GPU)] == [b"small"]
