"""What engines did when, and so what the GPUs they hold were doing.

A segment is time over which an engine was really read: active if it made tokens or had requests running,
waiting if it had a queue. Gauges hold from the reading that showed them to the next.
"""

from typing import Final

import polars as pl

KEY: Final = ("site", "pool", "node", "engine")
SEGMENT_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "node": pl.String,
    "engine": pl.String,
    "model_name": pl.String,
    "start_ms": pl.Int64,
    "end_ms": pl.Int64,
    "active": pl.Boolean,
    "waiting": pl.Boolean,
    "gpus": pl.List(pl.String),
}
# Late GPU rows are judged by what engines did then, this far back.
RETAIN_MS: Final = 3_600_000


def segments_of(intervals: pl.DataFrame) -> pl.DataFrame:
    """Engine intervals (one per model) to segments (one per engine)."""
    tokens = pl.sum_horizontal("inc_output_tokens", "inc_input_tokens", "inc_cached_input_tokens")
    return (
        intervals.filter("measured")
        .with_columns(
            active=(tokens > 0) | (pl.col("requests_running_0") > 0).fill_null(False),
            waiting=(pl.col("requests_waiting_0") > 0).fill_null(False),
            gpus=pl.col("gpus").fill_null([]).list.sort(),
        )
        .group_by(*KEY, "start_ms", "end_ms", maintain_order=True)
        .agg(
            # the busiest model names the engine's GPUs while they idle
            pl.col("model_name").sort_by(tokens.alias("t"), "model_name", descending=[True, False]).first(),
            pl.col("active", "waiting").any(),
            pl.col("gpus").first(),
        )
        .select(*SEGMENT_COLUMNS)
    )


def remember(segments: pl.DataFrame, new: pl.DataFrame, edge_ms: int) -> pl.DataFrame:
    """Join segments that touch and say the same, and forget the old ones."""
    rows = (
        pl.concat([segments, new])
        .sort(*KEY, "start_ms")
        .with_columns(pl.col("gpus").list.join("\n").alias("held"))
    )
    alike = pl.all_horizontal(
        *(pl.col(c) == pl.col(c).shift(1) for c in (*KEY, "model_name", "active", "waiting", "held")),
        pl.col("start_ms") == pl.col("end_ms").shift(1),
    )
    run = (~alike.fill_null(False)).cum_sum()
    return (
        rows.group_by(run.alias("run"), maintain_order=True)
        .agg(
            pl.col(*KEY, "model_name").first(),
            pl.col("start_ms").first(),
            pl.col("end_ms").last(),
            pl.col("active", "waiting", "gpus").first(),
        )
        .filter(pl.col("end_ms") > edge_ms - RETAIN_MS)
        .select(*SEGMENT_COLUMNS)
    )


def holders(engines: pl.DataFrame, gpus: pl.DataFrame) -> pl.DataFrame:
    """Which GPU is held by which engine: (engine KEY, id, inferred).

    `engines`: last reading of each engine and model. `gpus`: last reading of each GPU. An engine that names no
    GPUs may hold those of its node that no engine names; they count only while they have a process.
    """
    named = engines.group_by(*KEY).agg(pl.col("gpus").sort_by("ts_ms").last())
    lists = pl.col("gpus").list.len().fill_null(0) > 0
    explicit = (
        named.filter(lists)
        .explode("gpus")
        .join(gpus.select("site", "pool", "id", gpus="gpu_uuid"), on=["site", "pool", "gpus"])
        .select(*KEY, "id", pl.lit(False).alias("inferred"))
        .unique()
    )
    free = gpus.join(explicit.select("id"), on="id", how="anti").select("site", "pool", "node", "id")
    inferred = (
        named.filter(~lists)
        .join(free, on=["site", "pool", "node"])
        .select(*KEY, "id", pl.lit(True).alias("inferred"))
    )
    return pl.concat([explicit, inferred])


