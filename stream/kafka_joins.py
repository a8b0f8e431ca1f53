"""Lets a member of a group apply what it was given between two polls.

kafka-python 3.0.12 forgets an answer to its joining that comes then, and joins again. Where that is the leader, for whom
the group then begins anew, it may go on without end, and meanwhile nothing is read of what it has: polls find nothing
while they join. (join_group_async() in kafka/coordinator/base.py takes a task that is done for one that is gone.)

A leader that joins because the partitions of a topic have changed, or were not known before, forgets why as soon as it
has assigned them. If its poll ends before the answer comes, no other poll asks for it, and without heartbeats the group
gives the member up, which stays where it is for good. (need_rejoin() in kafka/coordinator/consumer.py compares what was
assigned with what is known; the Java client notes that it has to join.)
"""

from typing import Any


def keep_answers(coordinator: Any) -> None:
    """To be called before the first poll of a consumer, with its coordinator."""
    ask, apply = coordinator._do_join_and_sync_async, coordinator._on_join_complete_async
    # the generation of which an answer waits, and the answer
    waiting: list[Any] = []

    async def join() -> Any:
        # whoever is given up, or joins again, has another one
        if waiting and waiting[0] is coordinator._generation:
            return waiting[1]
        waiting.clear()
        # until the answer is applied
        coordinator.request_rejoin()
        answer = await ask()
        waiting[:] = [coordinator._generation, answer]
        return answer

    async def complete(*what: Any) -> Any:
        waiting.clear()
        return await apply(*what)

    coordinator._do_join_and_sync_async = join
    coordinator._on_join_complete_async = complete
