"""What engines did when, and so what the GPUs they hold were doing.

A segment is time over which an engine was really read: active if it made tokens or had requests running,
waiting if it had a queue. Gauges hold from the reading that showed them to the next. Engines go by `server`,
a number that all models of one engine share; models by their `id` in the engine index. Each model of an engine
has segments of its own.
"""

from dataclasses import dataclass
from typing import Final

import polars as pl

from idlewatt.processors.meter.rows import TIME_BITS, by_id, by_window, where, with_names
from idlewatt.processors.meter.timeline import Advance, last_readings
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.records import TOKEN_COUNTS

SEGMENT_COLUMNS: Final = {
    "server": pl.Int64,
    "model": pl.Int64,
    "start_ms": pl.Int64,
    "end_ms": pl.Int64,
    "active": pl.Boolean,
    "waiting": pl.Boolean,
    # the edge of the step that read of it
    "told_ms": pl.Int64,
}
# Late GPU rows are judged by what engines did then, if that was so long ago at most, or was told so long ago: a spool of
# hours brings both, but not at once.
RETAIN_MS: Final = HOUR_MS
# What readings that make one segment say alike: that requests run, or that no tokens were made; and that some wait.
GAUGES: Final = (
    pl.when(pl.col("requests_running") > 0).then(-1).otherwise(pl.sum_horizontal(TOKEN_COUNTS)),
    (pl.col("requests_waiting") > 0).fill_null(False),
)
# a segment that says the same as the one before it, and touches it
_GOES_ON: Final = pl.all_horizontal(
    *(pl.col(c) == pl.col(c).shift(1) for c in ("server", "model", "active", "waiting")),
    pl.col("start_ms") == pl.col("end_ms").shift(1),
)


def with_servers(index: pl.DataFrame) -> pl.DataFrame:
    """Give the models of one engine the same `server` for as long as any of them is known."""
    if not index["server"].null_count():
        return index
    engine = ("site", "pool", "node", "engine")
    return index.with_columns_seq(
        server=pl.coalesce("server", pl.col("server").max().over(engine), pl.col("id").min().over(engine))
    )


def segments_of(intervals: pl.DataFrame, index: pl.DataFrame, edge_ms: int) -> pl.DataFrame:
    """Engine intervals to segments, each of one model, that the step to this edge has told."""
    tokens = pl.sum_horizontal(f"inc_{count}" for count in TOKEN_COUNTS)
    measured = where(intervals, intervals["measured"])
    return measured.select_seq(
        by_id(measured["id"], index["id"], index["server"]).alias("server"),
        pl.col("id").alias("model"),
        "start_ms",
        "end_ms",
        ((tokens > 0) | (pl.col("requests_running_0") > 0).fill_null(False)).alias("active"),
        (pl.col("requests_waiting_0") > 0).fill_null(False).alias("waiting"),
        pl.lit(edge_ms, pl.Int64).alias("told_ms"),
    )


def remember(segments: pl.DataFrame, new: pl.DataFrame, since_ms: int) -> pl.DataFrame:
    """Join segments that touch and say the same, and forget what ended and was told RETAIN_MS before `since_ms`."""
    rows = pl.concat([segments, new])
    # one integer sorts several times faster than two columns; a model is of one server
    rows = rows.sort(pl.col("model") * (1 << TIME_BITS) + (pl.col("start_ms") - pl.col("start_ms").min()))
    begins = rows.select_seq(~_GOES_ON.fill_null(False)).to_series()
    lasts = where(rows, begins.shift(-1, fill_value=True))
    runs = where(rows, begins).with_columns_seq(lasts["end_ms"], lasts["told_ms"])
    newest_ms = runs.select_seq(pl.max_horizontal("end_ms", "told_ms")).to_series()
    return where(runs, newest_ms > since_ms - RETAIN_MS)


def in_windows(segments: pl.DataFrame, since_ms: int, until_ms: int, window_ms: int) -> pl.DataFrame:
    """Cut segments at window edges between two moments; adds window_start_ms."""
    clipped = where(
        segments, (segments["end_ms"] > since_ms) & (segments["start_ms"] < until_ms)
    ).with_columns_seq(
        pl.col("start_ms").clip(lower_bound=since_ms), pl.col("end_ms").clip(upper_bound=until_ms)
    )
    return by_window(clipped, "start_ms", "end_ms", window_ms)


