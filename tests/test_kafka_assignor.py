"""How partitions are shared: even, together, few moves, and never two owners."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.coordinator.assignors.abstract import RebalanceProtocol
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from idlewatt.stream.kafka_assignor import Claim, CopartitionedAssignor, share

GPU_ENGINE = frozenset({"gpu", "engine"})
Owned = dict[str, set[tuple[str, int]]]


def topics(count: int) -> dict[str, set[int]]:
    return {topic: set(range(count)) for topic in GPU_ENGINE}


def both(*numbers: int) -> set[tuple[str, int]]:
    return {(topic, n) for topic in GPU_ENGINE for n in numbers}


class Group:
    """Members that do what they are told, in rounds, as a coordinator has them do it."""

    def __init__(self, partitions: Mapping[str, set[int]]) -> None:
        self.partitions = partitions
        self.owned: Owned = {}
        self.subscriptions: dict[str, frozenset[str]] = {}
        self.generation = 0

    def join(self, member: str, subscription: frozenset[str] = GPU_ENGINE) -> None:
        self.owned[member] = set()
        self.subscriptions[member] = subscription

    def leave(self, member: str) -> None:
        del self.owned[member]

    def settle(self) -> int:
        """Rounds until nobody had to give anything up; checks in each that nothing has two owners."""
        rounds = 0
        while True:
            rounds += 1
            claims = {
                m: Claim(self.subscriptions[m], frozenset(o), self.generation) for m, o in self.owned.items()
            }
            self.generation += 1
            shares = share(claims, self.partitions)
            assert shares.keys() == self.owned.keys()
            for member, found in shares.items():
                others = set().union(*(o for m, o in self.owned.items() if m != member), set())
                assert not (found - self.owned[member]) & others, "given while another has it"
                assert {topic for topic, _ in found} <= self.subscriptions[member]
            gave_up = any(self.owned[member] - found for member, found in shares.items())
            self.owned = shares
            if not gave_up:
                return rounds
            assert rounds < 3, "does not settle"

    def numbers(self, member: str) -> set[int]:
        """Of which a member has every topic; there must be no others."""
        numbers = {n for _, n in self.owned[member]}
        assert self.owned[member] == both(*numbers)
        return numbers


def test_a_lone_member_has_everything() -> None:
    """One member reads all partitions of all topics, after one round."""
    group = Group(topics(12))
    group.join("a")
    assert group.settle() == 1
    assert group.numbers("a") == set(range(12))


def test_what_moves_is_nobodys_for_one_round() -> None:
    """A second member waits until the first has given half up, and takes only that."""
    group = Group(topics(4))
    group.join("a")
    group.settle()
    group.join("b")
    claims = {"a": Claim(GPU_ENGINE, frozenset(both(0, 1, 2, 3)), 1), "b": Claim(GPU_ENGINE)}
    assert share(claims, topics(4)) == {"a": both(0, 1), "b": set()}
    assert group.settle() == 2
    assert (group.numbers("a"), group.numbers("b")) == ({0, 1}, {2, 3})


def test_what_a_member_leaves_goes_out_at_once() -> None:
    """Partitions of a member that is gone are claimed by nobody: one round, and the others keep theirs."""
    group = Group(topics(6))
    for member in "abc":
        group.join(member)
    group.settle()
    kept = {member: group.numbers(member) for member in "ab"}
    group.leave("c")
    assert group.settle() == 1
    for member in "ab":
        assert group.numbers(member) > kept[member]
        assert len(group.numbers(member)) == 3


def test_more_members_than_partitions() -> None:
    """Those who come late stand by with nothing."""
    group = Group(topics(2))
    for member in "abc":
        group.join(member)
        group.settle()
    assert [len(group.numbers(member)) for member in "abc"] == [1, 1, 0]


@given(
    count=st.integers(1, 13),
    events=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), min_size=1, max_size=12
    ),
)
def test_any_coming_and_going(count: int, events: list[tuple[str, bool, bool]]) -> None:
    """Settled in two rounds, even to one partition, none without an owner, and no more moved than had to."""
    group = Group(topics(count))
    for member, comes, together_with_next in events:
        if comes and member not in group.owned:
            group.join(member)
        elif not comes and member in group.owned:
            group.leave(member)
        if together_with_next or not group.owned:
            continue
        before = {m: {n for _, n in owned} for m, owned in group.owned.items()}
        assert group.settle() <= 2
        after = {m: group.numbers(m) for m in group.owned}
        sizes = sorted(len(numbers) for numbers in after.values())
        assert sum(sizes) == count
        assert sizes[-1] - sizes[0] <= 1
        assert set().union(*after.values()) == set(range(count))
        for m, numbers in after.items():
            given_up = before[m] - numbers
            assert len(given_up) == max(0, len(before[m]) - len(numbers)), "gave up one and took another"


@pytest.mark.parametrize("zombie", ["a", "z"])
def test_a_zombie_is_not_believed(zombie: str) -> None:
    """Of two that claim a partition the one that was given it later has it; the other is told in the same round."""
    claims = {
        "m": Claim(GPU_ENGINE, frozenset(both(0, 1)), 8),
        zombie: Claim(GPU_ENGINE, frozenset(both(0, 1)), 5),
    }
    shares = share(claims, topics(2))
    # 1 is to move to the zombie, which believes to have it: it is given only after m gave it up
    assert shares == {"m": both(0), zombie: set()}


def test_a_longer_subscription_takes_the_topics_it_shares() -> None:
    """Members of an older kind give what newer ones read together to these, without a moment of two owners."""
    partitions = {"ledger": {0, 1}, "usage": {0, 1}}
    new = frozenset(partitions)
    group = Group(partitions)
    group.join("old", frozenset({"ledger"}))
    group.settle()
    group.join("new", new)
    assert group.settle() == 2
    assert group.owned["new"] == {(topic, n) for topic in new for n in (0, 1)}
    group.leave("new")
    group.settle()
    assert group.owned["old"] == {("ledger", 0), ("ledger", 1)}


def test_subscriptions_that_share_nothing_do_not_meet() -> None:
    """Each topic is shared among those who read it."""
    group = Group({"gpu": {0, 1, 2}, "ledger": {0, 1}})
    group.join("a", frozenset({"gpu"}))
    group.join("b", frozenset({"ledger"}))
    group.settle()
    assert group.owned == {"a": {("gpu", n) for n in range(3)}, "b": {("ledger", n) for n in range(2)}}


def test_topics_that_are_not_there_give_nothing() -> None:
    """A topic nobody knows yet has no partitions."""
    assert share({"a": Claim(GPU_ENGINE)}, {}) == {"a": set()}
    assert share({}, topics(2)) == {}


def test_what_is_said_on_the_wire() -> None:
    """A member says what it owns and since when, and the leader's answer can be read by any client."""

    class Cluster:
        def partitions_for_topic(self, topic: str) -> set[int] | None:
            return topics(2).get(topic)

    class Member:
        def __init__(self, name: str, metadata: bytes) -> None:
            self.member_id = name
            self.metadata = ConsumerProtocolSubscription.decode(metadata)

    owner = CopartitionedAssignor(lambda: both(0, 1))
    owner.on_assignment(None, 3)
    newcomer = CopartitionedAssignor(set)
    assert owner.supported_protocols() == [RebalanceProtocol.COOPERATIVE]
    answers = newcomer.assign(
        Cluster(),
        [
            Member("a", owner.metadata(GPU_ENGINE).encode()),
            Member("b", newcomer.metadata({*GPU_ENGINE, "unknown"}).encode()),
        ],
    )
    # "b" reads more topics, so it is to have these two as well, when "a" has given them up
    read = {
        m: ConsumerProtocolAssignment.decode(answer.encode()).partitions() for m, answer in answers.items()
    }
    assert read == {"a": [], "b": []}
    alone = newcomer.assign(Cluster(), [Member("a", owner.metadata(GPU_ENGINE).encode())])
    assert set(ConsumerProtocolAssignment.decode(alone["a"].encode()).partitions()) == both(0, 1)


def test_the_librarys_own_assignor_parts_what_belongs_together() -> None:
    """Why there is one of our own: kafka-python's gives partition n of two topics to two members.

    Fails when kafka-python is mended.
    """

    class Cluster:
        def topics(self) -> frozenset[str]:
            return GPU_ENGINE

        def partitions_for_topic(self, topic: str) -> set[int] | None:
            return topics(3).get(topic)

    class Member:
        def __init__(self, name: str) -> None:
            self.member_id = name
            self.metadata = ConsumerProtocolSubscription.decode(
                CooperativeStickyAssignor().metadata(GPU_ENGINE).encode()
            )

    answers = CooperativeStickyAssignor().assign(Cluster(), [Member("a"), Member("b")])
    owners = {
        tp: member
        for member, answer in answers.items()
        for tp in ConsumerProtocolAssignment.decode(answer.encode()).partitions()
    }
    assert any(owners["gpu", n] != owners["engine", n] for n in range(3))
