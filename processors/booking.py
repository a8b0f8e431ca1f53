"""Rows a stage books, as messages by site."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import polars as pl

from idlewatt.stream.frame_encoding import conforming, encode_runs
from idlewatt.stream.log import Record
from idlewatt.stream.records import Schema
from idlewatt.stream.topics import site_key

# A message must stay far below what Kafka takes (32 MiB by our topics), however large the site and long its names: what
# Kafka refuses once it refuses for ever, and with it all that is committed beside it.
ROWS_PER_MESSAGE: Final = 20_000
_MOST_BYTES: Final = 16 << 20


def messages(
    topic: str, schema: Schema, rows: pl.DataFrame, together: tuple[str, ...] = ()
) -> Iterator[Record]:
    """The rows, keyed by their site, in as many messages as they need and in their order.

    Consecutive rows that are alike in the columns `together` stay in one message, as far as it holds them.
    """
    rows = conforming(schema, rows)
    lengths, names = _runs(rows)
    if names.n_unique() < names.len():
        rows = pl.concat(rows.partition_by("site", maintain_order=True))
        lengths, names = _runs(rows)
    sites, counts = [], []
    begin = 0
    for site, length in zip(names, lengths, strict=True):
        cuts = _cuts(rows[begin : begin + length], together)
        sites += [site] * len(cuts)
        counts += cuts
        begin += length
    for site, message in zip(sites, encode_runs(schema, rows, counts), strict=True):
        yield Record(topic, site_key(site), message)


def _runs(rows: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Of consecutive rows of one site how many they are, and the site."""
    runs = rows.get_column("site").rle().struct
    return runs.field("len"), runs.field("value")


def _cuts(rows: pl.DataFrame, together: tuple[str, ...]) -> list[int]:
    """How many of the rows go into each message."""
    room = _room(rows)
    if rows.height <= room:
        return [rows.height]
    begins = [0]
    if together:
        differs = pl.any_horizontal(pl.col(name) != pl.col(name).shift(1) for name in together)
        begins = rows.select(differs.fill_null(True).arg_true()).to_series().to_list()
    counts, begin = [], 0
    while rows.height - begin > room:
        end = begins[bisect_right(begins, begin + room) - 1]
        counts.append(end - begin if end > begin else room)
        begin += counts[-1]
    return [*counts, rows.height - begin]


def _room(rows: pl.DataFrame) -> int:
    """How many rows a message holds, if all have as much text as the one that has most."""
    texts = pl.sum_horizontal(pl.col(pl.String).str.len_bytes().fill_null(0))
    widest = rows.select(texts.max()).item()
    return min(ROWS_PER_MESSAGE, max(1, _MOST_BYTES // ((widest or 0) + 16 * rows.width)))
