"""A Kafka that asks for a user and a password, and does not let everybody do everything."""

from collections.abc import Iterator

import pytest
from kafka_broker import KafkaBroker
from stage_reader import StageReader

from idlewatt.stream import topics
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.kafka_log import KafkaAppender, KafkaStageLog
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
