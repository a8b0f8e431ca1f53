"""The loop of a stage: what it commits, what it shows, and what cannot stop it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from scripted_log import ScriptedLog

from idlewatt.processors import processing
from idlewatt.processors.families import Family, family, rendered
from idlewatt.processors.gathering import LEAST_MESSAGE_BYTES, Gathering
from idlewatt.processors.page import Page
from idlewatt.processors.pipeline_figures import PipelineFigures
from idlewatt.processors.runner import FOLD_S, Runner
from idlewatt.processors.stage import Batch, Folded
from idlewatt.stream import metric_names, records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.log import Commit, Message, Poll
from idlewatt.stream.records import Schema
from idlewatt.stream.settings import Settings

NOW_MS = 1_790_000_000_000


class Summing:
    """The smallest stage: sums energy; refuses a reading of 13 mJ by raising."""

    name = "summing"
    inputs = (topics.GPU,)
    first: frozenset[str] = frozenset()
    columns: Mapping[Schema, tuple[str, ...]] = {records.GPU: ("ts_ms", "energy_mj")}
    names_apart: frozenset[Schema] = frozenset()
    gather_s = 0.0
    age_ms = 2000
    at_most: Mapping[str, int] = {}

    def empty(self) -> int:
        return 0

    def snapshot(self, state: int) -> bytes:
        return str(state).encode()

    def restore(self, snapshot: bytes) -> int:
        return int(snapshot)

    def waits(self, state: int, batch: Batch) -> bool:
        return False

    def fold(self, state: int, batch: Batch) -> Folded[int]:
        rows = batch.frames["gpu"]
        if rows.filter(pl.col("energy_mj") == 13).height:
            raise ZeroDivisionError
        gained = int(rows.get_column("energy_mj").sum())
        waiting = rows.filter(pl.col("energy_mj") == 0).get_column("src").min()
        needed = {topics.GPU: waiting} if isinstance(waiting, int) else {}
        return Folded(state + gained, needed=needed, event_ms=NOW_MS - self.age_ms, moved=gained > 0)

    def families(self, states: Sequence[int]) -> list[Family]:
        return [family(metric_names.UNACCOUNTED, [(("site", "pool"), float(state)) for state in states])]


@dataclass
class Stand:
    log: ScriptedLog
    runner: Runner[int]
    figures: PipelineFigures
    shown: list[list[float]]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.runner.step(0)

    def figure(self, name: str) -> Mapping[tuple[str, ...], float]:
        found = [metric for metric in self.figures.collect() if metric.name == name]
        return {tuple(sample.labels.values()): sample.value for sample in found[0].samples}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr("idlewatt.processors.runner.UNAVAILABLE_PAUSE_S", 0.0)
    log, figures, shown = ScriptedLog([]), PipelineFigures(), []

    def publish(page: bytes) -> None:
        lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
        shown.append([float(line.rpartition(" ")[2]) for line in lines])

    return Stand(log, Runner(Summing(), log, lambda: NOW_MS, figures, publish), figures, shown)


def reading(offset: int, energy_mj: int | None, partition: int = 0) -> Message:
    row = records.GpuRow(
        ts_ms=NOW_MS, site="s", pool="p", node="n", gpu_uuid="g", product="H100", energy_mj=energy_mj
    )
    return Message(topics.GPU, partition, offset, encode_rows(records.GPU, [row]))


def test_commits_records_state_and_place_together(stand: Stand) -> None:
    """A commit holds the new snapshot and the offset after the last message."""
    stand.log.polls = [Poll(assigned={0: b"5"}), Poll([reading(7, 10), reading(8, 20)])]
    stand.run(2)
    assert stand.log.commits == [Commit([], {0: b"35"}, {(topics.GPU, 0): 9})]
    assert stand.shown == [[5.0], [35.0]]


def test_what_opens_to_too_much_is_folded_in_parts(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is committed with its place, and only with the last one everything is read."""
    at_end: list[frozenset[str]] = []

    class Watching(Summing):
        def fold(self, state: int, batch: Batch) -> Folded[int]:
            at_end.append(batch.at_end)
            return super().fold(state, batch)

    sent = [reading(offset, offset) for offset in range(1, 8)]
    monkeypatch.setattr("idlewatt.processors.gathering.OPENED_BYTES", 2 * len(sent[0].value))
    monkeypatch.setattr(stand.runner, "_stage", Watching())
    stand.log.polls = [Poll(assigned={0: None}), Poll(sent, behind={(topics.GPU, 0): 0})]
    stand.log.polls += [Poll(behind={(topics.GPU, 0): 0})] * 3
    stand.run(5)
    assert [commit.resume[topics.GPU, 0] for commit in stand.log.commits] == [3, 5, 7, 8]
    assert stand.log.commits[-1].snapshots == {0: b"28"}
    assert at_end == [frozenset()] * 3 + [frozenset({topics.GPU})]
    assert stand.figure("idlewatt_messages_total") == {(topics.GPU, "0"): 7}


