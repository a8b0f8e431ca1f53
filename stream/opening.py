"""Chooses the home of the log by settings.log.kind. A box without Kafka never imports its client."""

from collections.abc import Iterator

from idlewatt.stream import topics
from idlewatt.stream.log import Appender, Message, StageLog
from idlewatt.stream.settings import Settings


def prepare(settings: Settings, *, process: bool = True) -> None:
    """Make the log ready for use: the file with its tables, or Kafka's topics. Raises ConfigError, LogUnavailableError.

    `process`: stages will read it and keep books in it, which asks more of topics, and more rights, than to collect.
    """
    if settings.log.kind == "kafka":
        from idlewatt.stream.kafka_topics import create_topics, refuse_unfit

        create_topics(settings.log, topics.ALL if process else topics.RAW)
        if process:
            refuse_unfit(settings.log, settings.process)
    else:
        from idlewatt.stream.embedded_file import open_file

        open_file(settings.log.path).close()


def open_appender(settings: Settings, client_id: str) -> Appender:
    """Open the log for writing; `client_id` names the writer in Kafka's own logs. Raises ConfigError, LogUnavailableError."""
    if settings.log.kind == "kafka":
        from idlewatt.stream.kafka_appender import KafkaAppender

        return KafkaAppender(settings.log, client_id)
    from idlewatt.stream.embedded_log import EmbeddedAppender

    return EmbeddedAppender(settings.log.path)


def open_stage_log(settings: Settings, stage: str, inputs: tuple[str, ...]) -> StageLog:
    """Open the input topics of one stage, with its state and its place. Raises ConfigError, LogUnavailableError."""
    if settings.log.kind == "kafka":
        from idlewatt.stream.kafka_log import KafkaStageLog

        process = settings.process
        return KafkaStageLog(settings.log, process.group, stage, inputs, process.instance)
    from idlewatt.stream.embedded_log import EmbeddedStageLog

    return EmbeddedStageLog(settings.log.path, stage, inputs)


def read_topic(
    settings: Settings, topic: str, *, since_ms: int = 0, newest: int | None = None, follow: bool = False
) -> Iterator[Message]:
    """Every message that is committed in a topic now, oldest first within a partition. Raises ConfigError.

    `since_ms`: what was appended before is left out. `newest`: of each partition only the last so many, or a few more.
    `follow`: and all that come after, without end.
    """
    if settings.log.kind == "kafka":
        from idlewatt.stream.kafka_reading import read_messages as read_kafka

        return read_kafka(settings.log, topic, since_ms=since_ms, newest=newest, follow=follow)
    from idlewatt.stream.embedded_log import read_messages as read_embedded

    return read_embedded(settings.log.path, topic, since_ms=since_ms, newest=newest, follow=follow)
