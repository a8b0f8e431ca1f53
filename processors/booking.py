"""Rows a stage books, as messages by site."""

from collections.abc import Iterator
from typing import Final

import polars as pl

from idlewatt.stream.frame_encoding import conforming, encode_frame
from idlewatt.stream.log import Record
from idlewatt.stream.records import Schema
from idlewatt.stream.topics import site_key

# a message must stay far below what Kafka takes (32 MiB by our topics), however large the site
ROWS_PER_MESSAGE: Final = 20_000


def messages(topic: str, schema: Schema, rows: pl.DataFrame) -> Iterator[Record]:
    """The rows, keyed by their site, in as many messages as they need and in their order."""
    by_site = conforming(schema, rows).partition_by("site", as_dict=True, maintain_order=True)
    for (site,), part in by_site.items():
        for some in part.iter_slices(ROWS_PER_MESSAGE):
            yield Record(topic, site_key(str(site)), encode_frame(schema, some))