def classify(pieces: pl.DataFrame, segments: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """Add `state` and `model_name` to GPU pieces (id, from_ms, to_ms, measured, has_process_0).

    From most to least specific: serving, idle_loaded, dark (an engine that should be heard is not: nobody
    knows whether the GPU worked), other (a process that is no known engine), idle_free.
    """
    rows = pieces.with_row_index("piece")
    by_gpu = segments.join(held, on=list(KEY)).select(
        "id", "inferred", "start_ms", "end_ms", "active", "model_name"
    )
    rows = _overlap(rows, by_gpu.filter(pl.col("active") & ~pl.col("inferred")), "serving_named")
    rows = _overlap(rows, by_gpu.filter(pl.col("active") & pl.col("inferred")), "serving_inferred")
    rows = _overlap(rows, by_gpu.filter(~pl.col("inferred")), "loaded_named")
    rows = _overlap(rows, by_gpu.filter(pl.col("inferred")), "loaded_inferred")
    expected = held.group_by("id").agg(named=(~pl.col("inferred")).any())
    rows = rows.join(expected, on="id", how="left", maintain_order="left")
    process = pl.col("has_process_0")
    has_process = process.fill_null(False)
    serving = pl.coalesce("serving_named", pl.when(has_process).then("serving_inferred"))
    loaded = pl.coalesce("loaded_named", pl.when(has_process).then("loaded_inferred"))
    unheard = (
        pl.when("named").then(process.fill_null(True)).otherwise(pl.col("named").is_not_null() & has_process)
    )
    state = (
        pl.when(~pl.col("measured"))
        .then(pl.lit("dark"))
        .when(serving.is_not_null())
        .then(pl.lit("serving"))
        .when(loaded.is_not_null())
        .then(pl.lit("idle_loaded"))
        .when(unheard)
        .then(pl.lit("dark"))
        .when(has_process)
        .then(pl.lit("other"))
        .otherwise(pl.lit("idle_free"))
    )
    model = (
        pl.when(state == "serving")
        .then(serving)
        .when(state == "idle_loaded")
        .then(loaded)
        .otherwise(pl.lit(""))
    )
    return rows.sort("piece").select(*pieces.columns, state.alias("state"), model.alias("model_name"))


def _overlap(rows: pl.DataFrame, segments: pl.DataFrame, name: str) -> pl.DataFrame:
    """Add the model of a segment that overlaps the piece, null if none does."""
    if segments.is_empty():
        return rows.with_columns(pl.lit(None, pl.String).alias(name))
    # Merged to disjoint stretches, the last to begin before the piece ends is the only one to look at.
    ordered = segments.sort("id", "start_ms", "end_ms", "model_name")
    reach = pl.col("end_ms").cum_max().over("id").shift(1)
    begins = (
        ((pl.col("id") != pl.col("id").shift(1)) | (pl.col("start_ms") > reach)).fill_null(True).cum_sum()
    )
    merged = ordered.group_by(begins.alias("stretch"), maintain_order=True).agg(
        pl.col("id", "start_ms").first(), pl.col("end_ms").max(), pl.col("model_name").last()
    )
    joined = rows.sort("to_ms").join_asof(
        merged.sort("start_ms").select(
            "id", "start_ms", pl.col("end_ms").alias("reach_ms"), pl.col("model_name").alias(name)
        ),
        left_on="to_ms",
        right_on="start_ms",
        by="id",
        strategy="backward",
        allow_exact_matches=False,
        coalesce=False,
        suffix="_segment",
        check_sortedness=False,
    )
    overlaps = (pl.col("reach_ms") > pl.col("from_ms")).fill_null(False)
    return joined.with_columns(pl.when(overlaps).then(name).alias(name)).select(*rows.columns, name)


def demand(segments: pl.DataFrame, since_ms: int, edge_ms: int, window_ms: int) -> pl.DataFrame:
    """Per (site, pool, window_start_ms): `waiting` if any engine had a queue, else `none`; no row where none was read."""
    clipped = segments.with_columns(
        pl.max_horizontal("start_ms", pl.lit(since_ms)).alias("start_ms"),
        pl.min_horizontal("end_ms", pl.lit(edge_ms)).alias("end_ms"),
    ).filter(pl.col("end_ms") > pl.col("start_ms"))
    windows = (
        pl.int_ranges(pl.col("start_ms") // window_ms, (pl.col("end_ms") - 1) // window_ms + 1) * window_ms
    )
    return (
        clipped.select("site", "pool", "waiting", windows.alias("window_start_ms"))
        .explode("window_start_ms")
        .group_by("site", "pool", "window_start_ms")
        .agg(
            pl.when(pl.col("waiting").any()).then(pl.lit("waiting")).otherwise(pl.lit("none")).alias("demand")
        )
    )
