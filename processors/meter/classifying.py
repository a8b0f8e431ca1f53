"""The state of every piece of a GPU's time, from what the engines that hold it were doing.

From most to least specific: serving, idle_loaded, dark (an engine that should be heard is not, or nobody can
tell whether the GPU has a process), other (a process that is no known engine), idle_free.
"""

from typing import Final

import polars as pl

from idlewatt.processors.meter.activity import in_windows
from idlewatt.processors.meter.timeline import Edges

# what decides, besides the engines: pieces alike in these and in their window share a state if the engine's does
_ALIKE: Final = ("id", "window_start_ms", "measured", "late", "has_process_0")
AMOUNTS: Final = ("gpu_ms", "available_mj", "inc_energy_mj", "estimated_mj")
_UNHELD: Final = (
    pl.when(pl.col("has_process_0").is_null())
    .then(pl.lit("dark"))
    .when("has_process_0")
    .then(pl.lit("other"))
    .otherwise(pl.lit("idle_free"))
)


def classify(
    pieces: pl.DataFrame, segments: pl.DataFrame, held: pl.DataFrame, window_ms: int
) -> pl.DataFrame:
    """Sum pieces to (id, window_start_ms, late, measured, state, model): AMOUNTS.

    Most GPUs are in one state over a whole window, by one engine that says so for all of it: their pieces are
    summed first and judged once. The others are judged piece by piece.
    """
    if pieces.is_empty():
        return _judged(pieces.select_seq(*_ALIKE, *AMOUNTS), pl.lit(""), pl.lit(None, pl.Int64))
    span = pieces.select_seq(a=pl.col("window_start_ms").min(), b=pl.col("window_start_ms").max()).row(0)
    whole = _whole_windows(segments, held, span[0], span[1] + window_ms, window_ms)
    sums = (
        _summed(pieces, span[0], window_ms)
        .join(held.group_by("id").agg(pl.lit(True).alias("held")), on="id", how="left")
        .join(whole, on=["id", "window_start_ms"], how="left")
    )
    dark = sums.filter(~pl.col("measured"))
    free = sums.filter(pl.col("measured") & pl.col("held").is_null())
    clear = sums.filter(pl.col("measured") & pl.col("held") & pl.col("verdict").is_not_null())
    mixed = sums.filter(pl.col("measured") & pl.col("held") & pl.col("verdict").is_null())
    parts = [
        _judged(dark, pl.lit("dark"), pl.lit(None, pl.Int64)),
        _judged(free, _UNHELD, pl.lit(None, pl.Int64)),
        _judged(clear, pl.col("verdict"), pl.col("model")),
    ]
    if mixed.height:
        unclear = pieces.filter("measured").join(
            mixed.select_seq("id", "window_start_ms").unique(), on=["id", "window_start_ms"], how="semi"
        )
        parts.append(_piece_by_piece(unclear, segments, held))
    return pl.concat(parts)


def steady_windows(
    segments: pl.DataFrame, held: pl.DataFrame, gpu_index: pl.DataFrame, edges: Edges
) -> pl.DataFrame:
    """(id, window_start_ms) of GPUs whose pieces classify() judges all alike: held by nobody, or by one engine that
    does the same all window long."""
    whole = _whole_windows(segments, held, edges.previous_ms, edges.edge_ms, edges.window_ms)
    windows = pl.DataFrame(
        {"window_start_ms": range(edges.previous_ms, edges.edge_ms, edges.window_ms)},
        schema={"window_start_ms": pl.Int64},
    )
    free = (
        gpu_index.select_seq("id").join(held.select_seq("id"), on="id", how="anti").join(windows, how="cross")
    )
    return pl.concat([whole.select_seq("id", "window_start_ms"), free])


def _summed(pieces: pl.DataFrame, since_ms: int, window_ms: int) -> pl.DataFrame:
    """AMOUNTS by _ALIKE. One integer groups twice as fast as five columns."""
    windows = (pl.col("window_start_ms") - since_ms) // window_ms
    flags = pl.col("measured").cast(pl.Int64) * 2 + pl.col("late").cast(pl.Int64)
    process = pl.col("has_process_0").cast(pl.Int64).fill_null(2)
    alike = ((pl.col("id") * (1 << 24) + windows) * 4 + flags) * 3 + process
    return (
        pieces.group_by(alike.alias("alike")).agg(pl.col(_ALIKE).first(), pl.col(AMOUNTS).sum()).drop("alike")
    )


def _judged(rows: pl.DataFrame, state: pl.Expr, model: pl.Expr) -> pl.DataFrame:
    return rows.select_seq(
        "id", "window_start_ms", "late", "measured", state.alias("state"), model.alias("model"), *AMOUNTS
    )


def _whole_windows(
    segments: pl.DataFrame, held: pl.DataFrame, since_ms: int, until_ms: int, window_ms: int
) -> pl.DataFrame:
    """(id, window_start_ms, verdict, model) where the one engine that names a GPU was the same all window long."""
    span_ms = pl.col("end_ms") - pl.col("start_ms")
    whole = (
        in_windows(segments, since_ms, until_ms, window_ms)
        .group_by("server", "window_start_ms")
        .agg(
            span_ms.sum().alias("read_ms"),
            span_ms.filter("active").sum().alias("active_ms"),
            pl.col("model").first(),
            pl.col("model").n_unique().alias("models"),
        )
        .filter(
            (pl.col("read_ms") == window_ms)
            & (pl.col("models") == 1)
            & pl.col("active_ms").is_in([0, window_ms])
        )
        .select_seq(
            "server",
            "window_start_ms",
            pl.when(pl.col("active_ms") > 0)
            .then(pl.lit("serving"))
            .otherwise(pl.lit("idle_loaded"))
            .alias("verdict"),
            "model",
        )
    )
    named = held.filter(~pl.col("inferred"))
    alone = named.filter(pl.len().over("id") == 1).select_seq("server", "id")
    return alone.join(whole, on="server").select_seq("id", "window_start_ms", "verdict", "model")


