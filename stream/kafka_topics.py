"""Creates Idlewatt's topics in Kafka and checks that their partitions belong together."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from kafka.admin import ConfigResource
from kafka.errors import InvalidReplicationFactorError, NoError, TopicAlreadyExistsError, for_code

from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.kafka_clients import KafkaError, open_admin
from idlewatt.stream.settings import Log

# Topics one stage reads together: partition n of each must go to the same member.
_READ_TOGETHER: Final = ((topics.GPU, topics.ENGINE), (topics.LEDGER, topics.USAGE))


def create_topics(log: Log, needed: Sequence[str] = topics.ALL) -> None:
    """Create all topics that are missing, if a needed one is. Raises ConfigError, LogUnavailableError.

    The others may stay missing where this user may not create them.
    """
    try:
        with open_admin(log) as admin:
            missing = set(topics.ALL) - set(admin.list_topics())
            if missing.intersection(needed):
                _create(admin, log, missing, needed)
            described = admin.describe_topics(list(needed))
            state = ConfigResource("topic", topics.STATE, ["cleanup.policy"])
            found = admin.describe_configs([state], config_filter="all")["topic"][topics.STATE]
    except KafkaError as error:
        raise LogUnavailableError(
            f"log.bootstrap_servers: the topics cannot be made ready at {log.bootstrap_servers}: {error}"
        ) from error
    _check_partitions({topic["name"]: len(topic["partitions"]) for topic in described})
    if topics.STATE not in needed:
        return
    if not found:
        # kafka-python says nothing of the refusal; whether snapshots are kept decides whether windows count twice
        raise ConfigError(
            f"topic {topics.STATE}: this user may not see its settings; grant DESCRIBE_CONFIGS "
            "(docs/architecture.md, Topics and rights)"
        )
    if found["cleanup.policy"]["value"] != "compact":
        raise ConfigError(
            f"topic {topics.STATE} has cleanup.policy {found['cleanup.policy']['value']}, under which snapshots "
            "get lost; set it to compact"
        )


def _create(admin: Any, log: Log, names: set[str], needed: Collection[str]) -> None:
    wanted = {
        name: {
            "num_partitions": log.partitions,
            "replication_factor": log.replication_factor,
            "configs": _configs(name, log.replication_factor),
        }
        for name in sorted(names)
    }
    for created in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = for_code(created["error_code"])
        if error is InvalidReplicationFactorError:
            raise ConfigError(
                f"log.replication_factor: {log.replication_factor} is more than there are brokers "
                f"at {log.bootstrap_servers}"
            )
        # another process may have been quicker
        if error not in (NoError, TopicAlreadyExistsError) and created["name"] in needed:
            raise ConfigError(
                f"topic {created['name']} cannot be created by this user, or is hidden from it: "
                f"{created['error_message'] or error.__name__}; create it yourself, or grant what is lacking, as "
                'docs/architecture.md says under "Topics and rights"'
            )
    admin.wait_for_topics(list(needed))


def _configs(name: str, replication_factor: int) -> dict[str, str]:
    configs = {
        "max.message.bytes": str(topics.MAX_MESSAGE_BYTES),
        # the broker recompresses what comes in another codec, which a reader here might lack the library for
        "compression.type": "lz4" if name in topics.RAW else "zstd",
        # retention counts from arrival, and no clock of a sender can make the broker refuse a message
        "message.timestamp.type": "LogAppendTime",
    }
    if replication_factor >= 3:
        configs["min.insync.replicas"] = "2"
    if name != topics.STATE:
        return configs | {"cleanup.policy": "delete", "retention.ms": str(topics.RETENTION_MS[name])}
    # Only the newest snapshot counts, and a restore reads all there is: small segments, compacted early.
    return configs | {
        "cleanup.policy": "compact",
        "segment.bytes": str(32 * 1024 * 1024),
        "segment.ms": str(10 * 60 * 1000),
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": str(60 * 60 * 1000),
    }


def _check_partitions(count: Mapping[str, int]) -> None:
    for one, other in _READ_TOGETHER:
        if one in count and other in count and count[one] != count[other]:
            raise ConfigError(
                f"topic {one} has {count[one]} partitions and {other} {count[other]}: they must be equal, so that "
                "rows that belong together meet; create the one that holds nothing yet anew, with as many as the other, "
                "or both, and give process.group a new name: the state in the log is that of the old ones"
            )
    most = max(count.get(topic, 0) for pair in _READ_TOGETHER for topic in pair)
    if count.get(topics.STATE, most) < most:
        raise ConfigError(
            f"topic {topics.STATE} has {count[topics.STATE]} partitions and needs {most}; "
            "raise them with kafka-topics.sh --alter --partitions"
        )
