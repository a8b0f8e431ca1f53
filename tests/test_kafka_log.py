"""What only the log in Kafka promises: shared partitions, fencing, and brokers that come and go."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from idlewatt_command import wait_until
from kafka.errors import CommitFailedError, GroupAuthorizationFailedError
from kafka.partitioner.default import murmur2
from kafka_broker import KafkaBroker
from stage_reader import StageReader
from structlog.testing import capture_logs

from idlewatt.stream import kafka_clients, kafka_log, kafka_snapshots, kafka_transactions, topics
from idlewatt.stream.errors import ConfigError, LogUnavailableError, RewindError
from idlewatt.stream.kafka_appender import KafkaAppender
from idlewatt.stream.kafka_assignor import CopartitionedAssignor
from idlewatt.stream.kafka_clients import OffsetAndMetadata, TopicPartition
from idlewatt.stream.kafka_log import KafkaStageLog
from idlewatt.stream.kafka_reading import read_messages
from idlewatt.stream.kafka_snapshots import Snapshot, SnapshotRestore
from idlewatt.stream.kafka_topics import create_topics
from idlewatt.stream.log import Commit, Record
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Log, Settings

pytestmark = pytest.mark.kafka
METER = (topics.GPU, topics.ENGINE)
PARTITIONS = {0, 1, 2, 3}
TLS = Path(__file__).parent / "testdata" / "tls"
THE_TRUTH: Any = object()
OpenMember = Callable[..., StageReader]


@pytest.fixture
def open_member(fresh_topics: Settings) -> Iterator[OpenMember]:
    """Opens members of the meter's group, and closes all of them at the end."""
    opened: list[StageReader] = []

    def open_one(instance: str | None = None) -> StageReader:
        log = KafkaStageLog(fresh_topics.log, fresh_topics.process.group, "meter", METER, instance)
        opened.append(StageReader(log))
        return opened[-1]

    yield open_one
    for reader in opened:
        reader.log.close()


@pytest.fixture
def append(fresh_topics: Settings) -> Iterator[Callable[..., None]]:
    """Appends one message for each pool to the GPU and the engine topic, eight pools over all partitions."""
    appender = KafkaAppender(fresh_topics.log, "test")

    def append(name: str = "") -> None:
        appender.append(
            [
                Record(topic, topics.pool_key("site", f"rack-{i}"), f"{name}{topic}/{i}".encode())
                for i in range(8)
                for topic in METER
            ]
        )

    yield append
    appender.close()


def sent(name: str = "") -> set[bytes]:
    return {f"{name}{topic}/{i}".encode() for i in range(8) for topic in METER}


def poll_all(
    members: list[StageReader], condition: Callable[[], bool], timeout_s: float = 40.0, pause_s: float = 0.0
) -> None:
    """Poll members in turn until the condition holds, with a pause after each; a rebalance needs all of them."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "\n".join(member.state() for member in members)
        for member in members:
            member.poll(0.1)
            time.sleep(pause_s)


def ledger(*values: str) -> tuple[Record, ...]:
    return tuple(Record(topics.LEDGER, b"site", value.encode()) for value in values)


def in_ledger(settings: Settings) -> list[bytes]:
    return sorted(message.value for message in read_messages(settings.log, topics.LEDGER))


def commit_what_was_read(member: StageReader) -> None:
    """Book every message that was read, and remember how many."""
    rows = tuple(Record(topics.LEDGER, b"site", message.value) for message in member.messages)
    member.commit(b"%d" % len(rows), rows)
    member.messages.clear()


def kafka_threads() -> set[str]:
    return {
        thread.name for thread in threading.enumerate() if "kafka" in thread.name or "network" in thread.name
    }


def test_two_members_share_the_partitions(open_member: OpenMember, append: Callable[..., None]) -> None:
    """Each partition has one owner, who gets it of both topics."""
    first, second = open_member(), open_member()
    first.until_assigned(4)
    poll_all([first, second], lambda: bool(second.snapshots) and len(first.snapshots) == 2)
    assert first.snapshots.keys() | second.snapshots.keys() == PARTITIONS
    assert not first.snapshots.keys() & second.snapshots.keys()
    append()
    poll_all([first, second], lambda: len(first.messages) + len(second.messages) == 16)
    assert {m.value for m in first.messages + second.messages} == sent()
    for member in (first, second):
        pools = [{m.value.partition(b"/")[2] for m in member.messages if m.topic == topic} for topic in METER]
        assert pools[0] == pools[1] != set()


def test_an_answer_between_two_polls_ends_a_rebalance(
    open_member: OpenMember, append: Callable[..., None]
) -> None:
    """Members that are polled now and then, as on a machine that is busy, do not join again and again."""
    members = [open_member(), open_member()]
    members[0].until_assigned(4)
    poll_all(members, lambda: all(len(member.snapshots) == 2 for member in members), pause_s=0.035)
    append()
    poll_all(
        members, lambda: {m.value for member in members for m in member.messages} == sent(), pause_s=0.035
    )
    # the first of one member, that of both, and that in which one gives up what the other gets
    assert [generation_of(member) for member in members] == [3, 3]


def test_a_member_that_begins_anew_gets_its_partitions_whenever_its_polls_end(
    open_member: OpenMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a right that was taken away: it joins before it knows the topics, and as soon as it does once more."""
    member = open_member()
    member.until_assigned(4)
    member.commit(b"before")
    assign = CopartitionedAssignor.assign

    def refuse(*args: Any) -> Any:
        raise GroupAuthorizationFailedError

    def assign_for_longer_than_a_poll(*args: Any) -> Any:
        time.sleep(0.3)
        return assign(*args)

    monkeypatch.setattr(member.log._consumer, "poll", refuse)  # type: ignore[attr-defined]
    monkeypatch.setattr(CopartitionedAssignor, "assign", assign_for_longer_than_a_poll)
    with pytest.raises(LogUnavailableError):
        member.poll()

    def is_back() -> bool:
        with suppress(LogUnavailableError):
            member.poll()
        return [*member.snapshots.values()] == 4 * [b"before"]

    wait_until(is_back, "it has its partitions again")
    member.commit(b"goes on")


