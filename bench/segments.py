"""Writes a fleet's messages into the segment files of a stopped broker, as its collectors' producers would have.

Each message is a record batch of its own, as it is where thousands of collectors send one message at a time: a
producer that packs thousands of them into one batch would flatter every consumer. Sending a million such batches
takes this machine many minutes; a broker that finds them in its files at start-up reads them all the same.
"""

import json
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from unittest import mock

from kafka.record.default_records import DefaultRecordBatchBuilder

from bench import ROOT
from bench.fleet import Fleet, Message
from idlewatt.stream import kafka_clients, topics
from idlewatt.stream.settings import Log

_WORKERS: Final = 2
_FIRST_SEGMENT: Final = f"{0:020d}.log"
_CODECS: Final = {None: 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# set by the broker: outside of the batch's checksum
_BASE_OFFSET: Final = struct.Struct(">q")
_MAX_BATCH_BYTES: Final = 1 << 20


def fill(data: Path, fleet: Fleet) -> None:
    """Put all messages of the fleet into the empty topics below the data folder of a broker that is stopped."""
    command = [sys.executable, "-m", "bench.segments", str(data), json.dumps(asdict(fleet))]
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


def _write(data: Path, fleet: Fleet, partition: int, codec: int) -> None:
    places = {topic: data / f"{topic}-{partition}" for topic in (topics.GPU, topics.ENGINE)}
    ends = dict.fromkeys(places, 0)
    files = {topic: (place / _FIRST_SEGMENT).open("wb") for topic, place in places.items()}
    for message in fleet.messages(partition):
        files[message.topic].write(_batch(message, ends[message.topic], codec))
        ends[message.topic] += 1
    for topic, file in files.items():
        file.close()
        for index in (".index", ".timeindex"):
            (places[topic] / _FIRST_SEGMENT).with_suffix(index).unlink(missing_ok=True)


def _batch(message: Message, offset: int, codec: int) -> bytearray:
    batch = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, _MAX_BATCH_BYTES)
    batch.append(0, message.sent_ms, message.key, message.value, [])
    built: bytearray = batch.build()
    _BASE_OFFSET.pack_into(built, 0, offset)
    return built


def _codec() -> int:
    """How the product's producers compress their batches."""
    options: dict[str, Any] = {}
    with mock.patch.object(kafka_clients, "KafkaProducer", lambda **given: options.update(given)):
        kafka_clients.open_producer(Log(kind="kafka"), "bench", 60_000)
    return _CODECS[options["compression_type"]]


def _work(data: Path, fleet: Fleet, worker: int) -> None:
    codec = _codec()
    for partition in range(worker, fleet.partitions, _WORKERS):
        _write(data, fleet, partition, codec)


if __name__ == "__main__":
    _work(Path(sys.argv[1]), Fleet(**json.loads(sys.argv[2])), int(sys.argv[3]))