def test_place_stays_at_what_still_waits(stand: Stand) -> None:
    """A message whose rows wait is read again after a restart."""
    stand.log.polls = [Poll(assigned={0: None}), Poll([reading(7, 0), reading(8, 20)])]
    stand.run(2)
    assert stand.log.commits[0].resume == {(topics.GPU, 0): 7}


def test_a_failed_commit_starts_over(stand: Stand) -> None:
    """After a rewind nothing of the uncommitted fold is left, nothing uncommitted was ever shown, and nothing of
    what may be another's by then stays on the page."""
    stand.log.failing = 1
    stand.log.polls = [
        Poll(assigned={0: b"5"}),
        Poll([reading(7, 10)]),
        Poll(assigned={0: b"5"}),
        Poll([reading(7, 10)]),
    ]
    stand.run(4)
    assert [commit.snapshots for commit in stand.log.commits] == [{0: b"15"}]
    assert stand.shown == [[5.0], [], [5.0], [15.0]]
    assert stand.figure("idlewatt_rewinds_total") == {("summing",): 1}


def test_a_partition_taken_away_takes_its_work_along(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommitted work on a partition that is gone is not committed, and its series vanish."""
    monkeypatch.setattr(Summing, "gather_s", 3600.0)
    stand.runner._folded_at = float("inf")
    stand.log.polls = [
        Poll(assigned={0: b"1", 1: b"2"}, behind={(topics.GPU, 0): 4, (topics.GPU, 1): 0}),
        Poll([reading(7, 10, 0), reading(3, 20, 1)]),
        Poll(revoked=frozenset({0})),
    ]
    stand.run(3)
    monkeypatch.setattr(Summing, "gather_s", 0.0)
    stand.runner._folded_at = 0
    stand.run(1)
    assert [commit.snapshots for commit in stand.log.commits] == [{1: b"22"}]
    assert stand.shown[-2:] == [[2.0], [22.0]]
    assert stand.figure("idlewatt_behind_messages") == {(topics.GPU, "1"): 0}


@pytest.mark.parametrize(
    ("age_ms", "behind", "patience_s"), [(2000, 0, 1), (2000, 9, 10), (120_000, 0, 10), (120_000, 9, 30)]
)
def test_what_nobody_waits_for_is_gathered_longer(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, age_ms: int, behind: int, patience_s: int
) -> None:
    """Rows of the past, and while there are more to read: fewer, larger folds."""
    now_s = 1000.0
    monkeypatch.setattr("idlewatt.processors.runner.time.monotonic", lambda: now_s)
    monkeypatch.setattr(Summing, "gather_s", 1.0)
    monkeypatch.setattr(Summing, "age_ms", age_ms)
    stand.log.polls = [Poll(assigned={0: None}), Poll([reading(10, 7)], behind={(topics.GPU, 0): behind})]
    stand.run(1)
    now_s += 20
    stand.run(1)
    stand.log.polls = [Poll([reading(11, 3)], behind={(topics.GPU, 0): behind})]
    now_s += patience_s - 0.1
    stand.run(1)
    assert [commit.snapshots for commit in stand.log.commits] == [{0: b"7"}]
    now_s += 0.1
    stand.log.polls = [Poll(behind={(topics.GPU, 0): behind})]
    stand.run(1)
    assert [commit.snapshots for commit in stand.log.commits] == [{0: b"7"}, {0: b"10"}]


def test_the_fullest_make_room(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room a quarter of the partitions is folded, those with most; the others gather on until it is their turn."""
    now_s = 1000.0
    monkeypatch.setattr("idlewatt.processors.runner.time.monotonic", lambda: now_s)
    monkeypatch.setattr("idlewatt.processors.runner.GATHER_BYTES", 7 * len(reading(10, 7).packed))
    monkeypatch.setattr(Summing, "gather_s", 3600.0)
    more = [reading(11, 3, 4), reading(11, 5, 2)]
    stand.log.polls = [
        Poll(assigned=dict.fromkeys(range(5))),
        Poll([reading(10, 7, partition) for partition in range(5)]),
        Poll(more),
        Poll([reading(12, 1, 4), reading(13, 1, 4), reading(12, 1, 3), reading(13, 1, 3)]),
    ]
    stand.run(2)
    assert not stand.log.commits
    stand.run(1)
    assert [commit.snapshots for commit in stand.log.commits] == [{2: b"12", 4: b"10"}]
    stand.run(1)
    assert [commit.snapshots for commit in stand.log.commits][1:] == [{3: b"9", 4: b"12"}]
    now_s += 3600.0
    stand.run(1)
    assert [commit.snapshots for commit in stand.log.commits][2:] == [{0: b"7", 1: b"7"}]


def test_it_polls_between_long_folds(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no time for is folded after the next poll, with what that brought; nothing is left out."""
    now_s = 1000.0
    monkeypatch.setattr("idlewatt.processors.runner.time.monotonic", lambda: now_s)
    folded, fold = [], Summing.fold

    def slow(stage: Summing, state: int, batch: Batch) -> Folded[int]:
        nonlocal now_s
        now_s += FOLD_S / 2
        folded.append(batch.frames["gpu"]["src"].to_list())
        return fold(stage, state, batch)

    monkeypatch.setattr(Summing, "fold", slow)
    stand.log.polls = [
        Poll(assigned=dict.fromkeys(range(3))),
        Poll([reading(10, 7, partition) for partition in range(3)]),
        Poll([reading(11, 3, 2)], revoked=frozenset({0})),
    ]
    stand.run(2)
    assert folded == [[10], [10]]
    assert [commit.snapshots for commit in stand.log.commits] == [{0: b"7", 1: b"7"}]
    stand.run(1)
    assert folded == [[10], [10], [10, 11]]
    assert [commit.snapshots for commit in stand.log.commits][1:] == [{2: b"10"}]


def test_it_polls_while_messages_take_long_to_read(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other writers take fifty times as long as ours: what is left of a partition is folded after a poll."""
    now_s = 1000.0
    monkeypatch.setattr("idlewatt.processors.runner.time.monotonic", lambda: now_s)
    monkeypatch.setattr("idlewatt.processors.gathering._READ_AT_ONCE", 1)
    read = Gathering._read

    def slow(*args: Any) -> Any:
        nonlocal now_s
        now_s += FOLD_S / 2
        return read(*args)

    monkeypatch.setattr(Gathering, "_read", slow)
    stand.log.polls = [Poll(assigned={0: None}), Poll([reading(offset, 7) for offset in range(5)])]
    stand.run(4)
    assert [commit.resume[topics.GPU, 0] for commit in stand.log.commits] == [2, 4, 5]


def test_it_tells_when_it_will_have_caught_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per partition, over all its topics, and nothing of a partition that is another's or gets no nearer."""
    now_s = 100.0
    monkeypatch.setattr("idlewatt.processors.runner.time.monotonic", lambda: now_s)
    stand.log.polls = [Poll(assigned={0: None, 1: None, 2: None})]
    stand.run(1)
    for step in range(11):
        now_s = 200.0 + step
        behind = {(topics.GPU, 0): 600 - 40 * step, (topics.ENGINE, 0): 200 - 10 * step, (topics.GPU, 1): 0}
        stand.log.polls.append(Poll(behind={**behind, (topics.GPU, 2): 50 + step}))
        stand.run(1)
    told = stand.figure("idlewatt_catch_up_seconds")
    assert told == {("summing", "0"): 6.0, ("summing", "1"): 0.0}
    stand.log.polls.append(Poll(revoked=frozenset({0})))
    stand.run(1)
    assert set(stand.figure("idlewatt_catch_up_seconds")) == {("summing", "1")}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"not arrow", "not_arrow"),
        (encode_rows(records.MONEY, []), "wrong_topic"),
        (reading(0, 13).value, "fold_failed"),
    ],
)
def test_a_bad_message_costs_nothing_else(stand: Stand, bad: bytes, reason: str) -> None:
    """It goes to idlewatt.rejected with its place and reason, is counted, and its neighbours count."""
    stand.log.polls = [
        Poll(assigned={0: None}),
        Poll([reading(7, 10), Message(topics.GPU, 0, 8, bad), reading(9, 20)]),
    ]
    stand.run(2)
    (commit,) = stand.log.commits
    assert commit.snapshots == {0: b"30"}
    assert commit.resume == {(topics.GPU, 0): 10}
    (rejected,) = [decode(record.value)[1].row(0, named=True) for record in commit.records]
    assert (rejected["topic"], rejected["offset"], rejected["reason"]) == (topics.GPU, 8, reason)
    assert stand.figure("idlewatt_rejected_messages_total") == {(topics.GPU, reason): 1}


