"""Creates Idlewatt's topics in Kafka, and looks whether those that are there keep what is booked."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from kafka.admin import ConfigResource
from kafka.errors import InvalidReplicationFactorError, NoError, TopicAlreadyExistsError, for_code

from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.kafka_clients import KafkaError, open_admin
from idlewatt.stream.kafka_snapshots import Snapshot, another_number, snapshots_of
from idlewatt.stream.settings import Log, Process

# Topics one stage reads together: partition n of each must go to the same member.
_READ_TOGETHER: Final = {"meter": (topics.GPU, topics.ENGINE), "economy": (topics.LEDGER, topics.USAGE)}
_LOOKED_AT: Final = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes")
# a broker knows of topics that were created at another one a moment later
_PATIENCE_S: Final = 3.0
_NO_IDS: Final = (
    "these brokers tell no topic ids: a topic that is deleted and made anew is not noticed, and is read on from where the "
    "one before was read to"
)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Examined:
    """What is wrong with topics that are there, in words."""

    # with these a processor would lose what is booked, or book it twice
    faults: tuple[str, ...]
    # with these a processor of this process.group would book what another group has booked
    rivals: tuple[str, ...]
    # why the state could not all be read, in which this group's own may be
    unread: tuple[str, ...]
    # other settings than those Idlewatt creates topics with, and what could not be looked at
    doubts: tuple[str, ...]
    # topics whose settings, or snapshots, this user may not see
    hidden: tuple[str, ...]


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
    except KafkaError as error:
        raise LogUnavailableError(
            f"log.bootstrap_servers: the topics cannot be made ready at {log.bootstrap_servers}: {error}"
        ) from error
    for fault in _unlike(_counts(described)):
        raise ConfigError(fault)


def refuse_unfit(log: Log, process: Process) -> None:
    """For a processor: raise ConfigError where topics would not keep the books, and log what else is unlike ours."""
    found = examine_topics(log, process, topics.ALL)
    if found.rivals and found.unread:
        raise LogUnavailableError("\n".join([*found.unread, *found.rivals]))
    if refused := [*found.faults, *found.rivals]:
        raise ConfigError("\n".join(refused))
    if topics.STATE in found.hidden:
        # whether it keeps the snapshots decides whether windows count twice
        raise ConfigError(
            f"topic {topics.STATE}: this user may not see its settings or what is in it; grant "
            "DESCRIBE_CONFIGS and READ (docs/architecture.md, Topics and rights)"
        )
    for doubt in found.doubts:
        _log.warning("topic_settings", found=doubt)
    if found.hidden:
        _log.warning("topic_settings_hidden", topics=found.hidden, mend="grant DESCRIBE_CONFIGS on them")


def examine_topics(log: Log, process: Process, names: Collection[str]) -> Examined:
    """Look at those of our topics. Raises LogUnavailableError."""
    deadline = time.monotonic() + _PATIENCE_S
    while (found := _examined(log, process, names)).hidden and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _examined(log: Log, process: Process, names: Collection[str]) -> Examined:
    try:
        with open_admin(log) as admin:
            described = admin.describe_topics(sorted(names))
            asked = [ConfigResource("topic", name, list(_LOOKED_AT)) for name in sorted(names)]
            configs = admin.describe_configs(asked, config_filter="all").get("topic", {})
    except KafkaError as error:
        raise LogUnavailableError(
            f"log.bootstrap_servers: the topics cannot be looked at at {log.bootstrap_servers}: {error}"
        ) from error
    # where it is refused, kafka-python tells no settings and no error
    settings = {
        name: {key: told["value"] for key, told in configs[name].items()}
        for name in sorted(names)
        if set(_LOOKED_AT) <= configs.get(name, {}).keys()
    }
    counts = _counts(described)
    # kafka-python leaves the key out below version 10 of Metadata, and has None where the broker knows no id
    ids = {t["name"]: t.get("topic_id") and str(t["topic_id"]) for t in described if t["name"] in counts}
    hidden = set(names) - settings.keys()
    faults = [*_unlike(counts), *_losing(settings)]
    rivals: list[str] = []
    unread: list[str] = []
    if topics.STATE in names:
        try:
            owners = [f"{process.group}-{stage}" for stage in process.stages]
            snapshots, fault = snapshots_of(log, owners, ids)
            faults += _moved(process, counts, snapshots)
            rivals += [*_rivals(process, ids, snapshots)] or [*_heirs(process, ids, snapshots)]
        except ConfigError:
            hidden.add(topics.STATE)
        else:
            if fault is not None:
                # a partition may have no leader; each is looked at again when it is restored
                unread.append(
                    f"of which groups the state is, and of how many partitions, is not known: {fault}"
                )
    copies = {
        topic["name"]: min((len(p["replica_nodes"]) for p in topic["partitions"]), default=0)
        for topic in described
    }
    doubts = [*unread, *_doubts(log, counts, copies, settings)]
    if None in ids.values():
        doubts.append(_NO_IDS)
    return Examined(tuple(faults), tuple(rivals), tuple(unread), tuple(doubts), tuple(sorted(hidden)))


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
        # brokers may bound what they keep by size, too
        keeps = {"retention.ms": str(topics.RETENTION_MS[name]), "retention.bytes": "-1"}
        return configs | {"cleanup.policy": "delete"} | keeps
    # Only the newest snapshot counts, and a restore reads all there is: small segments, compacted early.
    return configs | {
        "cleanup.policy": "compact",
        "segment.bytes": str(32 * 1024 * 1024),
        "segment.ms": str(10 * 60 * 1000),
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": str(60 * 60 * 1000),
    }


def _counts(described: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {topic["name"]: len(topic["partitions"]) for topic in described if topic["partitions"]}


def _unlike(count: Mapping[str, int]) -> Iterator[str]:
    """Numbers of partitions that do not go together."""
    for one, other in _READ_TOGETHER.values():
        if one in count and other in count and count[one] != count[other]:
            # what is in the ledger is kept for its 400 days
            mend = (
                f"make {other} anew with {count[one]}"
                if one == topics.LEDGER
                else "create the one that holds nothing yet anew, with as many as the other, or go on"
            )
            yield (
                f"topic {one} has {count[one]} partitions and {other} {count[other]}: they must be equal, so that "
                f'rows that belong together meet; {mend} as docs/architecture.md says under "The number of partitions"'
            )
    most = max((count.get(topic, 0) for pair in _READ_TOGETHER.values() for topic in pair), default=0)
    if count.get(topics.STATE, most) < most:
        yield (
            f"topic {topics.STATE} has {count[topics.STATE]} partitions and needs {most}; "
            "raise them with kafka-topics.sh --alter --partitions"
        )


def _losing(settings: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Topics that would not keep what is in them."""
    for name, found in settings.items():
        policy = found["cleanup.policy"]
        if name == topics.STATE and policy != "compact":
            yield f"topic {name} has cleanup.policy {policy}, under which snapshots get lost; set it to compact"
        if name != topics.STATE and "compact" in policy:
            yield (
                f"topic {name} has cleanup.policy {policy}, under which only the newest message of a key is kept, and "
                "rows get lost; set it to delete"
            )