def unloaded(index: pl.DataFrame, engines: pl.DataFrame) -> pl.DataFrame:
    """Names of models after whose last reading their engine told of another for the first time: swapped for that one.

    `engines`: last readings.
    """
    names = index.select_seq("site", "pool", "node", "engine", "model_name")
    if index["server"].n_unique() == index.height:
        return names.clear()
    last_ms = by_id(index["id"], engines["id"], engines["ts_ms"]).alias("last_ms")
    swapped = index.hstack([last_ms]).select_seq(pl.col("last_ms") < pl.col("first_ms").max().over("server"))
    return where(names, swapped.to_series().fill_null(False))


@dataclass(frozen=True, slots=True)
class Holding:
    """Which GPU is held by which engine, and what that follows from.

    An engine that names no GPUs may hold those of its node: `inferred`. That counts only for a GPU that has a
    process and that no engine names.
    """

    # server, site, pool, node, gpus; of engines that were heard
    servers: pl.DataFrame
    gpu_index: pl.DataFrame
    # server, id, inferred
    held: pl.DataFrame
    # server, id; of GPUs that one engine alone names
    alone: pl.DataFrame
    # server, gpu_uuid; of GPUs that it names and nobody has read in its pool
    unread: pl.DataFrame


def heard(engine_index: pl.DataFrame, engines: pl.DataFrame) -> pl.DataFrame:
    """Engines that are known to be there: (server, site, pool, node, gpus). `engines`: last readings."""
    last_ms = by_id(engine_index["id"], engines["id"], engines["ts_ms"]).alias("ts_ms")
    known = engine_index.hstack([last_ms])
    return (
        (known.filter(last_ms.is_not_null()) if last_ms.has_nulls() else known)
        .sort("ts_ms")
        .group_by("server")
        .agg(pl.col("site", "pool", "node", "gpus").last())
        .sort("server")
    )


def stays(engine_index: pl.DataFrame, step: Advance, forget_ms: int) -> pl.DataFrame:
    """While engines are known to be there: (server, site, pool, since_ms, until_ms).

    A row for each model, and for each time from its first reading until it is forgotten.
    """
    lasts = last_readings(step, forget_ms).sort("last_ms")
    return with_names(lasts, engine_index, "server", "site", "pool", "first_ms").select_seq(
        "server",
        "site",
        "pool",
        pl.coalesce(pl.col("back_ms").shift(1).over("id"), "first_ms").alias("since_ms"),
        (pl.col("last_ms") + forget_ms).alias("until_ms"),
    )


def holding(servers: pl.DataFrame, gpu_index: pl.DataFrame, before: Holding | None) -> Holding:
    """Who holds which GPU: as before, while nothing has changed that it follows from. `servers`: see heard()."""
    if before is not None and before.gpu_index is gpu_index and before.servers.equals(servers):
        return before
    names_some = servers["gpus"] != ""
    named = (
        where(servers, names_some)
        .with_columns_seq(pl.col("gpus").str.split("\n"))
        .explode("gpus")
        .join(
            gpu_index.select_seq("site", "pool", "id", gpus="gpu_uuid"),
            on=["site", "pool", "gpus"],
            how="left",
        )
    )
    # an engine may name a GPU twice
    explicit = named.filter(pl.col("id").is_not_null()).select_seq("server", "id").unique()
    explicit = explicit.with_columns_seq(inferred=pl.lit(False))
    possible = (
        where(servers, ~names_some)
        .join(gpu_index.select_seq("site", "pool", "node", "id"), on=["site", "pool", "node"])
        .select_seq("server", "id", pl.lit(True).alias("inferred"))
    )
    alone = where(explicit, explicit["id"].is_unique()).select_seq("server", "id")
    unread = named.filter(pl.col("id").is_null()).select_seq("server", gpu_uuid="gpus")
    return Holding(servers, gpu_index, pl.concat([explicit, possible]), alone, unread)


def demand(activity: pl.DataFrame, index: pl.DataFrame) -> pl.DataFrame:
    """Per (site, pool, window_start_ms): `waiting` if any engine had a queue, else `none`; no row where none was read.

    `activity`: see in_windows().
    """
    pools = index.select_seq("server", "site", "pool").unique("server")
    waiting = pl.when(pl.col("waiting").any()).then(pl.lit("waiting")).otherwise(pl.lit("none"))
    return (
        activity.join(pools, on="server")
        .group_by("site", "pool", "window_start_ms")
        .agg(waiting.alias("demand"))
    )


def by_name(segments: pl.DataFrame, index: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Segments whose `model` is its name's place in the alphabet, and the names in their places.

    So the least of several is the first by name, and engines that serve the same model are alike.
    """
    place = index.select_seq(pl.col("model_name").rank("dense").cast(pl.Int64) - 1).to_series()
    ranked = segments.with_columns_seq(by_id(segments["model"], index["id"], place).alias("model"))
    return ranked, index["model_name"].unique().sort()
