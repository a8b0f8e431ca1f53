"""Messages as bytes in a file of the spool: each can be read whatever has become of its neighbours.

A frame is a head (magic with the version of the format, lengths of topic, key and value, rows, CRC-32C of the
value, topic, key), the CRC-32C of the head, and the value, compressed by zstd.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import zstandard
from crc32c import crc32c

from idlewatt.stream.log import Record

_MAGIC: Final = b"IWs\x02"
_FIXED: Final = struct.Struct("<4sHIIII")
_CRC: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class WaitingMessage:
    """A message that the log has not taken yet, and how many rows it holds."""

    record: Record
    rows: int


def to_frame(message: WaitingMessage) -> bytes:
    """The message as bytes."""
    record = message.record
    topic = record.topic.encode()
    value = zstandard.compress(record.value)
    lengths = (len(topic), len(record.key), len(value))
    head = _FIXED.pack(_MAGIC, *lengths, message.rows, crc32c(value)) + topic + record.key
    return b"".join((head, _CRC.pack(crc32c(head)), value))


def read_frames(data: bytes) -> tuple[list[WaitingMessage], int]:
    """The whole messages in `data`, in their order, and how many torn or damaged ones were skipped."""
    frames = list(_frames(data))
    messages = [
        WaitingMessage(Record(frame.topic, frame.key, zstandard.decompress(frame.value)), frame.rows)
        for frame in frames
        if frame is not None
    ]
    return messages, len(frames) - len(messages)


def rows_in(data: bytes) -> Counter[str]:
    """The rows by topic of what read_frames() gives, for a small part of what that takes."""
    rows: Counter[str] = Counter()
    for frame in _frames(data):
        if frame is not None:
            rows[frame.topic] += frame.rows
    return rows


@dataclass(frozen=True, slots=True)
class _Frame:
    topic: str
    key: bytes
    # as it stands there
    value: bytes
    rows: int
    end: int


def _frames(data: bytes) -> Iterator[_Frame | None]:
    """The whole frames in their order; None for each that is torn or damaged."""
    at = 0
    while 0 <= at < len(data):
        frame = _frame_at(data, at)
        yield frame
        # the lengths of a damaged frame cannot be trusted, so the next one is looked for
        at = data.find(_MAGIC, at + 1) if frame is None else frame.end


def _frame_at(data: bytes, start: int) -> _Frame | None:
    """The frame that starts there."""
    if start + _FIXED.size > len(data):
        return None
    magic, topic_bytes, key_bytes, value_bytes, rows, value_crc = _FIXED.unpack_from(data, start)
    key_start = start + _FIXED.size + topic_bytes
    head_end = key_start + key_bytes
    value_start = head_end + _CRC.size
    end = value_start + value_bytes
    if magic != _MAGIC or end > len(data):
        return None
    head, value = data[start:head_end], data[value_start:end]
    if (crc32c(head),) != _CRC.unpack_from(data, head_end) or crc32c(value) != value_crc:
        return None
    topic = data[start + _FIXED.size : key_start].decode()
    return _Frame(topic, data[key_start:head_end], value, rows, end)
