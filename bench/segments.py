"""Writes a fleet's messages into the segment files of a stopped broker, as its producers would have.

Each message is a record batch of its own, as it is where thousands of collectors send one message at a time: a
producer that packs thousands of them into one batch would flatter every consumer. Sending a million such batches
takes this machine many minutes; a broker that finds them in its files at start-up reads them all the same.
For peers whose idiom is one row per message there are the same rows as JSON, 500 in a batch.
"""

import functools
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final
from unittest import mock

from crc32c import crc32c
from kafka import codec
from kafka.record.util import encode_varint

from bench import ROOT
from bench.fleet import Fleet
from idlewatt.stream import kafka_clients
from idlewatt.stream.settings import Log

ROWS: Final = "bench.rows"

_WORKERS: Final = 2
_ROWS_PER_BATCH: Final = 500
_FIRST_SEGMENT: Final = f"{0:020d}.log"
_CODECS: Final = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# set by the broker: outside of the batch's checksum
_BASE_OFFSET: Final = struct.Struct(">q")
# https://kafka.apache.org/documentation/#recordbatch, up to the checksum, and what that is over
_UNCHECKED: Final = struct.Struct(">qiibI")
_CHECKED: Final = struct.Struct(">hiqqqhii")
_LENGTH_COUNTS_FROM: Final = 12
_MAGIC: Final = 2
# the time in a batch that came to one of our topics is that of its arrival
_ARRIVED: Final = 8
_NO_PRODUCER: Final = (-1, -1, -1)


def fill(data: Path, fleet: Fleet) -> None:
    """Put all messages of the fleet into the empty topics below the data folder of a broker that is stopped."""
    _run(data, fleet, "messages")


def fill_rows(data: Path, fleet: Fleet) -> None:
    """The same for the topic ROWS: each GPU row as JSON with ts_ms, gpu_uuid and energy_mj, keyed by GPU, in order of time."""
    _run(data, fleet, "rows")


def _run(data: Path, fleet: Fleet, what: str) -> None:
    command = [sys.executable, "-m", "bench.segments", what, str(data), json.dumps(asdict(fleet))]
    workers = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, env={"POLARS_MAX_THREADS": "1"})
        for n in range(_WORKERS)
    ]
    try:
        if any(worker.wait() for worker in workers):
            raise RuntimeError("the fleet's rows could not be written")
    finally:
        for worker in workers:
            worker.kill()
    # without this mark the broker looks at what its files really hold
    (data / ".kafka_cleanshutdown").unlink(missing_ok=True)


def _messages(fleet: Fleet, partition: int, compression: str) -> Iterator[tuple[str, int, bytearray]]:
    """Topic, number of records, and batch."""
    attributes = _CODECS[compression] | _ARRIVED
    for message in fleet.messages(partition):
        packed = _packed(_record(0, 0, message.key, message.value), compression)
        yield message.topic, 1, _batch(attributes, 1, (message.sent_ms, message.sent_ms), packed)


def _rows(fleet: Fleet, partition: int, compression: str) -> Iterator[tuple[str, int, bytearray]]:
    rows = fleet.energy(partition).sort("ts_ms", maintain_order=True)
    for part in rows.iter_slices(_ROWS_PER_BATCH):
        first_ms, last_ms = part["ts_ms"][0], part["ts_ms"][-1]
        records = b"".join(
            _record(
                ts_ms - first_ms,
                n,
                gpu.encode(),
                f'{{"ts_ms":{ts_ms},"gpu_uuid":"{gpu}","energy_mj":{energy_mj}}}'.encode(),
            )
            for n, (ts_ms, gpu, energy_mj) in enumerate(part.iter_rows())
        )
        packed = _packed(records, compression)
        yield ROWS, part.height, _batch(_CODECS[compression], part.height, (first_ms, last_ms), packed)


# Batches as kafka-python's DefaultRecordBatchBuilder makes them, byte for byte, in a third of the time.


def _record(after_ms: int, place: int, key: bytes, value: bytes) -> bytes:
    """`after_ms`, `place`: time and offset less those of the batch."""
    lengths = _varint(len(key)), _varint(len(value))
    # without attributes before and without headers behind
    body = b"".join([b"\0", _varint(after_ms), _varint(place), lengths[0], key, lengths[1], value, b"\0"])
    return _varint(len(body)) + body


# numbers are few: places in a batch, lengths of messages
@functools.cache
def _varint(number: int) -> bytes:
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


def _packed(records: bytes, compression: str) -> bytes:
    found: bytes = getattr(codec, f"{compression}_encode")(records)
    return found


def _batch(attributes: int, records: int, from_to_ms: tuple[int, int], packed: bytes) -> bytearray:
    checked = _CHECKED.pack(attributes, records - 1, *from_to_ms, *_NO_PRODUCER, records) + packed
    length = _UNCHECKED.size - _LENGTH_COUNTS_FROM + len(checked)
    return bytearray(_UNCHECKED.pack(0, length, 0, _MAGIC, crc32c(checked)) + checked)


def _write(data: Path, partition: int, batches: Iterator[tuple[str, int, bytearray]]) -> None:
    files: dict[str, BinaryIO] = {}
    ends: dict[str, int] = {}
    for topic, records, batch in batches:
        if topic not in files:
            segment = data / f"{topic}-{partition}" / _FIRST_SEGMENT
            files[topic], ends[topic] = segment.open("wb"), 0
            for index in (".index", ".timeindex"):
                segment.with_suffix(index).unlink(missing_ok=True)
        _BASE_OFFSET.pack_into(batch, 0, ends[topic])
        files[topic].write(batch)
        ends[topic] += records
    for file in files.values():
        file.close()


def _compression() -> str:
    """How the product's producers compress their batches."""
    with mock.patch.object(kafka_clients, "KafkaProducer") as producer:
        kafka_clients.open_producer(Log(kind="kafka"), "bench", 60_000)
    found: str = producer.call_args.kwargs["compression_type"]
    return found


def _work(what: str, data: Path, fleet: Fleet, worker: int) -> None:
    compression = _compression()
    make = _rows if what == "rows" else _messages
    for partition in range(worker, fleet.partitions, _WORKERS):
        _write(data, partition, make(fleet, partition, compression))


if __name__ == "__main__":
    _work(sys.argv[1], Path(sys.argv[2]), Fleet(**json.loads(sys.argv[3])), int(sys.argv[4]))