def rejected_in(commit: Commit) -> list[list[tuple[int, int]]]:
    """Partitions and offsets of what a commit sets aside, by message."""
    return [decode(record.value)[1].select("partition", "offset").rows() for record in commit.records]


def test_a_flood_of_tiny_garbage_is_set_aside_in_parts(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few bytes it has: a step of minutes would lose the partitions, and begin again with the same. What is set
    aside takes few messages of few rows, and after so many the other partitions wait for the next commit."""
    monkeypatch.setattr(Summing, "gather_s", 3600.0)
    stand.runner._folded_at = float("inf")
    monkeypatch.setattr("idlewatt.processors.runner.GATHER_BYTES_PER_PARTITION", 4 * LEAST_MESSAGE_BYTES)
    monkeypatch.setattr("idlewatt.processors.runner.MOST_REJECTED", 4)
    monkeypatch.setattr("idlewatt.processors.runner.REJECTED_PER_MESSAGE", 3)
    monkeypatch.setattr("idlewatt.processors.gathering._READ_AT_ONCE", 2)
    monkeypatch.setattr("idlewatt.processors.gathering.MOST_MESSAGES", 4)
    garbage = [Message(topics.GPU, 0, offset, b"x") for offset in range(9)]
    others = [*[reading(offset, 5, 1) for offset in range(3)], Message(topics.GPU, 1, 3, b"x")]
    stand.log.polls = [Poll(assigned={0: None, 1: None}), Poll([*garbage, *others])]
    stand.run(4)
    assert [rejected_in(commit) for commit in stand.log.commits] == [
        [[(0, 0), (0, 1), (0, 2)], [(0, 3)]],
        [[(1, 3)]],
        [[(0, 4), (0, 5), (0, 6)], [(0, 7)]],
    ]
    assert [commit.resume for commit in stand.log.commits] == [
        {(topics.GPU, 0): 4},
        {(topics.GPU, 1): 4},
        {(topics.GPU, 0): 8},
    ]
    assert stand.log.commits[1].snapshots == {1: b"15"}


def test_only_what_is_committed_is_counted(stand: Stand) -> None:
    """What a failed commit set aside is read, and set aside, again."""
    stand.log.failing = 2
    messages = [reading(7, 10), Message(topics.GPU, 0, 8, b"x")]
    stand.log.polls = [Poll(assigned={0: None}), Poll(messages)] * 3
    stand.run(6)
    assert rejected_in(stand.log.commits[0]) == [[(0, 8)]]
    assert stand.figure("idlewatt_rewinds_total") == {("summing",): 2}
    assert stand.figure("idlewatt_rejected_messages_total") == {(topics.GPU, "not_arrow"): 1}
    assert stand.figure("idlewatt_messages_total") == {(topics.GPU, "0"): 2}
    assert stand.figure("idlewatt_rows_total") == {(topics.GPU,): 1}


def test_a_panic_of_polars_is_a_fault_like_others(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no Exception, and would end the process with every start over the same message."""
    fold = Summing.fold

    def panicking(stage: Summing, state: int, batch: Batch) -> Folded[int]:
        try:
            return fold(stage, state, batch)
        except ZeroDivisionError:
            raise pl.exceptions.PanicException("index out of bounds") from None

    monkeypatch.setattr(Summing, "fold", panicking)
    stand.log.polls = [Poll(assigned={0: None}), Poll([reading(7, 10), reading(8, 13), reading(9, 20)])]
    stand.run(2)
    assert stand.log.commits[0].snapshots == {0: b"30"}
    assert stand.figure("idlewatt_rejected_messages_total") == {(topics.GPU, "fold_failed"): 1}


def test_one_at_fault_among_many_is_found_in_a_few_folds(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that folds ten thousand messages one by one is given up by its group, and begins again with the first."""
    folds, fold = 0, Summing.fold

    def counted(stage: Summing, state: int, batch: Batch) -> Folded[int]:
        nonlocal folds
        folds += 1
        return fold(stage, state, batch)

    monkeypatch.setattr(Summing, "fold", counted)
    stand.log.polls = [
        Poll(assigned={0: None}),
        Poll([reading(offset, 13 if offset == 77 else 1) for offset in range(256)]),
    ]
    stand.run(2)
    assert stand.log.commits[0].snapshots == {0: b"255"}
    assert stand.log.commits[0].resume == {(topics.GPU, 0): 256}
    assert folds <= 2 * 8 + 1


def test_what_waits_is_read_again_though_a_later_message_cannot_be_folded(stand: Stand) -> None:
    """The snapshot does not hold the rows that wait."""
    stand.log.polls = [
        Poll(assigned={0: None}),
        Poll([reading(4, 1), reading(5, 0)]),
        Poll([reading(6, 13)]),
    ]
    stand.run(3)
    assert [commit.resume[topics.GPU, 0] for commit in stand.log.commits] == [5, 5]


def test_kinds_that_share_a_topic_are_set_aside_in_its_order(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its rows were sorted out: what the snapshot holds is not read again."""
    row = records.EngineRow(
        ts_ms=NOW_MS,
        site="s",
        pool="p",
        node="n",
        engine="e",
        server="vllm",
        model_name="m",
        output_tokens=9,
        advance="step",
    )
    engine = Message(topics.GPU, 0, 1, encode_rows(records.ENGINE, [row]))
    monkeypatch.setattr(
        Summing, "columns", {records.GPU: ("ts_ms", "energy_mj"), records.ENGINE: ("output_tokens",)}
    )
    stand.log.polls = [
        Poll(assigned={0: None}),
        Poll([reading(0, 1), engine, reading(2, 13), reading(3, 1000), Message(topics.GPU, 0, 4, b"bad")]),
    ]
    stand.run(2)
    (commit,) = stand.log.commits
    assert (commit.snapshots, commit.resume) == ({0: b"1001"}, {(topics.GPU, 0): 5})


def test_a_long_complaint_is_cut_off(stand: Stand) -> None:
    """What is wrong with a message may quote all of it: a record that no broker takes would be written for ever."""
    schema = records.pa.schema([("x", records.pa.int64())], {records.NAME_KEY: b"y" * 100_000})
    sink = records.pa.BufferOutputStream()
    with records.pa.ipc.new_stream(sink, schema):
        pass
    stand.log.polls = [Poll(assigned={0: None}), Poll([Message(topics.GPU, 0, 7, bytes(sink.getvalue()))])]
    stand.run(2)
    (record,) = stand.log.commits[0].records
    assert len(record.value) < 10_000


def test_a_missing_value_rejects_its_message_alone(stand: Stand) -> None:
    """Rows are checked many messages at once; only the one at fault is set aside."""
    table = decode(reading(0, 10).value)[1].with_columns(node=pl.lit(None, pl.String)).to_arrow()
    sink = records.pa.BufferOutputStream()
    with records.pa.ipc.new_stream(sink, table.schema.with_metadata(records.GPU.arrow.metadata)) as writer:
        writer.write_table(table)
    stand.log.polls = [
        Poll(assigned={0: None}),
        Poll([reading(7, 10), Message(topics.GPU, 0, 8, bytes(sink.getvalue())), reading(9, 20)]),
    ]
    stand.run(2)
    assert stand.log.commits[0].snapshots == {0: b"30"}
    assert stand.figure("idlewatt_rejected_messages_total") == {(topics.GPU, "null_value"): 1}


def test_a_log_that_is_away_is_waited_for(stand: Stand) -> None:
    """Polls that fail end nothing; the work goes on where it was."""
    stand.log.polls = [
        Poll(assigned={0: None}),
        LogUnavailableError("away"),
        LogUnavailableError("away"),
        Poll([reading(7, 10)]),
    ]
    stand.run(4)
    assert stand.log.commits[0].snapshots == {0: b"10"}


def test_event_time_lag_is_shown(stand: Stand) -> None:
    """Lag is now less the newest event time, per stage and partition."""
    stand.log.polls = [Poll(assigned={0: None}), Poll([reading(7, 10)])]
    stand.run(2)
    assert stand.figure("idlewatt_event_time_lag_seconds") == {("summing", "0"): 2.0}


def test_an_old_page_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that was not confirmed for half a session shows no figures that may be another's by now."""
    settings = Settings.model_validate(
        {"log": {"kind": "kafka", "session_timeout_s": 20}, "process": {"stages": ["meter"]}}
    )
    log = ScriptedLog([])
    monkeypatch.setattr(processing, "open_stage_log", lambda *_: log)
    shown = processing.Processing(settings)
    shown._pages["meter"] = b"idlewatt_energy_joules_total 5\n"
    log.unconfirmed = 9.0
    assert b"idlewatt_energy_joules_total 5" in shown.metrics_body()
    log.unconfirmed = 11.0
    assert b"idlewatt_energy_joules_total" not in shown.metrics_body()
    assert b"idlewatt_rewinds_total" in shown.metrics_body()


def test_the_page_is_what_prometheus_reads() -> None:
    """Partitions join family by family; of a capped family only the largest samples of all are shown."""
    page = Page({metric_names.GPU_WASTED_WATTS.name: 2})
    for partition, pool in enumerate(("chat", 'a "quoted\\ pool\n')):
        watts = [(("s", pool, "n", f"g{i}", "H100", "idle_free"), 10.0 * i + partition) for i in range(3)]
        page.put(
            partition,
            [
                family(metric_names.AVAILABLE, [(("s", pool), 5.5)]),
                family(metric_names.GPU_WASTED_WATTS, watts),
            ],
        )
    families = {metric.name: metric for metric in text_string_to_metric_families(page.text().decode())}
    available = families["idlewatt_available_joules"].samples
    assert [(sample.labels["pool"], sample.value) for sample in available] == [
        ("chat", 5.5),
        ('a "quoted\\ pool\n', 5.5),
    ]
    assert [sample.value for sample in families["idlewatt_gpu_wasted_watts"].samples] == [21.0, 20.0]
    page.drop(0)
    page.drop(1)
    assert page.text() == b""


@given(
    st.lists(
        st.tuples(st.tuples(st.text(), st.text()), st.floats(allow_nan=False)),
        unique_by=lambda sample: sample[0],
    )
)
def test_text_keeps_labels_and_values(samples: list[tuple[tuple[str, str], float]]) -> None:
    """Whatever stands in a label or a value, Prometheus reads what was meant."""
    page = rendered([family(metric_names.AVAILABLE, samples)])
    (read,) = text_string_to_metric_families(page.decode())
    assert [((s.labels["site"], s.labels["pool"]), s.value) for s in read.samples] == samples
