"""Topics that are there already, and what rights each part needs on them."""

from pathlib import Path
from typing import Any

import pytest
from idlewatt_command import idlewatt
from kafka_broker import KafkaBroker

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
    """Without the right to see that, it says which is missing."""
    reads = {f"TOPIC {topic}": ["READ", "WRITE"] for topic in topics.ALL}
    with (
        kafka_broker.granted(reads) as log,
        pytest.raises(ConfigError, match=r"idlewatt\.state: .* grant DESCRIBE_CONFIGS"),
    ):
        prepare(kafka_broker.settings(log=log))
    sees = {f"TOPIC {topics.STATE}": ["READ", "WRITE", "DESCRIBE_CONFIGS"]}
    with kafka_broker.granted(reads | sees) as log:
        prepare(kafka_broker.settings(log=log))
