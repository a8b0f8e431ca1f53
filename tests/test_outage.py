"""A real Kafka that is away, and a real collector that is killed meanwhile."""

import itertools
import time
from pathlib import Path

import pytest
from idlewatt_command import Serving, serving, wait_until
from kafka_broker import KafkaBroker

from idlewatt.stream import topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.opening import read_topic


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
