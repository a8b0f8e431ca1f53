"""A schema's rows as a polars frame: its types, and one that is empty."""

import functools
from typing import Final

import polars as pl
import pyarrow as pa

from idlewatt.stream.records import Schema

_POLARS_TYPES: Final[dict[pa.DataType, pl.DataType]] = {
    pa.int64(): pl.Int64(),
    pa.float64(): pl.Float64(),
    pa.large_string(): pl.String(),
    pa.bool_(): pl.Boolean(),
    pa.large_list(pa.large_string()): pl.List(pl.String()),
}


@functools.cache
def frame_schema(schema: Schema) -> pl.Schema:
    """The schema as polars types, in the order of the row's fields."""
    return pl.Schema({field.name: _POLARS_TYPES[field.type] for field in schema.arrow})


def empty_frame(schema: Schema) -> pl.DataFrame:
    """A frame of the schema with no rows."""
    return pl.DataFrame(schema=frame_schema(schema))
