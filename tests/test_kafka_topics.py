"""Topics that are there already: what of them a processor refuses, what it warns of, and what rights each part needs."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from idlewatt_command import idlewatt, wait_until
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.cluster import ClusterMetadata
from kafka.partitioner.default import murmur2
from kafka_broker import KafkaBroker
from stage_reader import StageReader
from structlog.testing import capture_logs

from idlewatt.stream import kafka_clients, topics
from idlewatt.stream.errors import ConfigError, LogUnavailableError, RewindError
from idlewatt.stream.kafka_appender import KafkaAppender
from idlewatt.stream.kafka_log import KafkaStageLog
from idlewatt.stream.kafka_offsets import ask_for_topics
from idlewatt.stream.kafka_reading import read_messages
from idlewatt.stream.kafka_snapshots import Snapshot, encode_chunks, snapshots_of
from idlewatt.stream.log import Commit, Record
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Process, Settings

pytestmark = pytest.mark.kafka
METER = (topics.GPU, topics.ENGINE)
ECONOMY = (topics.LEDGER, topics.USAGE)
KEYS = [topics.pool_key("site", f"rack-{i}") for i in range(16)]


def partition_of(key: bytes, partitions: int) -> int:
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def environment(log: dict[str, Any], group: str, tmp_path: Path) -> dict[str, str]:
    return {f"IDLEWATT_LOG__{key.upper()}": str(value) for key, value in log.items()} | {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__PARTITIONS": "4",
        "IDLEWATT_PROCESS__GROUP": group,
        "IDLEWATT_COLLECT__GPU": "none",
        "IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool"),
        "IDLEWATT_PORT": "0",
    }


@pytest.fixture
def meter(fresh_topics: Settings) -> Iterator[StageReader]:
    """A member of the meter's group that has committed a state of each of four partitions."""
    reader = StageReader(KafkaStageLog(fresh_topics.log, fresh_topics.process.group, "meter", METER))
    reader.until_assigned(4)
    reader.commit(b"state")
    yield reader
    reader.log.close()


def test_another_number_of_partitions_is_refused_at_the_start(
    kafka_broker: KafkaBroker, fresh_topics: Settings, meter: StageReader, tmp_path: Path
) -> None:
    """Pools would be booked in their old partition and in the new one: exit code 2 with both numbers, in doctor too."""
    prepare(fresh_topics)
    kafka_broker.raise_partitions(8, topics.GPU, topics.ENGINE, topics.STATE)
    env = environment(
        {"bootstrap_servers": fresh_topics.log.bootstrap_servers}, fresh_topics.process.group, tmp_path
    )
    says = (
        f"topic idlewatt.gpu has 8 partitions, and the state of {fresh_topics.process.group}-meter in idlewatt.state "
        "was made with 4: "
    )
    ended = idlewatt("process", env=env)
    assert ended.returncode == 2
    assert f"idlewatt: {says}" in ended.stderr
    assert "docs/architecture.md" in ended.stderr
    assert f"FAIL  log      {says}" in idlewatt("doctor", env=env).stdout
    # to collect, or to keep the economy's books, nothing is wrong
    prepare(fresh_topics, process=False)
    economy = fresh_topics.process.model_copy(update={"stages": ("economy",)})
    prepare(fresh_topics.model_copy(update={"process": economy}))


