"""The one loop that runs a stage: poll, decode, fold, commit. Everything that touches the outside stands here."""

import contextlib
import functools
import itertools
import operator
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

import structlog
from polars.exceptions import PanicException

from idlewatt.processors.catch_up import CatchUp
from idlewatt.processors.gathering import Gathered, Gathering
from idlewatt.processors.page import Page
from idlewatt.processors.pipeline_figures import PipelineFigures
from idlewatt.processors.stage import Folded, Stage
from idlewatt.stream import metric_names as names
from idlewatt.stream import records, topics
from idlewatt.stream.clock import Clock
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.errors import LogUnavailableError, RewindError, UnreadableMessageError
from idlewatt.stream.log import Commit, Message, Poll, Record, StageLog
from idlewatt.stream.minute_log import MinuteLog

S = TypeVar("S")
_log = structlog.get_logger()

# by schema; of other rows none are refused or late
_TOPIC_OF: Final = {
    records.GPU.name: topics.GPU,
    records.ENGINE.name: topics.ENGINE,
    records.USAGE.name: topics.USAGE,
}
POLL_S: Final = 0.25
_SOURCE: Final = operator.itemgetter(0, 1)
# What polls bring is gathered, because a fold costs some 50 ms whatever it folds, and a Kafka transaction 0.1 s of
# waiting: for the stage's gather_s, so many times as long while there is more to read, or while all partitions' rows
# are so old that nobody waits for them, and longest if both; or up to these sizes, of messages as they came.
PATIENCE_BEHIND: Final = 10
FAR_BEHIND_S: Final = 60.0
FAR_BEHIND_PATIENCE_S: Final = 30.0
GATHER_BYTES_PER_PARTITION: Final = 64 * 1024 * 1024
GATHER_BYTES: Final = 512 * 1024 * 1024
# After so long it polls before it folds on: a member of a group that does not for a minute is given up by it, and a
# machine with a fifth of a core takes that long for what is gathered of a dozen partitions.
FOLD_S: Final = 10.0
_MOST_DETAIL: Final = 500
# Once so many messages are to be set aside it commits before it folds on; a message tells of so many of them, 10 MB at
# most. What others send must not make a commit of minutes: it would fail, and all be read again, for ever.
MOST_REJECTED: Final = 32_768
REJECTED_PER_MESSAGE: Final = 5_000
UNAVAILABLE_PAUSE_S: Final = 1.0