def _moved(
    process: Process, counts: Mapping[str, int], snapshots: Mapping[str, Mapping[int, Snapshot]]
) -> Iterator[str]:
    """Topics with another number of partitions than the state of the stages that read them was made with."""
    for stage in sorted(set(process.stages)):
        owner, topic = f"{process.group}-{stage}", _READ_TOGETHER[stage][0]
        # it is the same in all of them
        for snapshot in [*snapshots.get(owner, {}).values()][:1]:
            if counts.get(topic, snapshot.partitions) != snapshot.partitions:
                yield another_number(topic, counts[topic], owner, snapshot.partitions)


def _rivals(
    process: Process, topic_ids: Mapping[str, str | None], snapshots: Mapping[str, Mapping[int, Snapshot]]
) -> Iterator[str]:
    """Topics that another group books, and this one does not; once made anew, they are topics that nobody books."""
    for stage in sorted(set(process.stages)):
        own = f"{process.group}-{stage}"
        held: dict[str, set[str]] = defaultdict(set)
        for topic in topic_ids.keys() & set(_READ_TOGETHER[stage]):
            owners = {
                owner
                for owner in snapshots
                if owner.endswith(f"-{stage}") and _is_of(owner, own, snapshots, topic, topic_ids[topic])
            }
            if own not in owners:
                for owner in owners:
                    held[owner.removesuffix(f"-{stage}")].add(topic)
        for group, booked in sorted(held.items()):
            what = " and ".join(sorted(booked))
            mend = _set_back(process, stage, snapshots)
            # to make the topics anew changes nothing where that is not noticed
            if stage == "meter" and None not in topic_ids.values():
                mend += (
                    ', or, where another group is meant, go on as docs/architecture.md says under "The number of '
                    'partitions"'
                )
            yield (
                f"process.group {process.group} has no state of {what} in {topics.STATE}, and group {group} has: all "
                f"that it books would be booked a second time; {mend}"
            )


