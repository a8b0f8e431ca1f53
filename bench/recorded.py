"""A real Kafka that already holds what a fleet's collectors sent: made once, kept under .cache/bench for a day."""

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from kafka_broker import Cluster, KafkaBroker, java_command

from bench import CACHE, ROOT
from bench.fleet import Fleet, Shape
from bench.segments import ROWS, fill, fill_rows
from idlewatt.stream import kafka_clients, topics
from idlewatt.stream.kafka_topics import create_topics
from idlewatt.stream.settings import Log, Settings

_OUTPUTS: Final = (topics.LEDGER, topics.MONEY, topics.STATE, topics.REJECTED)
# what the bytes in the log depend on
_MADE_BY: Final = (
    "stream/records.py",
    "stream/encoding.py",
    "bench/fleet.py",
    "bench/segments.py",
)
_KEPT_S: Final = 86_400


class KeptBroker(KafkaBroker):
    """The tests' broker over a folder that may have been formatted and filled before."""

    def open(self) -> None:
        """Start it; format the folder if it is new."""
        identity = self.folder / "cluster_id"
        if identity.exists():
            self.cluster_id = identity.read_text()
            properties = "".join(f"{key}={value}\n" for key, value in self._properties.items())
            (self.folder / "server.properties").write_text(properties)
        else:
            self.prepare()
            identity.write_text(self.cluster_id)
        self.start()


@contextlib.contextmanager
def empty_broker(name: str) -> Iterator[KeptBroker]:
    """A broker with nothing in it; removed at the end."""
    folder = CACHE / f"kafka-{name}-{os.getpid()}"
    broker = KeptBroker(folder, java_command(), Cluster())
    try:
        broker.open()
        yield broker
    finally:
        broker.remove()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def recorded(
    gpus: int, shape: Shape, seconds: int, partitions: int, *, rows: bool = False
) -> Iterator[tuple[KeptBroker, Fleet]]:
    """A broker that holds so many seconds of a fleet's messages, and the fleet; `rows`: as single rows too."""
    folder = CACHE / f"log-{shape}-{gpus}-{seconds}-{partitions}"
    with _alone(folder):
        manifest, with_rows = folder / "fleet.json", folder / "rows"
        key = _key()
        fleet = _known(manifest, key)
        if (folder / "data" / f"{ROWS}-0").exists() and not with_rows.exists():
            # a run was stopped while it wrote them
            fleet = None
        if fleet is None:
            shutil.rmtree(folder, ignore_errors=True)
        broker = KeptBroker(folder, java_command(), Cluster())
        try:
            broker.open()
            if fleet is None:
                fleet = _new_fleet(gpus, shape, seconds, partitions)
                _fill(broker, fleet)
                manifest.write_text(json.dumps({"key": key, "made_at": time.time(), "fleet": asdict(fleet)}))
            if rows and not with_rows.exists():
                _fill_rows(broker, fleet)
                with_rows.touch()
            yield broker, fleet
        finally:
            broker.stop()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two brokers in one folder would destroy it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  another run uses {folder.name}: waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fresh_outputs(broker: KafkaBroker, partitions: int, **sections: Any) -> Settings:
    """Settings with a consumer group of its own; the topics that processors write to are made anew."""
    log = {"kind": "kafka", "bootstrap_servers": broker.bootstrap_servers, "partitions": partitions}
    process = {"group": f"bench-{uuid.uuid4().hex[:8]}"} | sections.pop("process", {})
    settings = Settings.model_validate({**sections, "log": log, "process": process})
    with kafka_clients.open_admin(settings.log) as admin:
        present = set(admin.list_topics()) & set(_OUTPUTS)
        if present:
            admin.delete_topics(sorted(present))
            while set(admin.list_topics()) & present:
                time.sleep(0.05)
    create_topics(settings.log)
    return settings


def _new_fleet(gpus: int, shape: Shape, seconds: int, partitions: int) -> Fleet:
    """Ends shortly before now. A minute ends 30 s after the start, and each 60 s after that."""
    end_s = int(time.time()) // 60 * 60
    start_s = end_s - (seconds + 59) // 60 * 60 - 30
    return Fleet(gpus, shape, start_s * 1000, seconds, partitions)


def _key() -> str:
    sources = [(ROOT / path).read_text() for path in _MADE_BY]
    return hashlib.sha256(
        "".join([*sources, inspect.getsource(kafka_clients.open_producer)]).encode()
    ).hexdigest()


def _known(manifest: Path, key: str) -> Fleet | None:
    if not manifest.exists():
        return None
    found = json.loads(manifest.read_text())
    if found["key"] != key or time.time() - found["made_at"] > _KEPT_S:
        return None
    return Fleet(**found["fleet"])


def _fill_rows(broker: KeptBroker, fleet: Fleet) -> None:
    with broker.admin() as admin:
        admin.create_topics({ROWS: {"num_partitions": fleet.partitions, "replication_factor": 1}})
    broker.stop()
    fill_rows(broker.folder / "data", fleet)
    broker.start()


def _fill(broker: KeptBroker, fleet: Fleet) -> None:
    began = time.monotonic()
    create_topics(Log(kind="kafka", bootstrap_servers=broker.bootstrap_servers, partitions=fleet.partitions))
    broker.stop()
    print(f"  writing {fleet.gpu_rows:,} GPU and {fleet.engine_rows:,} engine rows", flush=True)
    fill(broker.folder / "data", fleet)
    broker.start()
    print(f"  written in {time.monotonic() - began:.0f} s", flush=True)
