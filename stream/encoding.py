"""Rows to bytes: each message is one self-describing Arrow IPC stream that any Arrow reader opens.

The stream itself is not compressed: each of its thirty buffers would be a small zstd stream of its own, slow to
open and four times as long as one over the whole message. Kafka compresses its batches, the embedded log and the
spool each value.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from crc32c import crc32c
from pyarrow import ipc

from idlewatt.stream.records import Schema

# Stands after the end of the stream, where Arrow readers no longer look: the number of rows, a mark, and a
# checksum of all before the mark. What bears it is read the fast way; see decoding.py.
SEAL: Final = b"IWC2"
SEAL_BYTES: Final = 4 + len(SEAL) + 4
END_OF_STREAM: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def encode_rows(schema: Schema, rows: Sequence[Any]) -> bytes:
    """Encode rows of `schema.row` as one message."""
    columns = [[getattr(row, field.name) for row in rows] for field in dataclasses.fields(schema.row)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema.arrow, strict=True)]
    return encode_table(schema, pa.Table.from_arrays(arrays, schema=schema.arrow))


def encode_table(schema: Schema, table: pa.Table) -> bytes:
    """Encode a table that has the schema's columns, in any order, as one message of one record batch."""
    table = table.select(schema.arrow.names).cast(schema.arrow).combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], schema.arrow)]
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, schema.arrow) as writer:
        for batch in batches:
            writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return sealed(stream, table.num_rows)


def sealed(stream: bytes, rows: int) -> bytes:
    """An Arrow stream of one record batch of our own making as a message."""
    counted = stream + rows.to_bytes(4, "little")
    return counted + SEAL + crc32c(counted).to_bytes(4, "little")