def test_a_restore_that_waits_holds_up_nothing_else(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """A processor that died in a commit leaves a transaction open: the partition waits for it, and the others are read,
    also when one more member comes meanwhile."""
    dead = kafka_clients.open_producer(fresh_topics.log, "dead", 10_000, "dead")
    dead.init_transactions()
    dead.begin_transaction()
    dead.send(topics.STATE, b"x", b"other/0/0", partition=0).get(5)
    members = [open_member(), open_member()]
    stop = threading.Event()

    def follow(member: StageReader) -> None:
        while not stop.is_set():
            member.poll(0.25)

    def held() -> list[int]:
        return [n for member in members for n in member.snapshots]

    threads = [threading.Thread(target=follow, args=(member,)) for member in members]
    try:
        threads[0].start()
        wait_until(lambda: sorted(held()) == [1, 2, 3], "all but the one that waits", 20)
        threads[1].start()
        wait_until(lambda: members[1].snapshots, "the other has some", 15)
        append()
        healthy = 2 * len(pools_but_of(0))
        wait_until(lambda: sum(len(member.messages) for member in members) >= healthy, "they are read", 5)
        dead.abort_transaction()
        wait_until(lambda: sorted(held()) == [0, 1, 2, 3], "the last is restored", 15)
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(20)
        dead.close(0.5)


def pools_but_of(partition: int) -> list[str]:
    """Those that append() sends to the other partitions."""
    keys = {f"rack-{i}": topics.pool_key("site", f"rack-{i}") for i in range(8)}
    return [pool for pool, key in keys.items() if (murmur2(key) & 0x7FFFFFFF) % 4 != partition]


def generation_of(member: StageReader) -> int:
    consumer = member.log._consumer  # type: ignore[attr-defined]
    found: int = consumer.group_metadata().generation_id
    return found


def test_what_a_collector_sends_is_cut_out_by_us(open_member: OpenMember, fresh_topics: Settings) -> None:
    """As the broker keeps it, with the time of its arrival: kafka-python takes five times as long over it."""
    member = open_member()
    member.until_assigned(4)
    appender = KafkaAppender(fresh_topics.log, "test")
    appender.append([Record(topics.GPU, topics.pool_key("site", "rack-0"), b"value" * 100)])
    appender.close()
    poll_all([member], lambda: bool(member.messages))
    (found,) = member.messages
    assert found.value == b"value" * 100
    assert len(found.packed) < 100


def test_partitions_and_snapshots_follow_a_member_that_leaves(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """What a member committed before it closed is handed to the other with its partitions, and booked once."""
    first, second = open_member(), open_member()
    append("a ")
    poll_all([first, second], lambda: len(first.snapshots) == 2 and len(second.snapshots) == 2)
    poll_all([first, second], lambda: len(first.messages) + len(second.messages) == 16)
    for member, state in ((first, b"first's"), (second, b"second's")):
        member.commit(state, ledger(*(m.value.decode() for m in member.messages)))
    firsts = set(first.snapshots)
    append("b ")
    poll_all([first, second], lambda: len(first.messages) + len(second.messages) == 32)
    first.log.close()

    second.messages = [message for message in second.messages if message.value.startswith(b"b ")]
    second.until_assigned(4)
    assert {n: second.snapshots[n] for n in firsts} == dict.fromkeys(firsts, b"first's")
    second.until_values(sent("b "))
    second.commit(b"2", ledger(*(m.value.decode() for m in second.messages)))
    assert in_ledger(fresh_topics) == sorted(sent("a ") | sent("b "))


def test_members_come_and_go_and_each_message_counts_once(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """Through rebalances at any moment, with commits that fail in them, the ledger has every message once."""
    members = [open_member()]
    for i in range(6):
        append(f"{i} ")
        if i in (1, 2):
            members.append(open_member())
        if i in (3, 4):
            members.pop(0).log.close()
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            for member in members:
                member.poll(0.05)
                if member.messages:
                    try:
                        commit_what_was_read(member)
                    except RewindError:
                        continue
    everything = sorted(set[bytes]().union(*(sent(f"{i} ") for i in range(6))))
    deadline = time.monotonic() + 40
    while len(in_ledger(fresh_topics)) < len(everything):
        assert time.monotonic() < deadline
        for member in members:
            member.poll(0.2)
            if member.messages:
                commit_what_was_read(member)
    assert in_ledger(fresh_topics) == everything


def test_a_second_process_of_the_same_instance_fences_the_first(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """The first one's commit rewinds and leaves nothing behind; the second books each message once."""
    first, second = open_member("one"), open_member("one")
    append()
    first.until_values(sent())
    second.until_values(sent())
    with pytest.raises(RewindError):
        commit_what_was_read(first)
    # the fenced producer of the first may have torn the second's transaction down with it, once
    for _ in range(3):
        try:
            commit_what_was_read(second)
            break
        except RewindError:
            second.until_values(sent())
    assert in_ledger(fresh_topics) == sorted(sent())


def test_a_member_that_hung_cannot_commit(
    open_member: OpenMember,
    append: Callable[..., None],
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member that did not poll for too long has lost its partitions: its commit rewinds, its output is not there."""
    monkeypatch.setattr(kafka_clients, "_MAX_POLL_INTERVAL_MS", 3000)
    hung, other = open_member(), open_member()
    append()
    hung.until_values(sent())
    monkeypatch.undo()
    other.until_values(sent())
    with pytest.raises(RewindError):
        commit_what_was_read(hung)
    commit_what_was_read(other)
    assert in_ledger(fresh_topics) == sorted(sent())
    poll_all([hung, other], lambda: len(hung.snapshots) == 2 and len(other.snapshots) == 2)


COMMIT_AND_DIE = """
    import os, signal, sys
    from idlewatt.stream import kafka_clients
    from idlewatt.stream.kafka_log import KafkaStageLog
    from idlewatt.stream.log import Commit, Record
    from idlewatt.stream.settings import Log

    kafka_clients._TRANSACTION_TIMEOUT_MS = 2500
    log = KafkaStageLog(
        Log(kind="kafka", bootstrap_servers=sys.argv[1], session_timeout_s=3.5),
        sys.argv[2], "meter", ("idlewatt.gpu", "idlewatt.engine")
    )
    messages, mine = [], set()
    while len(messages) < 16:
        poll = log.poll(1.0)
        messages += poll.messages
        mine |= set(poll.assigned)
    log._producer.prepare()
    log._producer._producer.commit_transaction = lambda: os.kill(os.getpid(), signal.SIGKILL)
    records = [Record("idlewatt.ledger", b"site", b"of the dead")] * 20
    resume = {(m.topic, m.partition): m.offset + 1 for m in messages}
    log.commit(Commit(records, dict.fromkeys(mine, b"of the dead"), resume))
"""


def test_a_transaction_that_is_killed_did_not_happen(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """Killed after everything was written but the commit itself, neither output, state nor offsets remain."""
    append()
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(COMMIT_AND_DIE),
            fresh_topics.log.bootstrap_servers,
            fresh_topics.process.group,
        ],
        check=False,
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL
    heir = open_member()
    heir.until_assigned(4)
    assert set(heir.snapshots.values()) == {None}
    heir.until_values(sent())
    commit_what_was_read(heir)
    assert in_ledger(fresh_topics) == sorted(sent())


def test_offsets_of_an_aborted_transaction_do_not_leak(
    open_member: OpenMember,
    append: Callable[..., None],
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a commit of all partitions was refused, a commit of one of them moves only that one on."""
    member = open_member()
    append()
    member.until_values(sent())
    log = member.log
    assert isinstance(log, KafkaStageLog)
    membership = log._membership()
    of_no_generation = membership._replace(generation_id=membership.generation_id + 7)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(log, "_membership", lambda: of_no_generation)
        with pytest.raises(RewindError, match="CommitFailed"):
            commit_what_was_read(member)
    member.until_values(sent())
    only = member.messages[0].partition
    moved = {tp: offset for tp, offset in member.resume.items() if tp[1] == only}
    log.commit(Commit((), {only: b"moved"}, moved))
    log.close()

    group = f"{fresh_topics.process.group}-meter"
    with kafka_clients.open_admin(fresh_topics.log) as admin:
        committed = admin.list_group_offsets({group: None})[group]
    assert {tp.partition for tp in committed} == {only}
    heir = open_member()
    heir.until_assigned(4)
    assert {n: s for n, s in heir.snapshots.items() if s} == {only: b"moved"}
    heir.until_values({m.value for m in member.messages if m.partition != only})


def test_the_snapshot_says_where_to_read_on(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """When Kafka has forgotten the group's offsets, nothing is counted twice."""
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    commit_what_was_read(member)
    member.log.close()
    with kafka_clients.open_admin(fresh_topics.log) as admin:
        admin.delete_groups([f"{fresh_topics.process.group}-meter"])
    append("b ")
    heir = open_member()
    heir.until_values(sent("b "))


def test_a_snapshot_of_before_is_read_again(
    open_member: OpenMember,
    append: Callable[..., None],
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that does not know yet that another one leads now tells an end before the last commit."""
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    commit_what_was_read(member)
    member.log.close()
    partitions = fresh_topics.log.partitions
    lies = [
        None,
        Snapshot(b"of before", dict.fromkeys(METER, 0), partitions, {}),
        Snapshot(b"of topics before", dict.fromkeys(METER, 1000), partitions, dict.fromkeys(METER, "id")),
    ]

    class Told(SnapshotRestore):
        """Tells that nothing is there, then what was there first, then what is there."""

        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            self.lie = lies.pop(0) if lies else THE_TRUTH

        def step(self, timeout_s: float) -> dict[int, Snapshot | None]:
            found = super().step(timeout_s)
            return found if self.lie is THE_TRUTH else dict.fromkeys(found, self.lie)

    monkeypatch.setattr(kafka_log, "SnapshotRestore", Told)
    append("b ")
    heir = open_member()
    heir.until_values(sent("b "))
    assert not lies


def test_a_restore_ends_when_nothing_comes(fresh_topics: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long all of it takes; what comes to a partition that has been read to its end is not what it waits for."""
    now_s = [0.0]
    monkeypatch.setattr(kafka_snapshots, "_POLL_RECORDS", 1)
    monkeypatch.setattr(kafka_snapshots, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    others = kafka_clients.open_producer(fresh_topics.log, "others", 10_000)
    hangs = kafka_clients.open_producer(fresh_topics.log, "hangs", 10_000, "hangs")
    hangs.init_transactions()
    hangs.begin_transaction()
    hangs.send(topics.STATE, key=b"other", value=b"x", partition=1).get(10)
    for sent in [others.send(topics.STATE, key=b"other", value=b"x", partition=0) for _ in range(150)]:
        sent.get(10)
    restore = SnapshotRestore(fresh_topics.log, "reader", "group", frozenset({0, 1}))

    def wait_for_the_one_that_hangs() -> None:
        for _ in range(20):
            others.send(topics.STATE, key=b"other", value=b"x", partition=0).get(10)
            now_s[0] += 10
            restore.step(0.25)

    try:
        while not (found := restore.step(0.25)):
            now_s[0] += 1
        assert found == {0: None}
        with pytest.raises(LogUnavailableError, match=r"partitions \[1\] .* nothing has come for 120 s"):
            wait_for_the_one_that_hangs()
    finally:
        restore.close()
        hangs.abort_transaction()
        hangs.close(1)
        others.close(1)


def test_offsets_that_somebody_has_set_ahead_are_told_and_not_followed(
    open_member: OpenMember,
    append: Callable[..., None],
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state goes on from where it stands, after a while in which a newer snapshot might have come."""
    monkeypatch.setattr(KafkaStageLog, "_STALE_S", 1.0)
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    commit_what_was_read(member)
    resume = member.log._resume
    member.log.close()
    append("b ")
    with kafka_clients.open_admin(fresh_topics.log) as admin:
        ahead = {TopicPartition(*place): OffsetAndMetadata(at + 1, "", -1) for place, at in resume.items()}
        admin.alter_group_offsets(f"{fresh_topics.process.group}-meter", ahead)
    with capture_logs() as said:
        heir = open_member()
        heir.until_values(sent("b "))
    older = {line["partition"] for line in said if line["event"] == "snapshot_older_than_offsets"}
    assert older == PARTITIONS


def longest(member: StageReader) -> tuple[str, int]:
    """The partition of idlewatt.gpu of which most was read."""
    ends = {place: offset for place, offset in member.resume.items() if place[0] == topics.GPU}
    return max(ends, key=lambda place: ends[place])


def lose_the_last_batch(broker: KafkaBroker, topic: str, partition: int) -> None:
    """As one does that loses power."""
    broker.kill()
    segment = broker.folder / "data" / f"{topic}-{partition}" / f"{0:020d}.log"
    os.truncate(segment, segment.stat().st_size - 1)
    broker.start()


def test_what_kafka_lost_is_lost_once(
    kafka_broker: KafkaBroker,
    open_member: OpenMember,
    append: Callable[..., None],
) -> None:
    """A broker that lost power without the last messages that are in the state: it is not built up again from the first."""
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    place = longest(member)
    commit_what_was_read(member)
    member.log.close()
    lose_the_last_batch(kafka_broker, *place)
    with capture_logs() as said:
        heir = open_member()
        heir.until_assigned(4)
        append("b ")
        heir.until_values(sent("b "))
    lost = [line for line in said if line["event"] == "messages_lost_by_kafka"]
    assert [(line["topic"], line["partition"]) for line in lost] == [place]


def test_what_kafka_lost_under_a_running_processor_is_lost_once(
    kafka_broker: KafkaBroker, open_member: OpenMember, append: Callable[..., None]
) -> None:
    """One that has read nothing since it was restored is sent back to the first message by kafka-python."""
    before = open_member()
    append("a ")
    before.until_values(sent("a "))
    place = longest(before)
    commit_what_was_read(before)
    before.log.close()
    member = open_member()
    member.until_assigned_and_caught_up()
    lose_the_last_batch(kafka_broker, *place)
    with capture_logs() as said:
        lost: list[Any] = []
        deadline = time.monotonic() + 40
        while not lost:
            assert time.monotonic() < deadline, member.state()
            with suppress(LogUnavailableError):
                member.poll()
            lost = [line for line in said if line["event"] == "messages_lost_by_kafka"]
    assert [(line["topic"], line["partition"]) for line in lost] == [place]
    member.until_assigned(4)
    append("b ")
    member.until_values(sent("b "))


def test_a_commit_that_kafka_refuses_says_how_to_mend_it(open_member: OpenMember) -> None:
    """It is read again and refused again, for as long as nobody does."""
    member = open_member()
    member.until_assigned(4)
    with pytest.raises(RewindError, match=r"MessageSizeTooLarge.*raised"):
        member.commit(b"state", (Record(topics.LEDGER, b"site", bytes(topics.MAX_MESSAGE_BYTES + 1)),))


def test_messages_that_expire_under_a_running_processor_are_told(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """One that is too slow for the retention of its topics loses readings: how many, and where, is in the log."""
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    place, at = next((place, at) for place, at in member.resume.items() if place[0] == topics.GPU)
    with capture_logs() as said:
        # kafka-python fetches what comes first without being polled
        append("b ")
        append("c ")
        end = at + 2 * at
        with kafka_clients.open_admin(fresh_topics.log) as admin:
            admin.delete_records({kafka_clients.TopicPartition(*place): end - 1})
        member.until(lambda: any(line["event"] == "messages_expired_unread" for line in said))
    (told,) = [line for line in said if line["event"] == "messages_expired_unread"]
    came = {m.offset for m in member.messages if (m.topic, m.partition) == place}
    missing = set(range(end)) - came
    assert (told["topic"], told["partition"], told["messages"]) == (*place, len(missing))
    assert end - 1 in came


def test_a_slow_connection_leaves_time_to_append(
    fresh_topics: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a line where connecting takes as long as an append may, each try would close the connection it has made."""
    monkeypatch.setattr(KafkaAppender, "_APPEND_TIMEOUT_S", 1.5)

    def slowly(log: Log, needed: tuple[str, ...]) -> None:
        time.sleep(1.6)
        create_topics(log, needed)

    monkeypatch.setattr("idlewatt.stream.kafka_appender.create_topics", slowly)
    appender = KafkaAppender(fresh_topics.log, "test")
    appender.append([Record(topics.LEDGER, b"site", b"row")])
    appender.close()
    assert in_ledger(fresh_topics) == [b"row"]


def test_a_member_follows_a_broker_that_restarts(
    kafka_broker: KafkaBroker,
    open_member: OpenMember,
    append: Callable[..., None],
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While Kafka is away appending and polling fail by name in bounded time; afterwards all goes on by itself."""
    monkeypatch.setattr(KafkaAppender, "_DELIVERY_TIMEOUT_MS", 1500)
    monkeypatch.setattr(kafka_clients, "_BOOTSTRAP_TIMEOUT_MS", 1500)
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    commit_what_was_read(member)
    threads = kafka_threads()
    kafka_broker.stop()
    try:
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(LogUnavailableError, match=r"log\.bootstrap_servers"):
                append("lost ")
            assert time.monotonic() - start < 20
        start = time.monotonic()
        with pytest.raises(LogUnavailableError, match=r"log\.bootstrap_servers"):
            member.log.poll(0.5)
        assert time.monotonic() - start < 10
        assert len(kafka_threads()) <= len(threads)
    finally:
        kafka_broker.start()
    monkeypatch.undo()
    append("b ")
    deadline = time.monotonic() + 60
    while sent("b ") - set(in_ledger(fresh_topics)):
        assert time.monotonic() < deadline
        try:
            member.poll(0.5)
            if member.messages:
                commit_what_was_read(member)
        except (LogUnavailableError, RewindError):
            continue
    booked = [value for value in in_ledger(fresh_topics) if not value.startswith(b"lost ")]
    assert booked == sorted(sent("a ") | sent("b "))


def test_a_commit_without_an_answer_rewinds(
    kafka_broker: KafkaBroker,
    open_member: OpenMember,
    append: Callable[..., None],
    fresh_topics: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the broker hangs in a commit, nobody knows its outcome: it rewinds in time, and the ledger is right."""
    member = open_member()
    append()
    member.until_values(sent())
    monkeypatch.setattr(kafka_transactions, "_COMMIT_TIMEOUT_S", 1.5)
    kafka_broker.freeze()
    try:
        start = time.monotonic()
        with pytest.raises(RewindError):
            commit_what_was_read(member)
        assert time.monotonic() - start < 10
    finally:
        kafka_broker.thaw()
    monkeypatch.undo()
    deadline = time.monotonic() + 60
    while in_ledger(fresh_topics) != sorted(sent()):
        assert time.monotonic() < deadline
        try:
            member.poll(0.5)
            if member.messages:
                commit_what_was_read(member)
        except (LogUnavailableError, RewindError):
            continue
    # nothing more comes
    for _ in range(3):
        member.poll(0.5)
    assert not member.messages


def test_the_end_of_a_transactional_topic_is_reached(fresh_topics: Settings, open_member: OpenMember) -> None:
    """The mark of a transaction at a topic's end does not keep a reader of it behind."""
    meter = open_member()
    meter.until_assigned(4)
    meter.commit(b"1", ledger("row"))
    economy = StageReader(
        KafkaStageLog(fresh_topics.log, fresh_topics.process.group, "economy", (topics.LEDGER,))
    )
    economy.until_values({b"row"})
    economy.until_assigned_and_caught_up()
    economy.log.close()


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
def test_what_an_open_transaction_hides_is_still_to_be_read(
    fresh_topics: Settings, open_member: OpenMember, append: Callable[..., None], end: str
) -> None:
    """A peer that leaves one open hides everybody's rows behind it: nobody is taken for silent meanwhile, by a member
    that comes only then neither, and when it has ended nothing is left to wait for."""
    member = open_member()
    append("a ")
    member.until_values(sent("a "))
    member.until_assigned_and_caught_up()
    commit_what_was_read(member)
    peer = kafka_clients.open_producer(fresh_topics.log, "peer", 10_000, f"{fresh_topics.process.group}-peer")
    peer.init_transactions()
    peer.begin_transaction()
    peer.send(topics.GPU, b"peer", b"peer", partition=0).get(timeout=10)
    place = topics.GPU, 0
    member.until(lambda: member.behind[place] > 0)
    assert not any(behind for other, behind in member.behind.items() if other != place)
    member.log.close()
    heir = open_member()
    told: list[int] = []
    while len(told) < 20:
        heir.poll()
        told += [behind for at, behind in heir.behind.items() if at == place]
    assert 0 not in told
    assert not any(behind for other, behind in heir.behind.items() if other != place)
    append("b ")
    getattr(peer, end)()
    kafka_clients.close_producer(peer)
    heir.until_assigned_and_caught_up()
    assert {message.value for message in heir.messages} - {b"peer"} == sent("b ")


def test_topics_that_do_not_belong_together_are_refused(
    kafka_broker: KafkaBroker, fresh_topics: Settings
) -> None:
    """Topics that a stage reads together must have as many partitions as each other, and the state enough."""
    create_topics(fresh_topics.log)  # what is there is left alone
    for topic, partitions, says in (
        (topics.ENGINE, 3, "idlewatt.gpu has 4 partitions and idlewatt.engine 3"),
        (topics.STATE, 2, "idlewatt.state has 2 partitions and needs 4"),
    ):
        kafka_broker.fresh_topics(fresh_topics)
        with kafka_clients.open_admin(fresh_topics.log) as admin:
            admin.delete_topics([topic])
            deadline = time.monotonic() + 20
            while topic in admin.list_topics():
                assert time.monotonic() < deadline
            admin.create_topics(
                {topic: {"num_partitions": partitions, "configs": {"cleanup.policy": "compact"}}},
                wait_for_metadata=True,
            )
        with pytest.raises(ConfigError, match=says):
            prepare(fresh_topics)


def test_too_many_replicas_are_refused(kafka_broker: KafkaBroker, fresh_topics: Settings) -> None:
    """A replication factor that the brokers cannot give names the setting."""
    with kafka_clients.open_admin(fresh_topics.log) as admin:
        admin.delete_topics([topics.MONEY])
        deadline = time.monotonic() + 20
        while topics.MONEY in admin.list_topics():
            assert time.monotonic() < deadline
    with pytest.raises(ConfigError, match=r"log\.replication_factor"):
        prepare(kafka_broker.settings(log={"replication_factor": 3}))


def test_no_broker_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that do not answer are unavailable, and every try leaves no thread behind."""
    monkeypatch.setattr(kafka_clients, "_BOOTSTRAP_TIMEOUT_MS", 500)
    nobody = Log(kind="kafka", bootstrap_servers="127.0.0.1:1")
    before = kafka_threads()
    appender = KafkaAppender(nobody, "test")
    stage = KafkaStageLog(nobody, "test", "meter", METER)
    for attempt in (
        lambda: create_topics(nobody),
        lambda: appender.append([Record(topics.GPU, b"k", b"v")]),
        lambda: stage.poll(0.1),
        lambda: next(read_messages(nobody, topics.GPU)),
    ):
        with pytest.raises(LogUnavailableError, match=r"log\.bootstrap_servers.*127\.0\.0\.1:1"):
            attempt()
    stage.close()
    appender.close()
    deadline = time.monotonic() + 10
    while kafka_threads() - before:
        assert time.monotonic() < deadline, kafka_threads()


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ({"security_protocol": "SSL", "ssl_cafile": "/none/ca.pem"}, r"log\.ssl_cafile: there is no file"),
        ({"security_protocol": "SSL", "ssl_cafile": __file__}, r"log\.ssl_.*cannot be used"),
        (
            {
                "security_protocol": "SSL",
                "ssl_certfile": str(TLS / "cert.pem"),
                "ssl_keyfile": str(TLS / "encrypted_key.pem"),
            },
            r"log\.ssl_keyfile: .* without a pass phrase",
        ),
    ],
)
def test_wrong_options_are_named(log: dict[str, str], says: str) -> None:
    """A wrong connection setting is an error when the log is opened, before any broker is asked."""
    settings = Log.model_validate({"kind": "kafka", **log})
    with pytest.raises(ConfigError, match=says):
        KafkaAppender(settings, "test")
    with pytest.raises(ConfigError, match=says):
        KafkaStageLog(settings, "test", "meter", METER)


def test_nothing_is_left_running(open_member: OpenMember, append: Callable[..., None]) -> None:
    """Closing a stage's log ends its threads and connections."""
    before = kafka_threads()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        member = open_member()
        append()
        member.until_assigned(4)
        member.commit(b"1")
        member.log.close()
    deadline = time.monotonic() + 10
    # one producer of the appender stays
    while len(kafka_threads() - before) > 1 or len(os.listdir("/proc/self/fd")) > files + 8:
        assert time.monotonic() < deadline, kafka_threads()


class Working:
    """A member on a thread of its own that reads and commits, as a processor does, until it is told to end."""

    def __init__(self, reader: StageReader) -> None:
        self.reader = reader
        # how often each partition was handed out
        self.handed_out: Counter[int] = Counter()
        self.rewinds = 0
        # when a commit was made
        self.committed_at: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                poll = self.reader.poll(0.1)
            except LogUnavailableError:
                continue
            self.handed_out.update(poll.assigned.keys())
            if self.reader.messages:
                try:
                    commit_what_was_read(self.reader)
                    self.committed_at.append(time.monotonic())
                except RewindError:
                    self.rewinds += 1
        self.reader.log.close()

    @property
    def partitions(self) -> set[int]:
        return set(self.reader.snapshots)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_a_rebalance_takes_only_what_moves(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """While members come and go the others work on with what stays theirs, and each message counts once."""
    rounds = 0
    members: list[Working] = []

    def until(shares: list[int]) -> None:
        nonlocal rounds
        deadline = time.monotonic() + 40
        while sorted(len(member.partitions) for member in members) != shares:
            assert time.monotonic() < deadline, [member.partitions for member in members]
            append(f"{rounds} ")
            rounds += 1
            time.sleep(0.05)

    try:
        members.append(Working(open_member()))
        until([4])
        before = members[0].handed_out.copy()
        members.append(Working(open_member()))
        until([2, 2])
        members.append(Working(open_member()))
        until([1, 1, 2])
        first = members[0]
        # a commit that meets the very moment of the rebalance is refused, after which all is read again
        assert first.handed_out == before or first.rewinds, "what stayed was taken away and given again"
        kept = {member: member.handed_out.copy() for member in members}
        members.pop(1).end()
        until([2, 2])
        for member in members:
            came = member.handed_out - kept[member]
            assert came.total() <= 1 or member.rewinds
        last_append = time.monotonic()
        assert all(max(member.committed_at) > last_append - 5 for member in members)
    finally:
        for member in members:
            member.end()
    assert sum(member.rewinds for member in members) <= 2, "a commit was refused for more than bad luck"
    heir = open_member()
    everything = sorted(set[bytes]().union(*(sent(f"{i} ") for i in range(rounds))))
    heir.until_assigned(4)
    heir.until(lambda: not any(heir.behind.values()) and bool(heir.behind))
    if heir.messages:
        commit_what_was_read(heir)
    assert in_ledger(fresh_topics) == everything


def test_a_static_member_that_restarts_in_time_is_not_noticed(
    open_member: OpenMember, append: Callable[..., None], fresh_topics: Settings
) -> None:
    """It gets the same partitions back with their snapshots, and the other goes on without a rebalance."""

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, [member.partitions for member in members]
            time.sleep(0.05)

    def generation(member: Working) -> int:
        assert isinstance(member.reader.log, KafkaStageLog)
        return member.reader.log._membership().generation_id

    members = [Working(open_member("one")), Working(open_member("two"))]
    try:
        until(lambda: all(len(member.partitions) == 2 for member in members))
        append("a ")
        until(lambda: len(in_ledger(fresh_topics)) == 16)
        first, second = members
        before = generation(second), second.handed_out.copy()
        first.end()
        append("b ")
        members[0] = again = Working(open_member("one"))
        until(lambda: len(again.partitions) == 2)
        assert again.partitions == first.partitions
        assert None not in again.reader.snapshots.values()
        until(lambda: len(in_ledger(fresh_topics)) == 32)
        assert (generation(second), second.handed_out) == before
    finally:
        for member in members:
            member.end()
    assert in_ledger(fresh_topics) == sorted(sent("a ") | sent("b "))


def test_what_a_rebalance_took_is_not_confirmed_until_the_caller_knows(open_member: OpenMember) -> None:
    """From the moment a partition is taken away until the poll after the one that says so, nothing is sure."""
    member = open_member()
    log = member.log
    assert isinstance(log, KafkaStageLog)
    member.until(lambda: len(member.snapshots) == 4 and log.unconfirmed_s() < 5)
    log._listener.on_partitions_revoked([kafka_clients.TopicPartition(topics.GPU, 2)])
    assert log.unconfirmed_s() == float("inf")
    member.poll()
    assert set(member.snapshots) == {0, 1, 3}
    assert log.unconfirmed_s() == float("inf")
    member.poll()
    assert log.unconfirmed_s() < 5


def test_a_member_knows_how_long_ago_it_was_known(kafka_broker: KafkaBroker, open_member: OpenMember) -> None:
    """What is ours is confirmed each second, and not by polls that bring nothing while nobody answers."""
    log = open_member().log
    assert log.unconfirmed_s() == float("inf")
    member = Working(StageReader(log))

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, log.unconfirmed_s()
            time.sleep(0.05)

    try:
        until(lambda: log.unconfirmed_s() < 2.5 and len(member.partitions) == 4)
        kafka_broker.freeze()
        try:
            until(lambda: log.unconfirmed_s() > 2.6)
        finally:
            kafka_broker.thaw()
        until(lambda: log.unconfirmed_s() < 2.5)
    finally:
        member.end()
    assert log.unconfirmed_s() == float("inf")


def test_the_bare_library_leaks_offsets_of_an_aborted_transaction(
    open_member: OpenMember, fresh_topics: Settings
) -> None:
    """Why a producer does not outlive an error: the next transaction commits what the aborted one had refused.

    Fails when kafka-python is mended; ours need not be changed then.
    """
    member = open_member()
    member.until_assigned(4)
    assert isinstance(member.log, KafkaStageLog)
    group = member.log._membership()
    stale = group._replace(generation_id=group.generation_id + 7)  # type: ignore[attr-defined]
    producer = kafka_clients.open_producer(fresh_topics.log, "bare", 10_000, "bare-" + group.member_id)

    def offset(partition: int, to: int) -> dict[Any, Any]:
        return {
            kafka_clients.TopicPartition(topics.GPU, partition): kafka_clients.OffsetAndMetadata(to, "", -1)
        }

    try:
        producer.init_transactions()
        producer.begin_transaction()
        with pytest.raises(CommitFailedError):
            producer.send_offsets_to_transaction(offset(0, 111), stale)
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send_offsets_to_transaction(offset(1, 5), group)
        producer.commit_transaction()
    finally:
        kafka_clients.close_producer(producer)
    with kafka_clients.open_admin(fresh_topics.log) as admin:
        name = f"{fresh_topics.process.group}-meter"
        committed = admin.list_group_offsets({name: None})[name]
    found = {tp.partition: at.offset for tp, at in committed.items() if at.offset >= 0}
    assert found == {0: 111, 1: 5}