def _piece_by_piece(pieces: pl.DataFrame, segments: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    by_gpu = segments.join(held.join(pieces.select_seq("id").unique(), on="id", how="semi"), on="server")
    rows = pieces
    for name, chosen in (
        ("serving_named", pl.col("active") & ~pl.col("inferred")),
        ("serving_inferred", pl.col("active") & pl.col("inferred")),
        ("loaded_named", ~pl.col("inferred")),
        ("loaded_inferred", pl.col("inferred")),
    ):
        rows = _overlap(rows, by_gpu.filter(chosen), name)
    since, until = pl.col("since_ms").min(), pl.col("until_ms").max()
    for name, chosen in (("named", ~pl.col("inferred")), ("possible", pl.col("inferred"))):
        known = (
            held.filter(chosen).group_by("id").agg(since.alias(f"{name}_ms"), until.alias(f"{name}_until_ms"))
        )
        rows = rows.join(known, on="id", how="left")
    named, maybe = (
        (
            (pl.col(f"{name}_ms") < pl.col("to_ms")) & (pl.col(f"{name}_until_ms") > pl.col("from_ms"))
        ).fill_null(False)
        for name in ("named", "possible")
    )
    has_process = pl.col("has_process_0").fill_null(False)
    possible = ~named & has_process & maybe
    serving = pl.coalesce("serving_named", pl.when(possible).then("serving_inferred"))
    loaded = pl.coalesce("loaded_named", pl.when(possible).then("loaded_inferred"))
    # an engine that names the GPU, or could hold it, was not heard; only a GPU without a process is known to idle
    unheard = (named & pl.col("has_process_0").fill_null(True)) | possible
    state = (
        pl.when(serving.is_not_null())
        .then(pl.lit("serving"))
        .when(loaded.is_not_null())
        .then(pl.lit("idle_loaded"))
        .when(unheard)
        .then(pl.lit("dark"))
        .otherwise(_UNHELD)
    )
    model = pl.when(serving.is_not_null()).then(serving).otherwise(loaded)
    return _judged(rows, state, model)


def _overlap(rows: pl.DataFrame, segments: pl.DataFrame, name: str) -> pl.DataFrame:
    """Add the model of the segments that overlap the piece, the first by name, null if none does."""
    if segments.is_empty():
        return rows.with_columns_seq(pl.lit(None, pl.Int64).alias(name))
    models = segments.group_by("id").agg(pl.col("model").n_unique())
    several = models.filter(pl.col("model") > 1)
    if several.height:
        return pl.concat(
            [
                _overlap(
                    rows.join(several, on="id", how="anti"),
                    segments.join(several, on="id", how="anti"),
                    name,
                ),
                _first_by_name(rows.join(several, on="id", how="semi"), segments, name),
            ]
        )
    # Merged to disjoint stretches, the last to begin before the piece ends is the only one to look at.
    ordered = segments.sort("id", "start_ms", "end_ms", "model")
    reach = pl.col("end_ms").cum_max().over("id").shift(1)
    begins = (
        ((pl.col("id") != pl.col("id").shift(1)) | (pl.col("start_ms") > reach)).fill_null(True).cum_sum()
    )
    merged = ordered.group_by(begins.alias("stretch"), maintain_order=True).agg(
        pl.col("id", "start_ms").first(), pl.col("end_ms").max(), pl.col("model").first()
    )
    joined = rows.sort("to_ms").join_asof(
        merged.sort("start_ms").select_seq(
            "id",
            pl.col("start_ms").alias("stretch_ms"),
            pl.col("end_ms").alias("reach_ms"),
            pl.col("model").alias(name),
        ),
        left_on="to_ms",
        right_on="stretch_ms",
        by="id",
        strategy="backward",
        allow_exact_matches=False,
        coalesce=False,
        # both sides are sorted by their own time; polars cannot check that within groups
        check_sortedness=False,
    )
    overlaps = (pl.col("reach_ms") > pl.col("from_ms")).fill_null(False)
    return joined.with_columns_seq(pl.when(overlaps).then(name).alias(name)).select_seq(*rows.columns, name)


def _first_by_name(rows: pl.DataFrame, segments: pl.DataFrame, name: str) -> pl.DataFrame:
    """What _overlap adds, for GPUs that several models share: every segment is held against every piece."""
    piece = ("id", "from_ms", "to_ms")
    found = (
        rows.select_seq(piece)
        .unique()
        .join(segments.select_seq("id", "start_ms", "end_ms", "model"), on="id")
        .filter((pl.col("start_ms") < pl.col("to_ms")) & (pl.col("end_ms") > pl.col("from_ms")))
        .group_by(piece)
        .agg(pl.col("model").min().alias(name))
    )
    return rows.join(found, on=piece, how="left")
