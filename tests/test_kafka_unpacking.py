"""What is cut out of a fetch is what kafka-python finds in it, whatever a broker may hold."""

import gzip
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import xxhash
from crc32c import crc32c
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import encode_varint

from idlewatt.stream import kafka_unpacking
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.kafka_unpacking import PartitionRecords
from idlewatt.stream.log import Message
from idlewatt.stream.topics import MAX_MESSAGE_BYTES

NONE, GZIP, LZ4, ZSTD = 0, 1, 3, 4
ARRIVED = 8
TP = TopicPartition("idlewatt.gpu", 3)

records = st.tuples(
    st.one_of(st.none(), st.binary(max_size=200)),
    st.one_of(st.none(), st.binary(max_size=20), st.binary(min_size=60, max_size=9_000)),
    st.lists(st.tuples(st.text(max_size=5), st.one_of(st.none(), st.binary(max_size=5))), max_size=2),
    # ahead of the first or behind it
    st.integers(-(10**12), 10**12),
)
batches = st.tuples(
    st.sampled_from([LZ4, LZ4, LZ4, NONE, GZIP, ZSTD]),
    st.booleans(),
    st.booleans(),
    st.lists(records, min_size=1, max_size=4),
)


def batch(codec: int, transactional: bool, base: int, rows: list[Any], *, arrived: bool = True) -> bytearray:
    """`arrived`: as a topic with LogAppendTime, like ours, has it."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, 7 if transactional else -1, 0, 0, 1 << 20)
    for n, (key, value, headers, ts_ms) in enumerate(rows):
        builder.append(n, 2_000_000_000_000 + ts_ms, key, value, headers)
    built: bytearray = builder.build()
    built[:8] = base.to_bytes(8, "big")
    if arrived:
        built[22] |= ARRIVED
    return with_checksum(built)


def with_checksum(built: bytearray) -> bytearray:
    built[17:21] = crc32c(bytes(built[21:])).to_bytes(4, "big")
    return built


def taken(kind: Any, fetched: bytes, since: int, step: int) -> tuple[list[tuple[int, bytes]], int, str]:
    """Offsets and values, where the next fetch begins, and the error that ended it."""
    part = kind(
        since, TP, MemoryRecords(fetched), check_crcs=True, isolation_level=IsolationLevel.READ_COMMITTED
    )
    found: list[tuple[int, bytes]] = []
    try:
        while part:
            some = part.take(step)
            assert {(r.topic, r.partition) for r in some} <= {TP}
            found += [(r.offset, r.value or b"") for r in some]
            if not some:
                break
    except Exception as error:
        return found, part.next_fetch_offset, repr(error)
    return found, part.next_fetch_offset, ""


@examples(200)
@given(
    parts=st.lists(batches, max_size=5),
    gap=st.integers(0, 3),
    skip=st.integers(0, 3),
    step=st.integers(1, 6),
    cut=st.integers(0, 80),
    damage=st.one_of(st.none(), st.tuples(st.floats(0, 1), st.integers(1, 255))),
)
def test_the_same_comes_out_as_of_kafka_python(
    parts: list[Any], gap: int, skip: int, step: int, cut: int, damage: tuple[float, int] | None
) -> None:
    """Batches of any codec, of transactions, with gaps between them, cut off at the end, or with a damaged byte."""
    fetched = bytearray()
    base = 100
    for codec, transactional, arrived, rows in parts:
        fetched += batch(codec, transactional, base, rows, arrived=arrived)
        base += len(rows) + gap
    if cut and len(fetched) > cut:
        del fetched[-cut:]
    if damage is not None and fetched:
        fetched[int(damage[0] * (len(fetched) - 1))] ^= damage[1]
    ours, theirs = (
        taken(kind, bytes(fetched), 100 + skip, step) for kind in (PartitionRecords, Fetcher.PartitionRecords)
    )
    assert ours == theirs


def test_what_a_collector_sends_is_cut_out_by_us() -> None:
    """A batch of one message, as an idempotent producer compresses it, does not go the slow way."""
    for arrived in (False, True):
        sent = batch(LZ4, False, 0, [(b"key", b"value" * 100, [], 0)], arrived=arrived)
        part = PartitionRecords(0, TP, MemoryRecords(bytes(sent)), check_crcs=True)
        (found,) = part.take()
        assert isinstance(found, Message)
        assert (found.offset, found.value) == (0, b"value" * 100)
        assert len(found.packed) < 100


def test_what_nobody_can_open_holds_up_nothing() -> None:
    """A sender may say lz4 of what is none, under a checksum that fits: it is handed on, and what follows it too."""
    lying = batch(NONE, False, 5, [(b"key", b"value" * 20, [], 0)])
    lying[22] = LZ4 | ARRIVED
    with_checksum(lying)
    honest = batch(LZ4, False, 6, [(b"key", b"after", [], 0)])
    part = PartitionRecords(5, TP, MemoryRecords(bytes(lying + honest)), check_crcs=True)
    first, second = part.take()
    assert (second.offset, second.value) == (6, b"after")
    assert (first.offset, first.value) == (5, first.packed)
    with pytest.raises(UnreadableMessageError, match="does not begin like an Arrow IPC stream"):
        decode(first.value)


def varint(number: int) -> bytes:
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


def unread(codec: int, transactional: bool) -> bytearray:
    """Three records from offset 5 on, of which the second has a header key that is no text."""
    rows = [(b"key", value, [("header", b"")], 0) for value in (b"one", b"two", b"three")]
    built = batch(codec, transactional, 5, rows)
    body = bytes(built[61:])
    opened = gzip.decompress(body) if codec == GZIP else body
    first, second, third = opened.split(b"header")[:3]
    broken = first + b"header" + second + b"\xff\xffader" + third + b"header" + opened.split(b"header")[3]
    built[61:] = gzip.compress(broken) if codec == GZIP else broken
    built[8:12] = (len(built) - 12).to_bytes(4, "big")
    return with_checksum(built)


def test_what_kafka_python_cannot_open_holds_up_nothing() -> None:
    """One message stands for what is left of such a batch, of whatever kind it is, and all that follows is handed on."""
    lying = batch(NONE, False, 5, [(b"key", b"value" * 20, [], 0)] * 3)
    lying[22] = LZ4 | ARRIVED
    for bad, read in (
        (with_checksum(lying), []),
        (unread(GZIP, False), [(5, b"one")]),
        (unread(NONE, True), [(5, b"one")]),
    ):
        for codec, transactional in ((LZ4, False), (ZSTD, False), (NONE, True)):
            honest = batch(codec, transactional, 8, [(b"key", b"after", [], 0)])
            fetched = bytes(batch(LZ4, False, 4, [(b"key", b"before", [], 0)]) + bad + honest)
            found, next_offset, error = taken(PartitionRecords, fetched, 4, 2)
            assert found == [(4, b"before"), *read, (5 + len(read), b""), (8, b"after")]
            assert (next_offset, error) == (9, "")
            # not what was damaged on the way
            damaged = bytearray(fetched)
            damaged[fetched.index(bad) + 70] ^= 1
            found, next_offset, error = taken(PartitionRecords, bytes(damaged), 4, 2)
            assert found == [(4, b"before")]
            assert next_offset == 5
            assert "failed crc check" in error


def test_a_message_larger_than_any_of_ours_is_not_opened() -> None:
    """Half a megabyte may open to 128 MB, and to a fold come thousands."""
    for size, opens in ((MAX_MESSAGE_BYTES, True), (4 * MAX_MESSAGE_BYTES, False)):
        plain = batch(NONE, False, 5, [(b"key", b"", [], 0)])
        # size, attributes, time, offset, key; then the value's size, the value, no headers
        record = b"".join([bytes(3), varint(3), b"key", varint(size), bytes(size), b"\0"])
        sent = plain[:61] + lz4.frame.compress(varint(len(record)) + record)
        assert len(sent) < MAX_MESSAGE_BYTES
        sent[8:12] = (len(sent) - 12).to_bytes(4, "big")
        sent[22] = LZ4 | ARRIVED
        part = PartitionRecords(5, TP, MemoryRecords(bytes(with_checksum(sent))), check_crcs=True)
        (found,) = part.take()
        assert len(found.value) == (size if opens else len(found.packed))


@pytest.mark.parametrize("codec", [GZIP, LZ4, ZSTD])
@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_larger_than_any_of_ours_is_stepped_over(
    monkeypatch: pytest.MonkeyPatch, codec: int, transactional: bool, rows: int
) -> None:
    """However many messages are in it and whoever opens it; one without a value stands in its place."""
    most = 600_000
    monkeypatch.setattr(kafka_unpacking, "_MOST_OPENED_BYTES", most)
    for size, fits in ((most // rows - 100, True), (most // rows + 1, False)):
        sent = batch(codec, transactional, 5, [(b"key", bytes(size), [], 0)] * rows)
        after = batch(LZ4, False, 5 + rows, [(b"key", b"after", [], 0)])
        assert len(sent) < most // 100
        found, next_offset, error = taken(PartitionRecords, bytes(sent + after), 5, 2)
        if fits:
            assert found[:-1] == [(5 + n, bytes(size)) for n in range(rows)]
        else:
            # of a message that is alone what was sent is its value
            ((offset, value),) = found[:-1]
            assert (offset, len(value) <= len(sent)) == (5, True)
        assert found[-1] == (5 + rows, b"after")
        assert (next_offset, error) == (6 + rows, "")


def test_of_many_messages_no_more_are_made_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty ones take seven bytes each, or next to none under lz4: a batch of a kilobyte may hold a million."""
    sent = bytes(batch(LZ4, False, 5, [(b"", b"", [], 0)] * 20))
    whole = taken(PartitionRecords, sent, 5, 2)
    monkeypatch.setattr(kafka_unpacking, "_MOST_RECORDS", 10)
    assert taken(PartitionRecords, sent, 5, 2) == whole
    part = PartitionRecords(5, TP, MemoryRecords(sent), check_crcs=True)
    assert len(part.take(2)) == 2
    assert not part._waiting


def test_a_frame_that_claims_any_size_holds_up_nothing() -> None:
    """lz4 would take as much memory as its header says."""
    frame = bytearray(lz4.frame.compress(b"value" * 20, store_size=True))
    frame[6:14] = (1 << 62).to_bytes(8, "little")
    frame[14] = xxhash.xxh32_intdigest(bytes(frame[4:14])) >> 8 & 0xFF
    plain = batch(NONE, False, 5, [(b"key", b"value", [], 0)])
    lying = plain[:61] + frame
    lying[8:12] = (len(lying) - 12).to_bytes(4, "big")
    lying[22] = LZ4 | ARRIVED
    with_checksum(lying)
    part = PartitionRecords(5, TP, MemoryRecords(bytes(lying)), check_crcs=True)
    (found,) = part.take()
    assert found.value == found.packed
