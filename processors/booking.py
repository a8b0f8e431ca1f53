"""Rows a stage books, as messages by site."""

from collections.abc import Iterator
from typing import Final

import polars as pl

from idlewatt.stream.frame_encoding import conforming, encode_runs
from idlewatt.stream.log import Record
from idlewatt.stream.records import Schema
from idlewatt.stream.topics import site_key

# a message must stay far below what Kafka takes (32 MiB by our topics), however large the site
ROWS_PER_MESSAGE: Final = 20_000


def messages(topic: str, schema: Schema, rows: pl.DataFrame) -> Iterator[Record]:
    """The rows, keyed by their site, in as many messages as they need and in their order."""
    rows = conforming(schema, rows)
    lengths, names = _runs(rows)
    if names.n_unique() < names.len():
        rows = pl.concat(rows.partition_by("site", maintain_order=True))
        lengths, names = _runs(rows)
    sites, counts = [], []
    for site, left in zip(names, lengths, strict=True):
        for begin in range(0, left, ROWS_PER_MESSAGE):
            sites.append(site)
            counts.append(min(ROWS_PER_MESSAGE, left - begin))
    for site, message in zip(sites, encode_runs(schema, rows, counts), strict=True):
        yield Record(topic, site_key(site), message)


def _runs(rows: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Of consecutive rows of one site how many they are, and the site."""
    runs = rows.get_column("site").rle().struct
    return runs.field("len"), runs.field("value")