def test_an_economy_whose_topics_were_raised_goes_on_as_it_is_told(
    kafka_broker: KafkaBroker, fresh_topics: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With usage made anew it has its state; with the ledger raised, the offsets of its group: no message comes twice."""
    monkeypatch.setattr(KafkaStageLog, "_STALE_S", 1.0)
    sites = [b"site-%d" % n for n in range(12)]

    def reads(value: bytes, state: bytes | None, partitions: int = 4) -> None:
        log = fresh_topics.log.model_copy(update={"partitions": partitions})
        prepare(fresh_topics.model_copy(update={"log": log}))
        append(fresh_topics, *(Record(topic, site, value + site) for site in sites for topic in ECONOMY))
        reader = StageReader(KafkaStageLog(fresh_topics.log, fresh_topics.process.group, "economy", ECONOMY))
        reader.until(lambda: len(reader.messages) >= 2 * len(sites))
        reader.until_assigned_and_caught_up()
        assert sorted(m.value for m in reader.messages) == sorted(2 * [value + site for site in sites])
        assert set(reader.snapshots.values()) == {state}
        reader.commit(b"state")
        reader.log.close()

    reads(b"before ", None)
    kafka_broker.raise_partitions(8, topics.USAGE, topics.STATE)
    with pytest.raises(ConfigError, match=r"make idlewatt\.usage anew with 4 as docs/architecture\.md says"):
        prepare(fresh_topics)
    delete(kafka_broker, topics.USAGE)
    reads(b"with usage anew ", b"state")
    kafka_broker.raise_partitions(8, *ECONOMY)
    with pytest.raises(
        ConfigError, match=r"idlewatt\.ledger has 8 .* was made with 4: .*docs/architecture\.md"
    ):
        prepare(fresh_topics)
    delete(kafka_broker, topics.STATE)
    reads(b"with the ledger raised ", None, partitions=8)


def of_group(settings: Settings, group: str, *stages: str) -> Settings:
    process = settings.process.model_dump() | {"group": group, "stages": stages or settings.process.stages}
    return settings.model_copy(update={"process": Process.model_validate(process)})


@pytest.fixture
def booked(fresh_topics: Settings, meter: StageReader) -> Settings:
    """Topics of which a meter has booked sixteen messages, each of its partitions some."""
    append(fresh_topics, *(Record(topics.GPU, key, key) for key in KEYS))
    meter.until_values(set(KEYS))
    meter.commit(b"state")
    return fresh_topics


def append(settings: Settings, *records: Record) -> None:
    appender = KafkaAppender(settings.log, "test")
    appender.append(records)
    appender.close()


def test_another_group_does_not_book_everything_again(booked: Settings, tmp_path: Path) -> None:
    """It would read from the beginning into the same ledger: exit code 2 with both groups, and nothing is written."""
    env = environment({"bootstrap_servers": booked.log.bootstrap_servers}, "trial", tmp_path)
    says = (
        "process.group trial has no state of idlewatt.engine and idlewatt.gpu in idlewatt.state, and group "
        f"{booked.process.group} has: all that it books would be booked a second time; set process.group back"
    )
    before = [list(read_messages(booked.log, topic)) for topic in topics.ALL]
    ended = idlewatt("process", env=env)
    assert ended.returncode == 2
    assert f"idlewatt: {says}" in ended.stderr
    assert "docs/architecture.md" in ended.stderr
    assert [list(read_messages(booked.log, topic)) for topic in topics.ALL] == before
    # its settings may be those of a collector, which has no use for a group
    doctor = idlewatt("doctor", env=env)
    assert (doctor.returncode, f"warn  log      {says}" in doctor.stdout) == (0, True)
    prepare(of_group(booked, "trial"), process=False)
    # nobody has booked what an economy reads
    prepare(of_group(booked, "trial", "economy"))
    prepare(booked)


def test_another_group_is_refused_from_the_first_state_on(fresh_topics: Settings, meter: StageReader) -> None:
    """Though nothing has come yet: whatever comes would be read by both."""
    with pytest.raises(ConfigError, match="would be booked a second time"):
        prepare(of_group(fresh_topics, "other"))


def test_another_group_of_the_economy_is_told_to_go_back(fresh_topics: Settings) -> None:
    """It would price the whole ledger again, so that there is no way to have one."""
    reader = StageReader(KafkaStageLog(fresh_topics.log, "priced", "economy", ECONOMY))
    reader.until_assigned(4)
    reader.commit(b"state")
    reader.log.close()
    with pytest.raises(ConfigError, match=r"group priced has.* set process\.group back$"):
        prepare(of_group(fresh_topics, "other", "economy"))


def test_a_group_that_has_begun_may_grow(booked: Settings) -> None:
    """Of partitions that only another group has booked, another member may come to have a state still."""
    begun = of_group(booked, "begun")
    reader = StageReader(KafkaStageLog(begun.log, "begun", "meter", METER))
    reader.until_assigned(4)
    reader.log.commit(Commit([], {2: b"state"}, {}))
    reader.log.close()
    prepare(begun)


def test_another_group_may_begin_where_nothing_is_booked_twice(
    kafka_broker: KafkaBroker, booked: Settings
) -> None:
    """Topics that were made anew hold nothing of what was booked, however much has come since."""
    delete(kafka_broker, *METER)
    anew = of_group(booked, "anew")
    prepare(anew)
    append(booked, *(Record(topics.GPU, key, key) for key in 2 * KEYS))
    prepare(anew)
    # and once it books what is in them, the group of before is another one
    reader = StageReader(KafkaStageLog(anew.log, "anew", "meter", METER))
    reader.until_assigned(4)
    reader.commit(b"state")
    reader.log.close()
    prepare(anew)
    with pytest.raises(ConfigError, match="group anew has: all that it books would be booked a second time"):
        prepare(booked)


@pytest.mark.parametrize(("stage", "inputs"), [("meter", METER), ("economy", ECONOMY)])
def test_a_group_that_another_one_came_after_is_not_let_back(
    kafka_broker: KafkaBroker, fresh_topics: Settings, stage: str, inputs: tuple[str, str]
) -> None:
    """Its readings are of before: it would book as its gap what the other has booked, in whatever partitions that was.

    One that nobody came after goes on, and so does one that is new.
    """
    for group, partitions in (("first", (0, 1)), ("second", (2, 3))):
        prepare(of_group(fresh_topics, group, stage))
        reader = StageReader(KafkaStageLog(fresh_topics.log, group, stage, inputs))
        reader.until_assigned(4)
        reader.log.commit(Commit([], dict.fromkeys(partitions, b"state"), {}))
        reader.log.close()
        delete(kafka_broker, *inputs)
    with pytest.raises(
        ConfigError, match=rf"group second has had the {stage} since.* a name that no group has had$"
    ):
        prepare(of_group(fresh_topics, "first", stage))
    prepare(of_group(fresh_topics, "first", "economy" if stage == "meter" else "meter"))
    prepare(of_group(fresh_topics, "third", stage))
    prepare(of_group(fresh_topics, "second", stage))


def test_stages_whose_groups_differ_are_told_to_run_apart(
    kafka_broker: KafkaBroker, booked: Settings, meter: StageReader
) -> None:
    """Whichever group's name both of them got, one of the two would be refused under it."""
    meter.log.close()
    first, second = booked.process.group, "second"
    reader = StageReader(KafkaStageLog(booked.log, first, "economy", ECONOMY))
    reader.until_assigned(4)
    reader.commit(b"state")
    reader.log.close()
    delete(kafka_broker, *METER)
    prepare(of_group(booked, second, "meter"))
    reader = StageReader(KafkaStageLog(booked.log, second, "meter", METER))
    reader.until_assigned(4)
    reader.commit(b"state")
    reader.log.close()
    for group, stage in ((first, "meter"), (second, "economy")):
        mend = rf"run the {stage} as a process of its own .*\[\"{stage}\"\]\) and set its process\.group back"
        with pytest.raises(ConfigError, match=mend):
            prepare(of_group(booked, group))
    delete(kafka_broker, *METER)
    with pytest.raises(ConfigError, match=r"had the meter since.* run the meter as a process of its own"):
        prepare(booked)
    prepare(of_group(booked, first, "economy"))
    prepare(of_group(booked, second, "meter"))


def test_another_group_is_refused_where_one_of_its_topics_was_not_made_anew(
    kafka_broker: KafkaBroker, booked: Settings
) -> None:
    """Engines' tokens would be booked a second time, beside the first ones of GPUs."""
    delete(kafka_broker, topics.GPU)
    with pytest.raises(ConfigError, match=r"no state of idlewatt\.engine in idlewatt\.state"):
        prepare(of_group(booked, "anew"))


def test_a_group_that_has_begun_is_not_shut_out_by_one_that_told_no_ids(
    kafka_broker: KafkaBroker, booked: Settings
) -> None:
    """One of long ago, whose state of topics before is still there; another group is."""
    places = {topics.GPU: 9, topics.ENGINE: 9}
    producer = kafka_clients.open_producer(booked.log, "test", 10_000)
    for key, value in encode_chunks("retired-meter", 0, Snapshot(b"state", places, 4, {})):
        producer.send(topics.STATE, value=value, key=key, partition=0).get(10)
    producer.close(1)
    delete(kafka_broker, topics.GPU)
    prepare(booked)
    with pytest.raises(ConfigError, match="group retired has"):
        prepare(of_group(booked, "other"))


def tell_no_ids(monkeypatch: pytest.MonkeyPatch, metadata_version: int) -> None:
    """The broker is one of before Kafka 2.8, whose answers have no place for them, or a later one that runs as those."""
    if metadata_version < 10:
        real = kafka_clients.connection_options
        older = {"api_version": (2, 7)}
        monkeypatch.setattr(kafka_clients, "connection_options", lambda log: real(log) | older)
        return
    described = KafkaAdminClient.describe_topics
    monkeypatch.setattr(
        KafkaAdminClient,
        "describe_topics",
        lambda *a, **k: [{**topic, "topic_id": None} for topic in described(*a, **k)],
    )
    monkeypatch.setattr(ClusterMetadata, "topic_id", lambda *_: None)


@pytest.mark.parametrize("metadata_version", [9, 10])
@pytest.mark.parametrize("has_told", [True, False])
def test_another_group_is_refused_where_brokers_tell_no_ids(
    kafka_broker: KafkaBroker,
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
    has_told: bool,
    metadata_version: int,
) -> None:
    """Whether they told some when the state was written or not; and the one that has begun is not."""
    if not has_told:
        tell_no_ids(monkeypatch, metadata_version)
    reader = StageReader(KafkaStageLog(fresh_topics.log, fresh_topics.process.group, "meter", METER))
    reader.until_assigned(4)
    reader.commit(b"state")
    reader.log.close()
    if has_told:
        tell_no_ids(monkeypatch, metadata_version)
    for is_made_anew in (False, True):
        if is_made_anew:
            # which nobody can notice
            delete(kafka_broker, *METER)
        # there is no way to have another one
        with pytest.raises(ConfigError, match=r"no state of idlewatt\.engine .* set process\.group back$"):
            prepare(of_group(fresh_topics, "other"))
        prepare(fresh_topics)


@pytest.mark.parametrize("metadata_version", [9, 10])
def test_brokers_that_tell_no_ids_are_told_of_once(
    fresh_topics: Settings, monkeypatch: pytest.MonkeyPatch, metadata_version: int
) -> None:
    """A topic that is made anew would be read on in silence where the one before was read to."""
    tell_no_ids(monkeypatch, metadata_version)
    with capture_logs() as logged:
        prepare(fresh_topics)
    ((event, level, found),) = [(line["event"], line["log_level"], line["found"]) for line in logged]
    assert (event, level) == ("topic_settings", "warning")
    assert "tell no topic ids: a topic that is deleted and made anew is not noticed" in found


def delete(broker: KafkaBroker, *names: str) -> None:
    with broker.admin() as admin:
        admin.delete_topics(list(names))
        wait_until(lambda: not set(names) & set(admin.list_topics()), "they are deleted")


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("messages", [1, 80])
def test_a_topic_that_is_made_anew_is_read_from_its_first_message(
    kafka_broker: KafkaBroker, booked: Settings, meter: StageReader, messages: int, is_running: bool
) -> None:
    """By the same group, with the state it has, and each message once, whether it ends behind where it was read to."""
    if not is_running:
        meter.log.close()
    new = [Record(topics.GPU, KEYS[n % 16], b"new %d" % n) for n in range(messages)]
    with capture_logs() as logged:
        delete(kafka_broker, topics.GPU)
        prepare(booked)
        append(booked, *new)
        meter.messages = []
        if is_running and messages == 80:
            # the client reads on in it where it stands, until it hears of it, which takes up to five minutes
            meter.until(lambda: bool(meter.messages))
            ask_for_topics(meter.log._consumer, 10_000)  # type: ignore[attr-defined]
            with pytest.raises(RewindError, match="was made anew"):
                meter.commit(b"wrong")
        if not is_running:
            meter.log = KafkaStageLog(booked.log, booked.process.group, "meter", METER)
        read = {record.value for record in new}
        meter.until_values(read)
    assert set(meter.snapshots.values()) == {b"state"}
    told = {(line["topic"], line["partition"]) for line in logged if line["event"] == "topic_made_anew"}
    assert told == {(topics.GPU, n) for n in range(4)}
    # and goes on from there
    meter.commit(b"after")
    meter.log.close()
    heir = StageReader(KafkaStageLog(booked.log, booked.process.group, "meter", METER))
    append(booked, Record(topics.GPU, KEYS[0], b"last"))
    heir.until_values({b"last"})
    heir.log.close()


def test_a_group_whose_state_was_deleted_is_none(booked: Settings) -> None:
    """Whether the topic was compacted since or not."""
    with pytest.raises(ConfigError, match="would be booked a second time"):
        prepare(of_group(booked, "other"))
    producer = kafka_clients.open_producer(booked.log, "test", 10_000)
    for n in range(4):
        producer.send(topics.STATE, key=f"{booked.process.group}-meter/{n}/0".encode(), partition=n).get(10)
    producer.close(1)
    prepare(of_group(booked, "other"))


def test_what_is_no_snapshot_says_no_number(kafka_broker: KafkaBroker, fresh_topics: Settings) -> None:
    """It is no reason to refuse topics with more partitions."""
    append(fresh_topics, Record(topics.STATE, b"of others", b"short"))
    kafka_broker.raise_partitions(8, topics.GPU, topics.ENGINE, topics.STATE)
    assert snapshots_of(fresh_topics.log, [f"{fresh_topics.process.group}-meter"], {}) == ({}, None)
    prepare(fresh_topics)


def test_partitions_added_while_it_runs_stay_unread(
    kafka_broker: KafkaBroker, fresh_topics: Settings, meter: StageReader
) -> None:
    """What comes to them is booked nowhere, which is said; the others are read on, and nothing ends."""

    def is_told() -> bool:
        # by itself the client looks every five minutes
        meter.log._consumer._client.cluster.request_update()  # type: ignore[attr-defined]
        return any(line["event"] == "partitions_added" for line in logged)

    with capture_logs() as logged:
        kafka_broker.raise_partitions(8, *METER, topics.STATE)
        meter.until(is_told)
        append(fresh_topics, *(Record(topic, key, b"a " + key) for key in KEYS for topic in METER))
        stay = [key for key in KEYS if partition_of(key, 8) < 4]
        meter.until(lambda: len(meter.messages) == 2 * len(stay))
        for _ in range(10):
            meter.poll()
    assert {m.value for m in meter.messages} == {b"a " + key for key in stay}
    assert meter.snapshots.keys() == {0, 1, 2, 3}
    (said,) = [line for line in logged if line["event"] == "partitions_added"]
    assert (said["log_level"], said["partitions"], said["unread"]) == ("error", 4, [4, 5, 6, 7])
    meter.commit(b"on")
    owner = f"{fresh_topics.process.group}-meter"
    found, _ = snapshots_of(fresh_topics.log, [owner], {})
    assert {snapshot.partitions for snapshot in found[owner].values()} == {4}


def test_a_member_that_starts_in_the_moment_of_the_change_books_nothing(
    kafka_broker: KafkaBroker, fresh_topics: Settings, meter: StageReader
) -> None:
    """The start found as many as before, the first poll finds more: it says so again and again, and does not end."""
    meter.log.close()
    kafka_broker.raise_partitions(8, *METER, topics.STATE)
    late = StageReader(KafkaStageLog(fresh_topics.log, fresh_topics.process.group, "meter", METER))
    for _ in range(2):
        with pytest.raises(LogUnavailableError, match=r"idlewatt\.gpu has 8 partitions.* was made with 4"):
            late.until(lambda: False)
    late.log.close()


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


def test_a_brokers_bound_by_size_is_none_of_the_topics(
    kafka_broker: KafkaBroker, fresh_topics: Settings
) -> None:
    """A ledger that is cut off at the broker's `log.retention.bytes` would lose its oldest months."""
    prepare(fresh_topics)
    with kafka_broker.admin() as admin:
        asked = [ConfigResource("topic", name) for name in topics.ALL]
        found = admin.describe_configs(asked, config_filter="modified")["topic"]
    own = {name: configs.get("retention.bytes", {}).get("value") for name, configs in found.items()}
    assert own == {**dict.fromkeys(topics.ALL, "-1"), topics.STATE: None}


def test_topics_unlike_ours_are_told(
    kafka_broker: KafkaBroker, fresh_topics: Settings, tmp_path: Path
) -> None:
    """What keeps less, takes less, has fewer copies or partitions of another number, is a warning, in doctor too.

    Not of partitions of what the economy has begun to read: who raised those could not go on.
    """
    with capture_logs() as logged:
        prepare(fresh_topics)
    assert logged == []
    week_ms = str(7 * 86_400_000)
    configure(kafka_broker, topics.LEDGER, retention_ms=week_ms)
    configure(kafka_broker, topics.MONEY, retention_ms="-1", retention_bytes="1073741824")
    configure(kafka_broker, topics.GPU, max_message_bytes="1048588")
    configure(kafka_broker, topics.ENGINE, max_message_bytes="1048588")
    kafka_broker.raise_partitions(8, topics.STATE)
    asked = {"bootstrap_servers": fresh_topics.log.bootstrap_servers, "replication_factor": 3}
    with capture_logs() as logged:
        prepare(kafka_broker.settings(log=asked | {"partitions": 6}))
    less = [
        "idlewatt.engine, idlewatt.gpu: max.message.bytes 1048588, less than Idlewatt's 33554432",
        f"idlewatt.ledger: retention.ms {week_ms}, less than Idlewatt's {400 * 86_400_000}",
        "idlewatt.money: retention.bytes 1073741824, less than Idlewatt's -1",
    ]
    all_seven = ", ".join(sorted(topics.ALL))
    copies = f"{all_seven}: 1 replicas, and log.replication_factor is 3"
    assert sorted(line["found"] for line in logged) == sorted(
        [
            *less,
            copies,
            "idlewatt.engine, idlewatt.gpu: 4 partitions, and log.partitions is 6, which is for topics "
            "that are made anew",
        ]
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
        append(settings, *(Record(topic, b"key", b"value") for topic in topics.RAW))
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
    for rights, says in (
        ({}, "DESCRIBE_CONFIGS and READ"),
        ({f"TOPIC {topics.STATE}": ["WRITE", "DESCRIBE_CONFIGS"]}, "DESCRIBE_CONFIGS and READ"),
    ):
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
