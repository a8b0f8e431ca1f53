"""Writes a fleet's messages into the segment files of a stopped broker, as its producers would have.

Each message is a record batch of its own, as it is where thousands of collectors send one message at a time: a
producer that packs thousands of them into one batch would flatter every consumer. Sending a million such batches
takes this machine many minutes; a broker that finds them in its files at start-up reads them all the same.
For peers whose idiom is one row per message there are the same rows as JSON, 500 in a batch.
"""

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
from kafka.record.default_records import DefaultRecordBatchBuilder

from bench import ROOT
from bench.fleet import Fleet
from idlewatt.stream import kafka_clients
from idlewatt.stream.settings import Log

ROWS: Final = "bench.rows"

_WORKERS: Final = 2
_ROWS_PER_BATCH: Final = 500
_FIRST_SEGMENT: Final = f"{0:020d}.log"
_CODECS: Final = {None: 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# set by the broker: outside of the batch's checksum
_BASE_OFFSET: Final = struct.Struct(">q")
# those of a batch that came to one of our topics: the time of its arrival. Its checksum is over all from there on.
_CHECKSUM_AT: Final = 17
_ATTRIBUTES_AT: Final = 21
_ARRIVED: Final = 8
_MAX_BATCH_BYTES: Final = 1 << 20


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


def _messages(fleet: Fleet, partition: int, codec: int) -> Iterator[tuple[str, int, bytearray]]:
    """Topic, number of records, and batch."""
    for message in fleet.messages(partition):
        batch = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, _MAX_BATCH_BYTES)
        batch.append(0, message.sent_ms, message.key, message.value, [])
        yield message.topic, 1, _arrived(batch.build())


def _arrived(batch: bytearray) -> bytearray:
    batch[_ATTRIBUTES_AT + 1] |= _ARRIVED
    checksum = crc32c(bytes(batch[_ATTRIBUTES_AT:]))
    batch[_CHECKSUM_AT:_ATTRIBUTES_AT] = checksum.to_bytes(4, "big")
    return batch


def _rows(fleet: Fleet, partition: int, codec: int) -> Iterator[tuple[str, int, bytearray]]:
    rows = fleet.energy(partition).sort("ts_ms", maintain_order=True)
    for part in rows.iter_slices(_ROWS_PER_BATCH):
        batch = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, _MAX_BATCH_BYTES)
        for n, (ts_ms, gpu, energy_mj) in enumerate(part.iter_rows()):
            value = f'{{"ts_ms":{ts_ms},"gpu_uuid":"{gpu}","energy_mj":{energy_mj}}}'
            batch.append(n, ts_ms, gpu.encode(), value.encode(), [])
        yield ROWS, part.height, batch.build()


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


def _codec() -> int:
    """How the product's producers compress their batches."""
    with mock.patch.object(kafka_clients, "KafkaProducer") as producer:
        kafka_clients.open_producer(Log(kind="kafka"), "bench", 60_000)
    return _CODECS[producer.call_args.kwargs["compression_type"]]


def _work(what: str, data: Path, fleet: Fleet, worker: int) -> None:
    codec = _codec()
    make = _rows if what == "rows" else _messages
    for partition in range(worker, fleet.partitions, _WORKERS):
        _write(data, partition, make(fleet, partition, codec))


if __name__ == "__main__":
    _work(sys.argv[1], Path(sys.argv[2]), Fleet(**json.loads(sys.argv[3])), int(sys.argv[4]))