class Runner(Generic[S]):
    """Runs one stage over its log until stopped. State is per partition and dropped whenever a commit fails."""

    def __init__(
        self,
        stage: Stage[S],
        log: StageLog,
        clock: Clock,
        figures: PipelineFigures,
        publish: Callable[[bytes], None],
    ) -> None:
        self._stage = stage
        self._stage_log = log
        self._clock = clock
        self._figures = figures
        self._publish = publish
        self._committed: Callable[[Collection[S]], None] = lambda _: None
        self._states: dict[int, S] = {}
        # as they were at the last commit
        self._shown: dict[int, S] = {}
        self._page = Page(stage.at_most)
        # what was read and is not folded, of each partition that has a state; and where the log ended then
        self._gathering: dict[int, Gathering] = {}
        self._behind: Mapping[tuple[str, int], int] = {}
        self._positions: dict[tuple[str, int], int] = {}
        self._resume: dict[tuple[str, int], int] = {}
        # partition -> records of folds that are not committed; a key without records is a state that moved
        self._outbox: dict[int, list[Record]] = {}
        # of the same folds: messages that are set aside, and what is counted once that is committed
        self._rejected: list[records.RejectedRow] = []
        self._counted: Counter[tuple[names.Metric, tuple[str, ...]]] = Counter()
        self._folded_at = 0.0
        # partitions that were due, for which there was no time
        self._left: list[int] = []
        # partition -> the newest event time that was folded; and how old that was when something was to be folded last
        self._event_ms: dict[int, int] = {}
        self._lag_s: dict[int, float] = {}
        self._minute_log = MinuteLog()
        self._catch_up: dict[int, CatchUp] = {}

    def on_commit(self, told: Callable[[Collection[S]], None]) -> None:
        """Let `told` know the states that /metrics shows, one for each partition, whenever they change."""
        self._committed = told

    def run(self, stop: threading.Event) -> None:
        """Loop until `stop` is set, then commit what is folded and give the partitions back."""
        try:
            while not stop.is_set():
                self.step(POLL_S, stop)
            with contextlib.suppress(RewindError, LogUnavailableError):
                self._fold_and_commit(list(self._states))
        finally:
            self._stage_log.close()

    def silent_for_s(self) -> float:
        """Time since the log last confirmed our partitions: while it does not, they may have gone to others unnoticed."""
        return self._stage_log.unconfirmed_s()

    def step(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """One poll, and what follows from it."""
        try:
            poll = self._stage_log.poll(timeout_s)
        except LogUnavailableError as error:
            self._say("log_unavailable", error=str(error))
            (stop or threading.Event()).wait(UNAVAILABLE_PAUSE_S)
            return
        self._hand_over(poll)
        for (_, partition), messages in itertools.groupby(poll.messages, _SOURCE):
            if partition in self._gathering:
                self._gathering[partition].add([*messages])
        self._behind = poll.behind
        self._tell_how_far(poll)
        due = self._due()
        if not due:
            return
        try:
            self._fold_and_commit(due)
        except (RewindError, LogUnavailableError) as error:
            self._rewind(error)

    def _due(self) -> list[int]:
        """Partitions to fold now."""
        if left := [partition for partition in self._left if partition in self._states]:
            return left
        waited_s = time.monotonic() - self._folded_at
        sizes = {partition: gathering.size_bytes for partition, gathering in self._gathering.items()}
        patience_s = self._stage.gather_s
        is_behind = any(self._behind.values())
        # where nothing comes, what was folded last is old, and only the clock is followed
        is_old = any(sizes.values()) and min(self._lag_s.values(), default=0.0) > FAR_BEHIND_S
        if is_behind or is_old:
            patience_s *= PATIENCE_BEHIND
        if is_behind and is_old:
            patience_s = max(patience_s, FAR_BEHIND_PATIENCE_S)
        if waited_s >= patience_s:
            self._folded_at = time.monotonic()
            return list(self._states)
        if sum(sizes.values()) >= GATHER_BYTES:
            # a part of them: in turn each gathers half as much again as if all were folded whenever there is no room
            fullest = sorted(sizes, key=lambda partition: -sizes[partition])
            return fullest[: -(-len(fullest) // 4)]
        return [
            partition
            for partition, size in sizes.items()
            if size >= GATHER_BYTES_PER_PARTITION
            or self._gathering[partition].held_bytes > self._hold_bytes()
        ]

    def _hold_bytes(self) -> int:
        """How much of a partition may be held back: of all of them as much again as what is gathered."""
        return GATHER_BYTES // len(self._gathering)

    def _hand_over(self, poll: Poll) -> None:
        if not poll.revoked and not poll.assigned:
            return
        for partition in poll.revoked:
            self._drop(partition)
        for partition, snapshot in poll.assigned.items():
            self._drop(partition)
            self._states[partition] = (
                self._stage.empty() if snapshot is None else self._stage.restore(snapshot)
            )
            self._gathering[partition] = Gathering(self._stage)
        self._show(poll.assigned)

    def _drop(self, partition: int) -> None:
        """Forget a partition with its uncommitted work: whoever owns it now folds that again."""
        self._states.pop(partition, None)
        self._shown.pop(partition, None)
        self._page.drop(partition)
        self._outbox.pop(partition, None)
        self._gathering.pop(partition, None)
        for topic in self._stage.inputs:
            self._positions.pop((topic, partition), None)
            self._resume.pop((topic, partition), None)
            self._figures.forget(names.BEHIND, topic, str(partition))
        self._catch_up.pop(partition, None)
        self._event_ms.pop(partition, None)
        self._lag_s.pop(partition, None)
        for figure in (names.EVENT_TIME_LAG, names.CATCH_UP):
            self._figures.forget(figure, self._stage.name, str(partition))

    def _rewind(self, error: Exception) -> None:
        self._figures.count(names.REWINDS, self._stage.name)
        self._say("rewound", error=str(error))
        self._rejected.clear()
        # it is read, and counted, again
        self._counted.clear()
        for partition in list(self._states):
            self._drop(partition)
        # what is given to others now is not told: nothing may stay on the page
        self._show(())

    def _fold_and_commit(self, partitions: Iterable[int]) -> None:
        """Fold what is gathered of them, as far as there is time for.

        Raises RewindError or LogUnavailableError where it could not be committed.
        """
        began, now_ms = time.monotonic(), self._clock()
        self._left = [*partitions]
        while self._left and time.monotonic() - began < FOLD_S and len(self._rejected) < MOST_REJECTED:
            partition = self._left.pop(0)
            gathering = self._gathering[partition]
            waits = functools.partial(self._waits, partition, now_ms)
            gathered = gathering.take(began + FOLD_S, waits, self._hold_bytes())
            self._tell_what_was_read(partition, gathering, now_ms)
            at_end = self._at_end(partition)
            # without messages there is only the clock to follow, and that only where everything is read
            if gathered.next_offsets or len(at_end) == len(self._stage.inputs):
                self._fold_partition(partition, gathered, at_end, now_ms)
            self._show_lag(partition, now_ms)
        if self._outbox:
            self._commit()
        for (metric, labels), count in self._counted.items():
            self._figures.count(metric, *labels, by=count)
        self._counted.clear()

    def _at_end(self, partition: int) -> frozenset[str]:
        """Topics of which everything is taken."""
        gathering = self._gathering[partition]
        return frozenset(
            topic
            for topic in self._stage.inputs
            if self._behind.get((topic, partition)) == 0 and not gathering.waits(topic)
        )

    def _waits(self, partition: int, now_ms: int, taken: Gathered) -> bool:
        batch = taken.batch(self._stage, now_ms, self._at_end(partition))
        return self._stage.waits(self._states[partition], batch)

    def _tell_how_far(self, poll: Poll) -> None:
        total: dict[int, int] = defaultdict(int)
        for (topic, partition), behind in poll.behind.items():
            if partition in self._states:
                self._figures.show(names.BEHIND, topic, str(partition), value=behind)
                total[partition] += behind
        for partition, behind in total.items():
            catch_up = self._catch_up.setdefault(partition, CatchUp())
            seconds = catch_up.seconds(behind, time.monotonic())
            if seconds is None:
                self._figures.forget(names.CATCH_UP, self._stage.name, str(partition))
            else:
                self._figures.show(names.CATCH_UP, self._stage.name, str(partition), value=seconds)

    def _tell_what_was_read(self, partition: int, gathering: Gathering, now_ms: int) -> None:
        for message, fault in gathering.faults:
            self._reject(message, fault, now_ms)
        for topic, count in gathering.messages.items():
            self._counted[names.MESSAGES, (topic, str(partition))] += count
        for topic, count in gathering.rows.items():
            self._counted[names.ROWS, (topic,)] += count
        for told in (gathering.faults, gathering.messages, gathering.rows):
            told.clear()

    def _fold_partition(
        self, partition: int, gathered: Gathered, at_end: frozenset[str], now_ms: int
    ) -> None:
        try:
            folded = self._stage.fold(self._states[partition], gathered.batch(self._stage, now_ms, at_end))
        # what polars panics over is nobody's Exception
        except (Exception, PanicException):
            messages = gathered.messages
            if not messages:
                raise
            if len(messages) > 1:
                # one at fault among ten thousand is found in a few folds, while the group waits for a poll
                for half in gathered.halves():
                    self._fold_partition(partition, half, frozenset(), now_ms)
                # of the last messages some may have had no rows
                self._keep_place(partition, gathered, self._waiting(partition))
                return
            # The state is as it was: this message alone is set aside, and nothing else is lost.
            ((topic, offset),) = messages
            _log.exception("fold_failed", stage=self._stage.name, topic=topic, offset=offset)
            fault = UnreadableMessageError("fold_failed", "the stage could not fold it")
            self._reject(Message(topic, partition, offset, b""), fault, now_ms)
            self._keep_place(partition, gathered, self._waiting(partition))
            return
        self._take(partition, folded, now_ms)
        self._keep_place(partition, gathered, folded.needed)

    def _take(self, partition: int, folded: Folded[S], now_ms: int) -> None:
        self._states[partition] = folded.state
        if folded.moved:
            self._outbox.setdefault(partition, []).extend(folded.records)
        for (schema, reason), count in folded.rejected.items():
            self._counted[names.REJECTED_ROWS, (_TOPIC_OF[schema], reason)] += count
            # repeats are what a restart or a retried append brings: nothing to report
            if reason != "repeat":
                self._say("rows_rejected", schema=schema, reason=reason, count=count)
        for schema, count in folded.late.items():
            self._counted[names.LATE_ROWS, (_TOPIC_OF[schema],)] += count
        if folded.event_ms is not None:
            self._event_ms[partition] = max(folded.event_ms, self._event_ms.get(partition, folded.event_ms))

    def _show_lag(self, partition: int, now_ms: int) -> None:
        event_ms = self._event_ms.get(partition)
        if event_ms is not None:
            self._lag_s[partition] = lag_s = (now_ms - event_ms) / 1000
            self._figures.show(names.EVENT_TIME_LAG, self._stage.name, str(partition), value=lag_s)

    def _keep_place(self, partition: int, gathered: Gathered, needed: Mapping[str, int]) -> None:
        for topic, offset in gathered.next_offsets.items():
            self._positions[topic, partition] = offset
        for topic in self._stage.inputs:
            position = self._positions.get((topic, partition))
            if position is not None:
                self._resume[topic, partition] = min(needed.get(topic, position), position)

    def _waiting(self, partition: int) -> dict[str, int]:
        """What the last fold needed to be read again after a restart."""
        places = {topic: (topic, partition) for topic in self._stage.inputs}
        return {
            topic: self._resume[place]
            for topic, place in places.items()
            if place in self._resume and self._resume[place] < self._positions[place]
        }

    def _reject(self, message: Message, fault: UnreadableMessageError, now_ms: int) -> None:
        # what is wrong may be quoted in it, up to the whole message
        reason, detail = fault.reason, str(fault)[:_MOST_DETAIL]
        self._counted[names.REJECTED_MESSAGES, (message.topic, reason)] += 1
        self._say(
            "message_rejected", topic=message.topic, reason=reason, offset=message.offset, detail=detail
        )
        row = records.RejectedRow(
            ts_ms=now_ms,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            reason=reason,
            detail=detail,
        )
        self._rejected.append(row)
        # its partition has moved past it
        self._outbox.setdefault(message.partition, [])

    def _set_aside(self) -> Iterator[Record]:
        """What was rejected, by topic."""
        by_topic: dict[str, list[records.RejectedRow]] = defaultdict(list)
        for row in self._rejected:
            by_topic[row.topic].append(row)
        for topic, rows in by_topic.items():
            for first in range(0, len(rows), REJECTED_PER_MESSAGE):
                some = rows[first : first + REJECTED_PER_MESSAGE]
                yield Record(topics.REJECTED, topic.encode(), encode_rows(records.REJECTED, some))

    def _commit(self) -> None:
        began = time.monotonic()
        snapshots = {partition: self._stage.snapshot(self._states[partition]) for partition in self._outbox}
        self._stage_log.commit(
            Commit(
                records=[*itertools.chain.from_iterable(self._outbox.values()), *self._set_aside()],
                snapshots=snapshots,
                resume={place: offset for place, offset in self._resume.items() if place[1] in snapshots},
            )
        )
        self._outbox.clear()
        self._rejected.clear()
        self._figures.show(names.CHECKPOINT_SECONDS, self._stage.name, value=time.monotonic() - began)
        self._figures.show(names.CHECKPOINT_BYTES, self._stage.name, value=sum(map(len, snapshots.values())))
        self._show(snapshots)

    def _show(self, partitions: Iterable[int]) -> None:
        """Publish what is committed, and nothing else: a counter shown and then lost would step back."""
        for partition in partitions:
            self._shown[partition] = self._states[partition]
            self._page.put(partition, self._stage.families([self._states[partition]]))
        self._publish(self._page.text())
        self._committed(self._shown.values())

    def _say(self, event: str, **what: object) -> None:
        """One line per event and reason and minute."""
        key = f"{event} {what.get('topic')} {what.get('schema')} {what.get('reason')}"
        if self._minute_log.is_due(key):
            _log.warning(event, stage=self._stage.name, **what)
