"""Messages to rows while they are gathered: whom rows are about, however much is read at once and remembered."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from idlewatt.processors import gathering
from idlewatt.processors.gathering import Gathering
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, rosters, topics
from idlewatt.stream.encoding import SEAL_BYTES, encode_rows, sealed
from idlewatt.stream.log import Message

STAGE = MeterStage(MeterConfig())
ROW = records.GpuRow(
    ts_ms=1_790_000_000_000, site="s", pool="p", node="n", gpu_uuid="g", product="H100", energy_mj=0
)


def message(offset: int, *uuids: str, **changed: Any) -> Message:
    rows = [dataclasses.replace(ROW, energy_mj=offset, gpu_uuid=uuid, **changed) for uuid in uuids]
    return Message(topics.GPU, 0, offset, encode_rows(records.GPU, rows))


def named(gathering: Gathering) -> list[tuple[int, int, str, str]]:
    """Offset, energy, pool and UUID of each row, in order."""
    batch = gathering.take().batch(STAGE, 0, frozenset())
    rows, names = batch.frames["gpu"], batch.entities["gpu"]
    return rows.hstack(names[rows["entity"]]).select("src", "energy_mj", "pool", "gpu_uuid").rows()


def expected(messages: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[int, int, str, str]]:
    return [(offset, offset, "p", uuid) for offset, uuids in messages for uuid in uuids]


@pytest.mark.parametrize("read_at_once", [1, 3, 2048])
@pytest.mark.parametrize("most_entities", [1, 5, 1 << 19])
def test_rows_keep_their_names(
    monkeypatch: pytest.MonkeyPatch, read_at_once: int, most_entities: int
) -> None:
    """Whatever is read at once, and although rosters are given up when they are full."""
    monkeypatch.setattr(gathering, "_READ_AT_ONCE", read_at_once)
    monkeypatch.setattr(rosters, "_MOST_ENTITIES", most_entities)
    gathered = Gathering(STAGE)
    kinds = [("a", "b"), ("b", "a"), ("c",), ("a", "b"), (), ("d", "e", "f")]
    sent = [(n, kinds[n % len(kinds)]) for n in range(40)]
    for first in range(0, 40, 8):
        for offset, uuids in sent[first : first + 8]:
            gathered.add([message(offset, *uuids)])
        assert named(gathered) == expected(sent[first : first + 8])
    assert (gathered.messages[topics.GPU], gathered.rows[topics.GPU]) == (40, sum(len(k) for _, k in sent))
    assert not gathered.size_bytes


def test_a_fold_reads_so_many_messages_of_each_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood in one of them holds up no other; and what takes long is left to the next fold."""
    monkeypatch.setattr(gathering, "_READ_AT_ONCE", 2)
    monkeypatch.setattr(gathering, "MOST_MESSAGES", 4)
    gathered = Gathering(STAGE)
    gathered.add([Message(topics.GPU, 0, offset, b"x") for offset in range(7)])
    gathered.add([Message(topics.ENGINE, 0, offset, b"x") for offset in range(3)])
    # of what is tiny, messages are counted
    assert gathered.size_bytes == 10 * gathering.LEAST_MESSAGE_BYTES
    assert gathered.take().next_offsets == {topics.GPU: 4, topics.ENGINE: 3}
    assert (gathered.waits(topics.GPU), gathered.waits(topics.ENGINE)) == (True, False)
    assert gathered.size_bytes == 3 * gathering.LEAST_MESSAGE_BYTES
    gathered.add([Message(topics.ENGINE, 0, 3, b"x")])
    assert gathered.take(until_s=0.0).next_offsets == {topics.GPU: 6, topics.ENGINE: 4}
    assert gathered.take().next_offsets == {topics.GPU: 7}
    assert [(m.topic, m.offset) for m, _ in gathered.faults if m.topic == topics.GPU] == [
        (topics.GPU, offset) for offset in range(7)
    ]


def test_a_topic_that_comes_first_is_taken_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, however many takes that needs; of the others only what there is no room for."""
    monkeypatch.setattr(gathering, "MOST_MESSAGES", 4)
    monkeypatch.setattr(MeterStage, "first", frozenset({topics.ENGINE}))
    gathered = Gathering(STAGE)
    gathered.add([Message(topics.GPU, 0, offset, b"x") for offset in range(9)])
    gathered.add([Message(topics.ENGINE, 0, offset, b"x") for offset in range(7)])
    hold_bytes = 8 * gathering.LEAST_MESSAGE_BYTES

    def waits(_: gathering.Gathered) -> bool:
        return gathered.waits(topics.ENGINE)

    assert gathered.take(math.inf, waits, hold_bytes).next_offsets == {topics.ENGINE: 4, topics.GPU: 2}
    assert gathered.held_bytes == 7 * gathering.LEAST_MESSAGE_BYTES
    assert gathered.size_bytes == 3 * gathering.LEAST_MESSAGE_BYTES
    assert gathered.take(math.inf, lambda _: True, hold_bytes).next_offsets == {topics.ENGINE: 7}
    assert gathered.take(math.inf, waits, hold_bytes).next_offsets == {topics.GPU: 6}
    assert (gathered.held_bytes, gathered.size_bytes) == (0, 3 * gathering.LEAST_MESSAGE_BYTES)


def test_the_same_dictionaries_under_another_schema_are_other_names() -> None:
    """A sealed message that says its dictionaries belong to other columns is not taken for one that was read before."""
    first = message(0, "p", pool="g")
    stream = ipc.open_stream(first.value)
    batch = stream.read_next_batch()
    swapped = pa.RecordBatch.from_arrays(
        [
            batch.column({"pool": "gpu_uuid", "gpu_uuid": "pool"}.get(name, name))
            for name in batch.schema.names
        ],
        schema=batch.schema,
    )
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(swapped)
    batch_at = int.from_bytes(first.value[-SEAL_BYTES : 4 - SEAL_BYTES], "little")
    other = Message(topics.GPU, 0, 1, sealed(sink.getvalue().to_pybytes(), batch_at))
    assert len(other.value) == len(first.value) > SEAL_BYTES
    gathered = Gathering(STAGE)
    gathered.add([first, other])
    assert named(gathered) == [(0, 0, "g", "p"), (1, 0, "p", "g")]


def test_what_other_writers_messages_open_to_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a dictionary is as long in each row: one fold takes no more of such messages than of any others."""
    rows, long = 1000, "x" * 1000
    table = pa.table(
        {
            name: pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array([long]))
            if isinstance(value, str)
            else pa.array([value] * rows)
            for name, value in dataclasses.asdict(ROW).items()
            if value is not None
        }
    ).replace_schema_metadata(records.GPU.arrow.metadata)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    sent = [Message(topics.GPU, 0, n, sink.getvalue().to_pybytes()) for n in range(5)]
    assert len(sent[0].value) < 50_000
    monkeypatch.setattr(gathering, "OPENED_BYTES", 6_000_000)
    gathered = Gathering(STAGE)
    gathered.add(sent)
    assert [len(named(gathered)) for _ in range(3)] == [2 * rows, 2 * rows, rows]
