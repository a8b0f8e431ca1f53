"""Takes plain messages out of what a fetch brought, in a fifth of the time that kafka-python takes.

Thousands of collectors send one message at a time, each a record batch of its own: kafka-python copies such a batch
five times and spends more on it than the meter on its readings. What is plain is cut out here; from the first batch
that is not (of a transaction, damaged, of another codec or format), the rest of the fetch is left to kafka-python.
"""

import functools
import gzip
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from crc32c import crc32c
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint, encode_varint

from idlewatt.stream.log import Message
from idlewatt.stream.topics import MAX_MESSAGE_BYTES

# https://kafka.apache.org/documentation/#recordbatch: base offset, bytes after this field, leader epoch, magic,
# checksum of all that follows; attributes, last offset delta; two timestamps, producer's id, epoch and sequence; records
_HEADER: Final = struct.Struct(">qiibIhi30xi")
_BATCH_BYTES_FROM: Final = 12
_CHECKED_FROM: Final = 21
_BODY_FROM: Final = _HEADER.size - _CHECKED_FROM
_MAGIC: Final = 2
# attributes, time and offset of the first record of a batch, the latter two less those of the batch
_FIRST: Final = bytes(3)
# the size of a record of a megabyte, those, and the size of a key of 8 KB
_BEGINNING_BYTES: Final = 8
# What a batch of ours may hold with room to spare: a producer takes no larger message. lz4 opens to 255 times its size.
_MOST_OPENED_BYTES: Final = 2 * MAX_MESSAGE_BYTES
# of a batch; more are left to kafka-python, which makes messages of them only as they are asked for.
_MOST_RECORDS: Final = 1 << 16


def _decompressed(packed: bytes) -> bytes:
    """Raises one of _BROKEN."""
    if len(packed) <= _MOST_OPENED_BYTES // 255:
        found: bytes = lz4.frame.decompress(packed)
        return found
    opener = lz4.frame.LZ4FrameDecompressor()
    found = opener.decompress(packed, _MOST_OPENED_BYTES)
    if not opener.eof:
        raise ValueError("a batch holds more than any of ours")
    return found


def _bounded(read: Callable[[int], bytes]) -> bytes:
    """Raises one of _BROKEN."""
    found = read(_MOST_OPENED_BYTES + 1)
    if len(found) > _MOST_OPENED_BYTES:
        raise ValueError("a batch holds more than any of ours")
    return found


_Opened = Callable[[bytes], bytes]
# by the attributes of a batch: no transaction, no control batch; the time of its creation, or of its arrival (8), as our
# topics have it
_OPENED: Final[Mapping[int, _Opened]] = {
    0: bytes,
    3: _decompressed,
    8: bytes,
    11: _decompressed,
}
# by codec, what kafka-python would open whatever comes of it; for snappy it needs a library that is not here
_OPENED_FOR_KAFKA_PYTHON: Final[Mapping[int, _Opened]] = {
    DefaultRecordBatch.CODEC_GZIP: lambda packed: _bounded(gzip.GzipFile(fileobj=io.BytesIO(packed)).read),
    DefaultRecordBatch.CODEC_LZ4: _decompressed,
    DefaultRecordBatch.CODEC_ZSTD: lambda packed: _bounded(
        zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read
    ),
}
# what those and the functions below raise over what is no batch
_BROKEN: Final = (IndexError, RuntimeError, ValueError, MemoryError)
_ANY_OFFSET: Final = -(1 << 64)


