"""Intervals between readings to pieces within windows, each with its share of what was gained."""

from collections.abc import Sequence

import polars as pl

from idlewatt.processors.meter.rows import by_window, where
from idlewatt.processors.meter.timeline import Advance, Edges


def with_gaps(intervals: pl.DataFrame, counters: Sequence[str]) -> pl.DataFrame:
    """Add the unmeasured time between a reading and the restart that follows it, so that no time is missing."""
    restarted = intervals["start_ms"] > intervals["t0_ms"]
    if not restarted.any():
        return intervals
    gaps = intervals.filter(restarted).with_columns_seq(
        pl.col("start_ms").alias("end_ms"),
        pl.col("t0_ms").alias("start_ms"),
        pl.lit(False).alias("measured"),
        *(pl.lit(0, pl.Int64).alias(f"inc_{c}") for c in counters),
    )
    return pl.concat([intervals, gaps])


def still_open(intervals: pl.DataFrame, edges: Edges) -> pl.DataFrame:
    """The intervals that reach past the edge; the next step goes on with them from there."""
    # a filter keeps the pieces that a frame is in, even empty ones: without this there is one more with every step
    return where(intervals, intervals["end_ms"] > edges.edge_ms).rechunk()


def silence(
    step: Advance, edges: Edges, forget_ms: int, counters: Sequence[str], carry: Sequence[str]
) -> pl.DataFrame:
    """The time from each entity's last reading to the edge, as unmeasured intervals that gained nothing.

    What lies before the last edge was booked by the step that closed it, unless the entity was unknown then.
    Silent for `forget_ms`, an entity is no longer known to be there.
    """
    since = pl.max_horizontal("ts_ms", pl.lit(edges.previous_ms))
    if step.new.len():
        since = pl.when(pl.col("id").is_in(step.new.implode())).then("ts_ms").otherwise(since)
    quiet = where(step.last, step.last["ts_ms"] < edges.edge_ms)
    rows = quiet.select_seq(
        "id",
        since.alias("t0_ms"),
        since.alias("start_ms"),
        pl.min_horizontal(pl.col("ts_ms") + forget_ms, pl.lit(edges.edge_ms)).alias("end_ms"),
        pl.lit(False).alias("measured"),
        *(pl.lit(0, pl.Int64).alias(f"inc_{c}") for c in counters),
        *(pl.col(name).alias(f"{name}_0") for name in carry),
    )
    return where(rows, rows["end_ms"] > rows["start_ms"])


def split(
    opened: pl.DataFrame,
    intervals: pl.DataFrame,
    edges: Edges,
    counters: Sequence[str],
    new: pl.Series,
) -> pl.DataFrame:
    """Cut intervals at window edges, up to the closing edge.

    `opened`: intervals that the last step left open; they are cut only from its edge on. `new`: ids of entities for
    which nothing was booked before. Increments are split in proportion to time; the last part takes the remainder.
    Adds window_start_ms, from_ms, to_ms, and late: the piece was booked as silence before.
    """
    parts = pl.concat(
        [
            opened.with_columns_seq(from_ms=pl.col("start_ms").clip(lower_bound=edges.previous_ms)),
            intervals.with_columns_seq(from_ms=pl.col("start_ms")),
        ]
    ).with_columns_seq(to_ms=pl.col("end_ms").clip(upper_bound=edges.edge_ms))
    pieces = cut(where(parts, parts["to_ms"] > parts["from_ms"]), edges.window_ms, counters)
    late = pl.col("window_start_ms") < edges.previous_ms
    if new.len():
        late &= ~pl.col("id").is_in(new.implode())
    return pieces.with_columns_seq(late=late)


def cut(parts: pl.DataFrame, window_ms: int, counters: Sequence[str]) -> pl.DataFrame:
    """Cut parts of intervals, from_ms to to_ms, at window edges, and give each its share of the increments."""
    pieces = by_window(parts, "from_ms", "to_ms", window_ms)
    bits = product_bits(pieces, counters)
    return pieces.with_columns_seq(
        (share(f"inc_{c}", pl.col("to_ms"), bits) - share(f"inc_{c}", pl.col("from_ms"), bits))
        .cast(pl.Int64)
        .alias(f"inc_{c}")
        for c in counters
    )


def product_bits(pieces: pl.DataFrame, counters: Sequence[str]) -> type[pl.Int64] | type[pl.Int128]:
    """What an increment times milliseconds fits in: a day's millijoules need 128 bits, which are slow."""
    longest_ms = (pieces["end_ms"] - pieces["start_ms"]).max()
    most = [pieces[f"inc_{c}"].max() for c in counters]
    largest = max((inc for inc in most if isinstance(inc, int)), default=0)
    return pl.Int64 if isinstance(longest_ms, int) and longest_ms * largest < 1 << 63 else pl.Int128


def share(increment: str, moment: pl.Expr, bits: type[pl.Int64] | type[pl.Int128]) -> pl.Expr:
    """What of the interval's increment had been gained by the moment; `bits`: what their products fit in."""
    passed = (moment - pl.col("start_ms")).cast(bits)
    return passed * pl.col(increment).cast(bits) // (pl.col("end_ms") - pl.col("start_ms")).cast(bits)
