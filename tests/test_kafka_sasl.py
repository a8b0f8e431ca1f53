"""A Kafka that asks for a user and a password, and does not let everybody do everything."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from idlewatt_command import idlewatt, wait_until
from kafka.admin import ResourceType
from kafka_broker import KafkaBroker
from stage_reader import StageReader

from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.kafka_appender import KafkaAppender
from idlewatt.stream.kafka_log import KafkaStageLog
from idlewatt.stream.kafka_probe import missing_topics, newest_messages
from idlewatt.stream.log import Record
from idlewatt.stream.settings import Settings

pytestmark = pytest.mark.kafka
METER = (topics.GPU, topics.ENGINE)
ALL = {f"{kind} *": ["ALL"] for kind in ("TOPIC", "GROUP", "TRANSACTIONAL_ID")}


@pytest.fixture
def sasl(fresh_topics: Settings, kafka_broker: KafkaBroker) -> Iterator[Settings]:
    """Settings with the right user and password, who may do all, the topics new and empty."""
    with kafka_broker.granted(ALL) as log:
        yield kafka_broker.settings(log=log)


def test_the_right_password_works_from_end_to_end(sasl: Settings) -> None:
    """What a collector sends reaches a stage, whose commit is there for its heir; doctor sees it."""
    appender = KafkaAppender(sasl.log, "test")
    first = StageReader(KafkaStageLog(sasl.log, sasl.process.group, "meter", METER))
    heir = StageReader(KafkaStageLog(sasl.log, sasl.process.group, "meter", METER))
    try:
        appender.append([Record(topics.GPU, b"site/rack", b"row")])
        first.until_values({b"row"})
        first.commit(b"folded", (Record(topics.LEDGER, b"site", b"booked"),))
        first.log.close()
        heir.until(lambda: b"folded" in heir.snapshots.values())
    finally:
        for log in (appender, first.log, heir.log):
            log.close()
    assert missing_topics(sasl.log) == frozenset()
    assert [message.value for message in newest_messages(sasl.log, topics.GPU)] == [b"row"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sasl_password": "wrong"},
        {
            "security_protocol": "PLAINTEXT",
            "sasl_mechanism": None,
            "sasl_username": None,
            "sasl_password": None,
        },
        {"security_protocol": "SASL_SSL"},
    ],
    ids=["password", "no_password", "protocol"],
)
def test_who_is_not_let_in_is_told_so(sasl: Settings, wrong: dict[str, str | None]) -> None:
    """A broker that listens and refuses us is not called away: the keys to check are named."""
    settings = Settings.model_validate(sasl.model_dump() | {"log": sasl.log.model_dump() | wrong})
    told = rf"log\.bootstrap_servers: something listens at {settings.log.bootstrap_servers} but does not let us in: "
    with pytest.raises(LogUnavailableError, match=rf"{told}.*log\.security_protocol.*log\.sasl_\*"):
        missing_topics(settings.log)
    appender = KafkaAppender(settings.log, "test")
    with pytest.raises(LogUnavailableError, match=told):
        appender.append([Record(topics.GPU, b"site/rack", b"row")])


def test_a_session_that_brokers_do_not_take_ends_the_start(sasl: Settings) -> None:
    """No waiting makes it right: the key is named."""
    # less than the brokers of the tests take
    log = sasl.log.model_copy(update={"session_timeout_s": 0.5})
    stage = KafkaStageLog(log, sasl.process.group, "meter", METER)
    with pytest.raises(ConfigError, match=r"log\.session_timeout_s: .* do not take 0\.5;"):
        StageReader(stage).until_assigned(4)
    stage.close()


RIGHTS = {
    ResourceType.GROUP: r"not let us into the consumer group \S+-meter: .* Read on groups .* process\.group",
    ResourceType.TRANSACTIONAL_ID: r"transactional ids that begin with \S+-meter: .* Write .* process\.group",
}


@pytest.mark.parametrize(("kind", "told"), RIGHTS.items(), ids=["group", "transactional_id"])
def test_a_right_that_is_missing_at_the_start_ends_it(
    kafka_broker: KafkaBroker, sasl: Settings, kind: ResourceType, told: str
) -> None:
    """A processor that may not do its work does not try for ever: it says what to allow."""
    stage = KafkaStageLog(sasl.log, sasl.process.group, "meter", METER)
    with kafka_broker.denying(kind, sasl.process.group), pytest.raises(ConfigError, match=told):
        StageReader(stage).until_assigned(4)
    stage.close()


def test_a_right_that_is_taken_away_later_is_waited_for(kafka_broker: KafkaBroker, sasl: Settings) -> None:
    """It may come back without anybody at the processor, which goes on then."""
    stage = KafkaStageLog(sasl.log, sasl.process.group, "meter", METER)
    reader = StageReader(stage)
    reader.until_assigned(4)
    with kafka_broker.denying(ResourceType.TRANSACTIONAL_ID, sasl.process.group):
        # the next transaction begins with a producer of its own
        stage._producer.close()
        for _ in range(2):
            with pytest.raises(LogUnavailableError, match=RIGHTS[ResourceType.TRANSACTIONAL_ID]):
                reader.until(lambda: False)

    def is_back() -> bool:
        with suppress(LogUnavailableError):
            reader.poll()
            return True
        return False

    wait_until(is_back, "the right is back")
    reader.commit(b"goes on")
    stage.close()


@pytest.mark.parametrize("topic", [*METER, topics.STATE])
def test_a_topic_that_is_hidden_while_it_runs_is_named(
    kafka_broker: KafkaBroker, sasl: Settings, topic: str
) -> None:
    """An input or the state: polls say within seconds which topic it is and what to grant, and go on with the right."""
    stage = KafkaStageLog(sasl.log, sasl.process.group, "meter", METER)
    reader = StageReader(stage)
    reader.until_assigned(4)
    with kafka_broker.denying(ResourceType.TOPIC, topic):
        # as after an outage, everything is read anew
        stage._leave_group()
        for _ in range(2):
            with pytest.raises(
                LogUnavailableError, match=rf"may not read topic {topic} at \S+: grant it READ"
            ):
                reader.until(lambda: False, 15)

    def is_back() -> bool:
        with suppress(LogUnavailableError):
            reader.poll()
        return len(reader.snapshots) == 4

    wait_until(is_back, "the right is back")
    stage.close()


def test_a_processor_without_its_rights_exits(
    kafka_broker: KafkaBroker, sasl: Settings, tmp_path: Path
) -> None:
    """As with other settings that a person must mend: exit code 2, the last line says what."""
    config = tmp_path / "idlewatt.toml"
    log = sasl.log.model_dump(exclude_none=True)
    config.write_text(
        "[log]\n"
        + "".join(f"{key} = {value!r}\n" for key, value in log.items())
        + f"[process]\ngroup = {sasl.process.group!r}\n"
    )
    with kafka_broker.denying(ResourceType.GROUP, sasl.process.group):
        result = idlewatt("process", "--config", str(config), env={"IDLEWATT_PORT": "0"})
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("idlewatt: the brokers at ")
    assert "Read on groups" in last
