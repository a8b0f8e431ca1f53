"""Rows to bytes: each message is one self-describing Arrow IPC stream that any Arrow reader opens.

The stream itself is not compressed: each of its thirty buffers would be a small zstd stream of its own, slow to
open and four times as long as one over the whole message. Kafka compresses its batches, the embedded log and the
spool each value.

What a collector sends names the same few GPUs or engines in each reading: their names stand once per message, as
dictionaries. At ten readings of each that is 40 % fewer bytes and a tenth of the names to look up.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from crc32c import crc32c
from pyarrow import ipc

from idlewatt.stream.records import Schema

# Stands after the end of the stream, where Arrow readers no longer look: where the record batch begins, a mark, and a
# CRC-32C of all before. What bears it is read the fast way; see decoding.py.
SEAL: Final = b"IWC3"
SEAL_BYTES: Final = 4 + len(SEAL) + 4
END_OF_STREAM: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def encode_rows(schema: Schema, rows: Sequence[Any]) -> bytes:
    """Encode rows of `schema.row` as one message, in which the names of each entity stand once."""
    names = schema.names
    names_of = operator.attrgetter(*names)
    entities: dict[tuple[Any, ...], int] = {}
    places = [
        # a list cannot be looked up
        entities.setdefault(tuple(tuple(v) if isinstance(v, list) else v for v in key), len(entities))
        for key in map(names_of, rows)
    ]
    values = dict(zip(names, zip(*entities, strict=True), strict=True)) if entities else {}
    return encode_named(
        schema,
        {
            field.name: pa.array([getattr(row, field.name) for row in rows], field.type)
            for field in schema.arrow
            if field.name not in names
        },
        {name: pa.array(values.get(name, ()), schema.arrow.field(name).type) for name in names},
        pa.array(places, pa.int32()),
    )


@functools.cache
def named(schema: Schema) -> pa.Schema:
    """The schema with its names as dictionaries: so a reader knows them who has never heard of entities."""
    fields = [
        pa.field(field.name, pa.dictionary(pa.int32(), field.type), nullable=field.nullable)
        if field.name in schema.names
        else field
        for field in schema.arrow
    ]
    return pa.schema(fields, metadata=schema.arrow.metadata)


def encode_named(
    schema: Schema, columns: Mapping[str, pa.Array], entities: Mapping[str, pa.Array], places: pa.Array
) -> bytes:
    """Encode `columns`, all but the names, and the names of each row's entity, as one message.

    `entities`: each name, of all entities; `places`: the place of each row's entity among them, int32. All names
    share these indices; a dictionary may hold a value twice.
    """
    arrays = [
        columns[field.name]
        if field.name in columns
        else pa.DictionaryArray.from_arrays(places, entities[field.name])
        for field in schema.arrow
    ]
    batch = pa.RecordBatch.from_arrays(arrays, schema=named(schema))
    return _written(batch)


def encode_table(schema: Schema, table: pa.Table) -> bytes:
    """Encode a table that has the schema's columns, in any order, as one message of one record batch."""
    table = table.select(schema.arrow.names).cast(schema.arrow).combine_chunks()
    (batch,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema.arrow)]
    return _written(batch)


def _written(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return sealed(stream, len(stream) - len(END_OF_STREAM) - ipc.get_record_batch_size(batch))


def sealed(stream: bytes, batch_at: int) -> bytes:
    """An Arrow stream of our own making as a message. `batch_at`: where its only record batch begins."""
    counted = stream + batch_at.to_bytes(4, "little") + SEAL
    return counted + crc32c(counted).to_bytes(4, "little")