def _heirs(
    process: Process, topic_ids: Mapping[str, str | None], snapshots: Mapping[str, Mapping[int, Snapshot]]
) -> Iterator[str]:
    """Groups that had a stage after this one, whose state is of none of the topics of today."""
    # offsets would compare nothing where two groups have no partition in common
    newest_ms = {owner: max(s.written_ms for s in found.values()) for owner, found in snapshots.items()}
    for stage in sorted(set(process.stages)):
        own = f"{process.group}-{stage}"
        read = topic_ids.keys() & set(_READ_TOGETHER[stage])
        if own not in snapshots or any(
            _is_of(own, own, snapshots, topic, topic_ids[topic]) for topic in read
        ):
            continue
        for owner in sorted(snapshots):
            if owner.endswith(f"-{stage}") and newest_ms[owner] > newest_ms[own]:
                yield (
                    f"process.group {process.group} has in {topics.STATE} state of topics that are gone, and group "
                    f"{owner.removesuffix(f'-{stage}')} has had the {stage} since: all that it has booked would be booked "
                    f"a second time, as what was gained in a gap; {_set_back(process, stage, snapshots)}, or give it a "
                    "name that no group has had"
                )


def _set_back(process: Process, stage: str, snapshots: Collection[str]) -> str:
    """How a stage gets the group it had, where this one may be right for another stage of the process."""
    if any(other != stage and f"{process.group}-{other}" in snapshots for other in process.stages):
        alone = f'run the {stage} as a process of its own (process.stages = ["{stage}"])'
        return f"{alone} and set its process.group back"
    return "set process.group back"


def _is_of(
    owner: str, own: str, snapshots: Mapping[str, Mapping[int, Snapshot]], topic: str, topic_id: str | None
) -> bool:
    """Whether the owner's state is of the topic that has this id; it may be where nobody knows an id."""
    told = {snapshot.topic_ids.get(topic) for snapshot in snapshots[owner].values()}
    # State of before it told ids may be of a topic of before: it shuts out no group that has begun.
    return topic_id is None or topic_id in told or (told == {None} and (owner == own or own not in snapshots))


def _doubts(
    log: Log,
    counts: Mapping[str, int],
    copies: Mapping[str, int],
    settings: Mapping[str, Mapping[str, str]],
) -> Iterator[str]:
    """What is unlike the topics that Idlewatt creates, topics of one kind in one line."""
    unlike: dict[str, list[str]] = defaultdict(list)
    for name, count in counts.items():
        # the others' must not change, or matters to nobody
        if name in _READ_TOGETHER["meter"] and count != log.partitions:
            fault = f"{count} partitions, and log.partitions is {log.partitions}, which is for topics that are made anew"
            unlike[fault].append(name)
        if name == topics.STATE and count < log.partitions:
            unlike[f"{count} partitions, and log.partitions is {log.partitions}"].append(name)
        if copies[name] < log.replication_factor:
            fault = f"{copies[name]} replicas, and log.replication_factor is {log.replication_factor}"
            unlike[fault].append(name)
    for name, found in settings.items():
        ours = _configs(name, log.replication_factor)
        for key in ("retention.ms", "retention.bytes", "max.message.bytes"):
            # a retention of -1 has no end
            if key in ours and int(found[key]) >= 0 and not 0 <= int(ours[key]) <= int(found[key]):
                unlike[f"{key} {found[key]}, less than Idlewatt's {ours[key]}"].append(name)
    for fault, names in unlike.items():
        yield f"{', '.join(sorted(names))}: {fault}"
