"""Rows to bytes: each message is one self-describing Arrow IPC stream (zstd) that any Arrow reader opens."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from crc32c import crc32c
from pyarrow import ipc

from idlewatt.stream.records import Schema

# Stands after the end of the stream, where Arrow readers no longer look: a checksum of all before it. What
# bears it is read the fast way; see decoding.py.
SEAL: Final = b"IWC1"
SEAL_BYTES: Final = len(SEAL) + 4

_OPTIONS = ipc.IpcWriteOptions(compression="zstd")


def encode_rows(schema: Schema, rows: Sequence[Any]) -> bytes:
    """Encode rows of `schema.row` as one message."""
    columns = [[getattr(row, field.name) for row in rows] for field in dataclasses.fields(schema.row)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema.arrow, strict=True)]
    return encode_table(schema, pa.Table.from_arrays(arrays, schema=schema.arrow))


def encode_table(schema: Schema, table: pa.Table) -> bytes:
    """Encode a table that has the schema's columns, in any order, as one message."""
    table = table.select(schema.arrow.names).cast(schema.arrow)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, schema.arrow, options=_OPTIONS) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream + SEAL + crc32c(stream).to_bytes(4, "little")
