"""GPUs that engines name and nobody reads: while nobody does, and how many in each window."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from idlewatt.processors.meter.activity import Holding
from idlewatt.processors.meter.rows import among, by_id, where
from idlewatt.processors.meter.timeline import Advance, Edges, first_readings, last_readings

UNREAD_COLUMNS: Final = {
    "server": pl.Int64,
    "gpu_uuid": pl.String,
    "site": pl.String,
    "pool": pl.String,
    "from_ms": pl.Int64,
    "until_ms": pl.Int64,
}


def unread_gpus(
    holding: Holding,
    stays: pl.DataFrame,
    engine_windows: pl.DataFrame,
    read_before: pl.DataFrame,
    forgotten: pl.DataFrame,
    step: Advance,
    edges: Edges,
) -> pl.DataFrame:
    """UNREAD_COLUMNS: GPUs that an engine names, and while nobody read them.

    As it would be if windows closed one by one: from the engine's first reading on, until a reading of the GPU was taken (that
    one has come says nothing, except of windows that were closed before), and again once it is forgotten. Spans of a GPU may
    overlap. `stays`: of engines, see activity.stays(). `engine_windows`: what the step books. `read_before`: last readings, and
    `forgotten`: see forgotten.py, both when the step of GPUs began.
    """
    named = where(holding.held, ~holding.held["inferred"]).select_seq("server", "id")
    was_read = among(named["id"], read_before["id"])
    # what comes late is booked in windows that were closed, maybe of before the first reading
    index, earliest_ms = holding.gpu_index, engine_windows["window_start_ms"].min()
    first_ms = by_id(named["id"], index["id"], index["first_ms"]).clip(upper_bound=edges.previous_ms)
    comes_after = was_read & (first_ms > (earliest_ms if isinstance(earliest_ms, int) else edges.edge_ms))
    lost_ms = edges.edge_ms - edges.forget_ms
    may_be_lost = any((at <= lost_ms).any() for at in (step.last["ts_ms"], step.intervals["t0_ms"]))
    if was_read.all() and not comes_after.any() and not may_be_lost and holding.unread.is_empty():
        return pl.DataFrame(schema=UNREAD_COLUMNS)
    lost = _lasts(step, edges).drop_nulls("gone_ms")
    later = where(named.hstack([first_ms.alias("until_ms")]), comes_after)
    begins = where(named, ~was_read)
    waiting = _waiting(begins["id"], step, edges)
    begins = begins.join(first_readings(step), on="id", how="left").join(waiting, on="id", how="left")
    # as from_ms: since it was forgotten, or since ever
    ever = pl.lit(None, pl.Int64)
    known = pl.concat(
        [
            # once it is back, nobody knows until when it was read before it was forgotten
            later.select_seq("server", "id", from_ms=ever, until_ms="until_ms"),
            # of closed windows a spool's tokens are booked for good, and a hold before its joules: what waits is read, too
            begins.select_seq(
                "server", "id", from_ms=ever, until_ms=pl.min_horizontal("first_ms", "from_ms")
            ),
            begins.drop_nulls("until_ms").select_seq("server", "id", from_ms="until_ms", until_ms=ever),
            begins.select_seq(
                "server", "id", from_ms=pl.lit(edges.previous_ms, pl.Int64), until_ms="first_ms"
            ),
            named.join(lost, on="id").select_seq("server", "id", from_ms="gone_ms", until_ms="back_ms"),
        ]
    ).join(index.select_seq("id", "gpu_uuid"), on="id")
    never = holding.unread.with_columns_seq(from_ms=ever, until_ms=ever)
    gpu = ["site", "pool", "gpu_uuid"]
    gone = forgotten.select_seq(*gpu, gone_ms=_edge_after(pl.col("until_ms"), edges.window_ms))
    return (
        pl.concat([never, known.select_seq(never.columns)])
        .join(stays.rename({"until_ms": "stays_ms"}), on="server")
        .join(gone, on=gpu, how="left")
        .with_columns_seq(
            pl.max_horizontal(pl.coalesce("from_ms", "gone_ms"), "since_ms").alias("from_ms"),
            pl.min_horizontal("until_ms", _edge_after(pl.col("stays_ms"), edges.window_ms)),
        )
        .select_seq(*UNREAD_COLUMNS)
    )


def with_unread(
    windows: pl.DataFrame, unread: pl.DataFrame, whose: Sequence[str], window_ms: int
) -> pl.DataFrame:
    """Add unread_gpus: how many GPUs nobody had read by the window's end, of those that its engine or pool has.

    `windows`: window_start_ms, and the columns of `unread` that say `whose` they are.
    """
    first_ms = pl.lit(windows["window_start_ms"].min(), pl.Int64)
    lasting = unread.filter(pl.col("until_ms") >= first_ms + window_ms)
    if lasting.is_empty():
        return windows.with_columns_seq(pl.lit(0, pl.Int64).alias("unread_gpus"))
    # several engines may name the same GPU, and one may name it anew: what another span has told counts once
    told_ms = pl.col("until_ms").cum_max().shift(1).over(*whose, "gpu_uuid")
    apart = lasting.sort("from_ms").with_columns_seq(pl.max_horizontal("from_ms", told_ms))
    counts = apart.group_by(*whose, "from_ms", "until_ms").len("unread_gpus")
    window = [*whose, "window_start_ms"]
    end_ms = pl.col("window_start_ms") + window_ms
    found = (
        windows.select_seq(window)
        .unique()
        .join(counts, on=list(whose))
        .filter((pl.col("from_ms") < end_ms) & (pl.col("until_ms") >= end_ms))
        .group_by(window)
        .agg(pl.col("unread_gpus").cast(pl.Int64).sum())
    )
    return windows.join(found, on=window, how="left", maintain_order="left").with_columns_seq(
        pl.col("unread_gpus").fill_null(0)
    )


def with_stays(held: pl.DataFrame, read_before: pl.DataFrame, step: Advance, edges: Edges) -> pl.DataFrame:
    """Add from_ms and until_ms: while a GPU that an engine may hold is known, a row for each time. See Holding.

    From its first reading, be it taken or not, until the edge at which it is forgotten. Null: it was known before, or still is;
    so of GPUs that an engine names, of which unread_gpus() tells.
    """
    no_bounds = held.with_columns_seq(from_ms=pl.lit(None, pl.Int64), until_ms=pl.lit(None, pl.Int64))
    if not held["inferred"].any():
        return no_bounds
    lasts = _lasts(step, edges)
    lost = lasts["id"].filter(lasts["gone_ms"].is_not_null())
    is_known = among(held["id"], read_before["id"])
    changes = held["inferred"] & (~is_known | among(held["id"], lost))
    if not changes.any():
        return no_bounds
    changed = where(held, changes)
    taken = where(lasts, among(lasts["id"], changed["id"])).sort("last_ms")
    stays = taken.join(first_readings(step), on="id", how="left", maintain_order="left").select_seq(
        "id",
        from_ms=pl.coalesce(pl.col("back_ms").shift(1).over("id"), "first_ms"),
        until_ms="gone_ms",
    )
    waiting = _waiting(changed["id"], step, edges)
    changed = changed.join(pl.concat([stays, waiting]), on="id")
    return pl.concat([where(no_bounds, ~changes), changed])


def _lasts(step: Advance, edges: Edges) -> pl.DataFrame:
    """last_readings(), with gone_ms: the edge at which the GPU is forgotten, null where this step does not forget it."""
    gone_ms = _edge_after(pl.col("last_ms") + edges.forget_ms, edges.window_ms)
    return last_readings(step, edges.forget_ms).with_columns_seq(
        gone_ms=pl.when(gone_ms <= edges.edge_ms).then(gone_ms)
    )


def _waiting(ids: pl.Series, step: Advance, edges: Edges) -> pl.DataFrame:
    """(id, from_ms, until_ms) of those of these GPUs that have readings which wait: from the first of them until the edge at
    which they are forgotten if no other comes."""
    until_ms = _edge_after(pl.col("ts_ms").max() + edges.forget_ms, edges.window_ms)
    waiting = where(step.pending, among(step.pending["id"], ids))
    return waiting.group_by("id").agg(from_ms=pl.col("ts_ms").min(), until_ms=until_ms)


def _edge_after(moment: pl.Expr, window_ms: int) -> pl.Expr:
    return -(-moment // window_ms) * window_ms
