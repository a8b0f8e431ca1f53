"""Joules per GPU and window with kafka-python, pyarrow and polars, as one would write it: what Idlewatt is made of, alone."""

import sys
from collections import defaultdict

import polars as pl
import pyarrow as pa
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from progress import Progress
from pyarrow import ipc

WINDOW_MS, GRACE_MS = 10_000, 15_000
# fewer cost more by the message, more take more memory
MESSAGES_AT_ONCE = 1_000
COLUMNS = ["ts_ms", "gpu_uuid", "energy_mj"]


def main(brokers: str, mode: str, topic: str, output: str, total: int) -> None:
    consumer = KafkaConsumer(
        bootstrap_servers=brokers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        group_id=None,
    )
    producer = KafkaProducer(bootstrap_servers=brokers, compression_type="lz4", max_request_size=32 << 20)
    consumer.assign([TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)])
    progress = Progress(total)
    waiting = defaultdict(list)
    partitions = defaultdict(Partition)
    while True:
        fetched = consumer.poll(200, max_records=5_000)
        for place, found in fetched.items():
            waiting[place] += [message.value for message in found]
        for place, messages in waiting.items():
            if messages and (len(messages) >= MESSAGES_AT_ONCE or not fetched):
                rows = read(messages)
                closed = partitions[place].closed(rows)
                if closed.height:
                    producer.send(output, closed.write_ndjson().encode())
                messages.clear()
                progress.add(rows.height)


def read(messages: list[bytes]) -> pl.DataFrame:
    batches = [ipc.open_stream(message).read_next_batch().select(COLUMNS) for message in messages]
    rows = pl.from_arrow(pa.Table.from_batches(batches).unify_dictionaries())
    return rows.with_columns(pl.col("gpu_uuid").cast(pl.String))


class Partition:
    """What is kept from one lot of messages to the next."""

    def __init__(self) -> None:
        self.last = pl.DataFrame(
            schema={"ts_ms": pl.Int64, "gpu_uuid": pl.String, "energy_mj": pl.Int64, "new": pl.Boolean}
        )
        self.open = pl.DataFrame(schema={"gpu": pl.String, "start_ms": pl.Int64, "energy_mj": pl.Int64})

    def closed(self, rows: pl.DataFrame) -> pl.DataFrame:
        ordered = pl.concat([self.last, rows.with_columns(new=True)]).sort("gpu_uuid", "ts_ms")
        same = pl.col("gpu_uuid") == pl.col("gpu_uuid").shift(1)
        increments = ordered.with_columns(
            start_ms=pl.col("ts_ms") // WINDOW_MS * WINDOW_MS,
            increment=pl.when(same).then(pl.col("energy_mj").diff()).otherwise(0),
        ).filter("new")
        newest = ordered.filter(pl.col("gpu_uuid").ne_missing(pl.col("gpu_uuid").shift(-1)))
        self.last = newest.with_columns(new=False)
        sums = increments.group_by(gpu="gpu_uuid", start_ms="start_ms").agg(
            energy_mj=pl.col("increment").sum()
        )
        sums = pl.concat([self.open, sums]).group_by("gpu", "start_ms").agg(pl.col("energy_mj").sum())
        over = pl.col("start_ms") + WINDOW_MS + GRACE_MS <= rows["ts_ms"].max()
        self.open = sums.filter(~over)
        return sums.filter(over)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
