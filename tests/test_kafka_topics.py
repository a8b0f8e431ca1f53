"""Topics that are there already: what of them a processor refuses, what it warns of, and what rights each part needs."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from idlewatt_command import idlewatt
from kafka.admin import ConfigResource
from kafka_broker import KafkaBroker
from structlog.testing import capture_logs

from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.kafka_log import KafkaAppender
from idlewatt.stream.kafka_reading import read_messages
from idlewatt.stream.log import Record
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Settings

pytestmark = pytest.mark.kafka


def environment(log: dict[str, Any], group: str, tmp_path: Path) -> dict[str, str]:
    return {f"IDLEWATT_LOG__{key.upper()}": str(value) for key, value in log.items()} | {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__PARTITIONS": "4",
        "IDLEWATT_PROCESS__GROUP": group,
        "IDLEWATT_COLLECT__GPU": "none",
        "IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool"),
        "IDLEWATT_PORT": "0",
    }


def configure(broker: KafkaBroker, topic: str, **configs: str) -> None:
    with broker.admin() as admin:
        admin.alter_configs(
            [ConfigResource("topic", topic, {k.replace("_", "."): v for k, v in configs.items()})]
        )
        deadline = time.monotonic() + 20
        while True:
            asked = ConfigResource("topic", topic, [k.replace("_", ".") for k in configs])
            found = admin.describe_configs([asked], config_filter="all")["topic"][topic]
            if {told["value"] for told in found.values()} == set(configs.values()):
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
@pytest.mark.parametrize("topic", [topics.LEDGER, topics.MONEY, topics.GPU, topics.REJECTED])
def test_a_topic_that_forgets_rows_is_refused(
    kafka_broker: KafkaBroker, fresh_topics: Settings, topic: str, policy: str
) -> None:
    """Rows of a site have one key: compaction keeps the last message, and the books lose the others."""
    configure(kafka_broker, topic, cleanup_policy=policy)
    with pytest.raises(
        ConfigError, match=rf"{re.escape(topic)} has cleanup\.policy {policy}.* set it to delete"
    ):
        prepare(fresh_topics)


def test_a_state_that_is_not_compacted_is_refused(kafka_broker: KafkaBroker, fresh_topics: Settings) -> None:
    """Snapshots would go with their age, and what they stand for be booked again."""
    configure(kafka_broker, topics.STATE, cleanup_policy="delete")
    with pytest.raises(ConfigError, match=r"idlewatt\.state has cleanup\.policy delete.* set it to compact"):
        prepare(fresh_topics)


def test_topics_unlike_ours_are_told(
    kafka_broker: KafkaBroker, fresh_topics: Settings, tmp_path: Path
) -> None:
    """What keeps less, takes less, has fewer copies or another number of partitions is a warning, in doctor too."""
    with capture_logs() as logged:
        prepare(fresh_topics)
    assert logged == []
    week_ms = str(7 * 86_400_000)
    configure(kafka_broker, topics.LEDGER, retention_ms=week_ms)
    configure(kafka_broker, topics.MONEY, retention_ms="-1")
    configure(kafka_broker, topics.GPU, max_message_bytes="1048588")
    configure(kafka_broker, topics.ENGINE, max_message_bytes="1048588")
    kafka_broker.raise_partitions(8, topics.STATE)
    asked = {"bootstrap_servers": fresh_topics.log.bootstrap_servers, "replication_factor": 3}
    with capture_logs() as logged:
        prepare(kafka_broker.settings(log=asked | {"partitions": 6}))
    less = [
        "idlewatt.engine, idlewatt.gpu: max.message.bytes 1048588, less than Idlewatt's 33554432",
        f"idlewatt.ledger: retention.ms {week_ms}, less than Idlewatt's {400 * 86_400_000}",
    ]
    all_seven = ", ".join(sorted(topics.ALL))
    but_state = ", ".join(sorted(set(topics.ALL) - {topics.STATE}))
    copies = f"{all_seven}: 1 replicas, and log.replication_factor is 3"
    assert sorted(line["found"] for line in logged) == sorted(
        [*less, copies, f"{but_state}: 4 partitions, and log.partitions is 6"]
    )
    assert {(line["event"], line["log_level"]) for line in logged} == {("topic_settings", "warning")}
    lines = idlewatt("doctor", env=environment(asked, "test", tmp_path)).stdout
    assert all(f"warn  log      {doubt}" in lines for doubt in [*less, copies])
    assert "log.partitions" not in lines


def test_a_collector_needs_its_three_topics_alone(
    kafka_broker: KafkaBroker, fresh_topics: Settings, tmp_path: Path
) -> None:
    """It writes with no other right than to write them, and its doctor does not fail for what it cannot see."""
    with kafka_broker.granted({f"TOPIC {topic}": ["WRITE"] for topic in topics.RAW}) as log:
        settings = kafka_broker.settings(log=log)
        prepare(settings, process=False)
        appender = KafkaAppender(settings.log, "test")
        appender.append([Record(topic, b"key", b"value") for topic in topics.RAW])
        appender.close()
        looked = idlewatt("doctor", env=environment(log, "test", tmp_path))
        with pytest.raises(
            ConfigError, match=r"cannot be created by this user, or is hidden from it.*Topics and rights"
        ):
            prepare(settings)
    for topic in topics.RAW:
        assert [m.value for m in read_messages(fresh_topics.log, topic)] == [b"value"]
    assert looked.returncode == 0, looked.stdout
    assert "hides them from this user" in looked.stdout
    assert (
        "warn  clock    clocks cannot be compared: this user may not read topic idlewatt.gpu" in looked.stdout
    )


def test_a_processor_must_see_how_its_state_is_kept(
    kafka_broker: KafkaBroker, fresh_topics: Settings
) -> None:
    """Without the right to see that, it says which is missing; without that for the others it goes on with a warning."""
    reads = {f"TOPIC {topic}": ["READ", "WRITE"] for topic in topics.ALL}
    for rights, says in (({}, "DESCRIBE_CONFIGS"),):
        with (
            kafka_broker.granted(reads | rights) as log,
            pytest.raises(ConfigError, match=rf"idlewatt\.state: .* grant {says}"),
        ):
            prepare(kafka_broker.settings(log=log))
    sees = {f"TOPIC {topics.STATE}": ["READ", "WRITE", "DESCRIBE_CONFIGS"]}
    with kafka_broker.granted(reads | sees) as log, capture_logs() as logged:
        prepare(kafka_broker.settings(log=log))
    (said,) = [line for line in logged if line["event"] != "Sending username and password in the clear"]
    assert (said["event"], said["log_level"]) == ("topic_settings_hidden", "warning")
    assert set(said["topics"]) == set(topics.ALL) - {topics.STATE}
