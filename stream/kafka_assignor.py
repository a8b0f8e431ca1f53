"""Which member of a consumer group reads which partitions: evenly, partition n of all topics together, few moves.

kafka-python's cooperative assignor spreads the partitions of each topic as if they had nothing to do with each
other, so that the joules and the tokens of a pool would end with different members. Nor does it tell whose claim is
out of date: a member that was given up for dead and comes back claims what others own by now.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

# The first in which members say what they own and since when (KIP-792).
_SUBSCRIPTION_VERSION: Final = 2
_ASSIGNMENT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says when it joins."""

    topics: frozenset[str]
    owned: frozenset[tuple[str, int]] = frozenset()
    # of the group when it was last given something; a higher one knows better
    generation: int = -1


def share(
    claims: Mapping[str, Claim], partitions: Mapping[str, Collection[int]]
) -> dict[str, set[tuple[str, int]]]:
    """Who reads what, by member; `partitions` are those of each topic.

    Members of one subscription get the same number of partition numbers, give or take one, and keep of what they own
    as much as that allows. A topic that several subscriptions name goes to members with the longest of them. What is
    to move is nobody's in this round: its owner gives it up first, and the round that follows gives it away.
    """
    shares: dict[str, set[tuple[str, int]]] = {member: set() for member in claims}
    taken: set[str] = set()
    for subscription in sorted({c.topics for c in claims.values()}, key=lambda t: (-len(t), sorted(t))):
        topics = subscription - taken
        taken |= topics
        members = [member for member, claim in claims.items() if claim.topics == subscription]
        numbers = {n for topic in topics for n in partitions.get(topic, ())}
        owners = {n: _owner(n, topics, claims) for n in numbers}
        for n, member in _balanced(sorted(members), owners).items():
            if not _is_claimed_by_another(n, topics, member, owners[n], claims):
                shares[member] |= {(topic, n) for topic in topics if n in partitions.get(topic, ())}
    return shares


def _claimants(n: int, topics: Iterable[str], claims: Mapping[str, Claim]) -> list[str]:
    return [m for m in sorted(claims) if any((topic, n) in claims[m].owned for topic in topics)]


def _owner(n: int, topics: Iterable[str], claims: Mapping[str, Claim]) -> str | None:
    """Of several that claim a partition number, the one that was given it last."""
    return max(_claimants(n, topics, claims), key=lambda m: claims[m].generation, default=None)


def _balanced(members: list[str], owners: Mapping[int, str | None]) -> dict[int, str]:
    """Partition number -> member."""
    if not members:
        return {}
    owned: dict[str, list[int]] = {member: [] for member in members}
    for n, owner in sorted(owners.items()):
        if owner in owned:
            owned[owner].append(n)
    least, more = divmod(len(owners), len(members))
    # the odd ones stay with those who have most
    by_size = sorted(members, key=lambda m: -len(owned[m]))
    quota = {member: least + (i < more) for i, member in enumerate(by_size)}
    found = {n: member for member in members for n in owned[member][: quota[member]]}
    free = iter(sorted(owners.keys() - found.keys()))
    for member in members:
        for _ in range(quota[member] - len(owned[member][: quota[member]])):
            found[next(free)] = member
    return found


def _is_claimed_by_another(
    n: int, topics: Iterable[str], member: str, owner: str | None, claims: Mapping[str, Claim]
) -> bool:
    # what stays where it is stays, whoever else believes to have it: that one is told now
    return member != owner and any(other != member for other in _claimants(n, topics, claims))


class CopartitionedAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """share() as kafka-python asks for it: cooperative, so that a rebalance takes from a member only what moves.

    `owned` says what this member has, as (topic, partition).
    """

    name = "idlewatt-copartitioned"

    def __init__(self, owned: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._owned = owned
        self._generation = -1

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: Iterable[str]) -> Any:
        by_topic = defaultdict(list)
        for topic, n in sorted(self._owned()):
            by_topic[topic].append(n)
        owned = [
            ConsumerProtocolSubscription.TopicPartition(topic=topic, partitions=numbers)
            for topic, numbers in by_topic.items()
        ]
        return ConsumerProtocolSubscription(
            version=_SUBSCRIPTION_VERSION,
            topics=sorted(topics),
            user_data=b"",
            owned_partitions=owned,
            generation_id=self._generation,
        )

    def on_assignment(self, assignment: Any, generation: int) -> None:
        self._generation = generation

    def assign(self, cluster: Any, members: Iterable[Any]) -> dict[str, Any]:
        claims = {member.member_id: _claim(member.metadata) for member in members}
        topics = frozenset[str]().union(*(claim.topics for claim in claims.values()))
        partitions = {topic: cluster.partitions_for_topic(topic) or set() for topic in topics}
        return {member: _assignment(found) for member, found in share(claims, partitions).items()}


def _claim(metadata: Any) -> Claim:
    owned = {(tp.topic, n) for tp in metadata.owned_partitions or () for n in tp.partitions}
    return Claim(frozenset(metadata.topics), frozenset(owned), metadata.generation_id)


def _assignment(found: Iterable[tuple[str, int]]) -> Any:
    by_topic = defaultdict(list)
    for topic, n in sorted(found):
        by_topic[topic].append(n)
    return ConsumerProtocolAssignment(_ASSIGNMENT_VERSION, sorted(by_topic.items()), b"")
