"""Messages as the collectors encode them, made four times faster: a fleet has a million of them.

pyarrow sets zstd up anew for each of a message's thirty buffers; polars, which writes the same rows here, does
not. The schema and the seal are the product's own.
"""

import functools
import io

import polars as pl
from crc32c import crc32c

from idlewatt.stream.decoding import empty_frame
from idlewatt.stream.encoding import SEAL, encode_table
from idlewatt.stream.records import Schema


def encode_frame(schema: Schema, frame: pl.DataFrame) -> bytes:
    """Encode a frame that has exactly the schema's columns as one message."""
    body = io.BytesIO()
    frame.write_ipc_stream(body, compression="zstd", compat_level=pl.CompatLevel.oldest())
    written = body.getvalue()
    stream = _schema_part(schema) + written[_schema_end(written) :]
    return stream + SEAL + crc32c(stream).to_bytes(4, "little")


@functools.cache
def _schema_part(schema: Schema) -> bytes:
    message = encode_table(schema, empty_frame(schema).to_arrow())
    return message[: _schema_end(message)]


def _schema_end(stream: bytes) -> int:
    # the mark of a message, its length, the message itself
    return 8 + int.from_bytes(stream[4:8], "little")