class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Of one partition, as Message; what is not plain is unpacked by kafka-python.

    What a producer has packed alone is opened when its value is asked for. If it cannot be, it is the value itself, which
    no reader takes for a message of ours. Of any other batch that cannot be opened or holds more than any of ours, and is
    as it was sent, a message without a value stands for what is left of it. kafka-python would stand before such for ever.
    """

    next_fetch_offset: int

    def __init__(self, fetch_offset: int, tp: Any, records: Any, *args: Any, **options: Any) -> None:
        super().__init__(fetch_offset, tp, records, *args, **options)
        self._fetched = bytes(records._buffer)
        self._at = 0
        # of batches before that place, and the offset after those
        self._waiting: list[Message] = []
        self._next_offset = fetch_offset
        # a batch may begin before what was asked for
        self._since = fetch_offset

    def take(self, n: int | None = None) -> list[Message]:
        """At most `n` messages, none when there are no more. Raises what kafka-python raises."""
        found = self._take_plain(len(self._fetched) if n is None else n)
        if found or not self:
            return found
        return [Message(r.topic, r.partition, r.offset, r.value or b"") for r in super().take(n)]

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        # nobody asks for the first of them before all that is plain was taken
        batches = _Batches(self._fetched[self._at :])
        while True:
            try:
                yield from super()._unpack_records(tp, batches, *deserializers)
            except Exception:
                span = batches.span()
                if span is None:
                    raise
                first = max(span.start, self.next_fetch_offset, self.fetch_offset)
                self.next_fetch_offset = span.stop
                if first < span.stop:
                    yield Message(tp.topic, tp.partition, first, b"")
            else:
                return

    def _take_plain(self, n: int) -> list[Message]:
        """Up to the first batch that is not whole, plain and undamaged."""
        fetched, at, since = self._fetched, self._at, self._since
        topic, partition = self.topic_partition
        found = self._waiting
        # slices are copied: crc32c and lz4 take longer over a view than copying takes
        while len(found) < n and at + _HEADER.size <= len(fetched):
            base, size, epoch, magic, checksum, attributes, last, count = _HEADER.unpack_from(fetched, at)
            end = at + _BATCH_BYTES_FROM + size
            opened = _OPENED.get(attributes)
            if (
                magic != _MAGIC
                or opened is None
                or count > _MOST_RECORDS
                or not at + _HEADER.size <= end <= len(fetched)
            ):
                break
            checked = fetched[at + _CHECKED_FROM : end]
            if crc32c(checked) != checksum:
                break
            packed = checked[_BODY_FROM:]
            values: list[tuple[int, bytes, _Opened | None]]
            if count == 1 and last == 0:
                values = [(0, packed, _ALONE[attributes])]
            else:
                try:
                    values = [(delta, value, None) for delta, value in _values(opened(packed), count)]
                except _BROKEN:
                    break
            at = end
            self.leader_epoch = epoch
            self._next_offset = base + last + 1
            for delta, value, opened_by in values:
                if base + delta >= since:
                    since = _ANY_OFFSET
                    self.bytes_read += len(value)
                    # its own constructor takes twice as long
                    found.append(tuple.__new__(Message, (topic, partition, base + delta, value, opened_by)))
        found, self._waiting = found[:n], found[n:]
        if found or at != self._at:
            self.next_fetch_offset = self._waiting[0].offset if self._waiting else self._next_offset
        self._at, self._since = at, since
        self.records_read += len(found)
        return found


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    """Opens no more than a batch of ours may hold."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def _maybe_uncompress(self) -> None:
        opened = _OPENED_FOR_KAFKA_PYTHON.get(self.compression_type)
        if opened is not None and not self._decompressed:
            self._buffer = bytearray(opened(bytes(self._buffer[self._pos :])))
            self._pos = 0
            self._decompressed = True
        super()._maybe_uncompress()


class _Batches(MemoryRecords):  # type: ignore[misc]
    """Goes on behind a batch that cannot be opened."""

    _given: memoryview | None = None

    def next_batch(self) -> Any:
        self._given = self._next_slice
        batch = super().next_batch()
        return _Batch(self._given) if isinstance(batch, DefaultRecordBatch) else batch

    def span(self) -> range | None:
        """The offsets of the batch that was given last, if it is as it was sent."""
        if self._given is None or len(self._given) < _HEADER.size:
            return None
        base, _, _, magic, checksum, _, last, _ = _HEADER.unpack_from(self._given)
        whole = magic == _MAGIC and crc32c(bytes(self._given[_CHECKED_FROM:])) == checksum
        return range(base, base + last + 1) if whole else None


def _values(body: bytes, count: int) -> list[tuple[int, bytes]]:
    """Of each record its offset less that of the batch, and its value. Raises one of _BROKEN."""
    found = []
    place = 0
    for _ in range(count):
        place, delta, value = _record(body, place)
        found.append((delta, value))
    if place != len(body):
        raise ValueError("a batch is longer than its records")
    return found


def _alone_of(opened: _Opened) -> _Opened:
    """What makes the value of the only record of a batch."""

    def value(packed: bytes) -> bytes:
        try:
            body = opened(packed)
            alone = _alone(body[:_BEGINNING_BYTES], len(body))
            if alone is not None and body.startswith(alone[0], alone[1]) and body[-1] == 0:
                return body[alone[2] : -1]
            ((_, found),) = _values(body, 1)
        except _BROKEN:
            # with a checksum that fits: so it was sent, and nobody will ever open it
            return packed
        return found

    return value


_ALONE: Final = {attributes: _alone_of(opened) for attributes, opened in _OPENED.items()}


# collectors' messages differ little in length
@functools.lru_cache(maxsize=4096)
def _alone(beginning: bytes, body_bytes: int) -> tuple[bytes, int, int] | None:
    """If a body that begins so is one record without headers: how the size of its value must be written, and where, and
    where the value begins. Before the end stands the number of headers.
    """
    try:
        size, place = decode_varint(beginning, 0)
        if place + size != body_bytes or not beginning.startswith(_FIRST, place):
            return None
        key_size, place = decode_varint(beginning, place + len(_FIRST))
    except IndexError:
        return None
    place += max(key_size, 0)
    for size_bytes in range(1, min(6, body_bytes - place)):
        written = bytearray()
        encode_varint(body_bytes - 1 - place - size_bytes, written.append)
        if len(written) == size_bytes:
            return bytes(written), place, place + size_bytes
    return None


def _record(body: bytes, place: int) -> tuple[int, int, bytes]:
    """The record at this place: where it ends, its offset less that of the batch, its value. Raises one of _BROKEN."""
    size, start = decode_varint(body, place)
    end = start + size
    # attributes have no use yet; the time of its creation is that of its rows
    _, place = decode_varint(body, start + 1)
    delta, place = decode_varint(body, place)
    key_size, place = decode_varint(body, place)
    value_size, place = decode_varint(body, place + max(key_size, 0))
    value_end = place + max(value_size, 0)
    # what remains are headers, which we do not write
    if value_end > end or end > len(body):
        raise ValueError("a record is longer than its batch")
    return end, delta, body[place:value_end]
