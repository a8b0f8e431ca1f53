"""The state of every piece of a GPU's time, from what the engines that hold it were doing.

From most to least specific: serving, idle_loaded, dark (an engine that should be heard is not, or nobody can
tell whether the GPU has a process), other (a process that is no known engine), idle_free.
"""

from typing import Final

import polars as pl

from idlewatt.processors.meter.rows import among, by_id, highest, sums_by, where
from idlewatt.processors.meter.timeline import Edges
from idlewatt.processors.meter.waterfall import STATE

# what decides, besides the engines: pieces alike in these and in their window share a state if the engine's does
_ALIKE: Final = ("id", "window_start_ms", "measured", "late", "has_process_0")
AMOUNTS: Final = ("gpu_ms", "available_mj", "inc_energy_mj", "estimated_mj")
# each takes some 60 bytes
_PAIRS: Final = 2_000_000
_UNHELD: Final = (
    pl.when(pl.col("has_process_0").is_null())
    .then(pl.lit("dark", STATE))
    .when("has_process_0")
    .then(pl.lit("other", STATE))
    .otherwise(pl.lit("idle_free", STATE))
)


def classify(
    pieces: pl.DataFrame,
    activity: pl.DataFrame,
    whole: pl.DataFrame,
    held: pl.DataFrame,
    stays: pl.DataFrame,
    window_ms: int,
) -> pl.DataFrame:
    """Sum pieces to (id, window_start_ms, late, measured, state, model): AMOUNTS.

    Most GPUs are in one state over a whole window, by one engine that says so for all of it: their pieces are
    summed first and judged once. The others are judged piece by piece. `activity`: what engines did, in_windows();
    `whole`: what whole_windows() makes of it; `held`: see Holding; `stays`: of engines, see activity.stays().
    """
    pieces = pieces.with_columns_seq(place=_place(window_ms))
    verdicts = whole.select_seq(_place(window_ms).alias("place"), "verdict", "model")
    sums = _summed(pieces).join(verdicts, on="place", how="left")
    is_held = among(sums["id"], held["id"]).alias("held")
    judged = sums.hstack([is_held]).select_seq(*_SUMMED_JUDGED)
    mixed = judged["state"].is_null()
    if not mixed.any():
        return judged
    unclear = pieces.select_seq("place", "from_ms", "to_ms", *_ALIKE, *AMOUNTS).filter(
        "measured", pl.col("place").is_in(sums["place"].filter(mixed).implode())
    )
    return pl.concat(
        [
            where(judged, ~mixed),
            *(
                _piece_by_piece(some, activity, held, stays)
                for some in unclear.iter_slices(_pieces_at_once(activity, held, stays))
            ),
        ]
    )


def steady_windows(
    whole: pl.DataFrame, held: pl.DataFrame, gpu_index: pl.DataFrame, edges: Edges
) -> pl.DataFrame:
    """(id, window_start_ms) of GPUs whose pieces classify() judges all alike: held by nobody, or by one engine that
    does the same all window long."""
    steady = whole.select_seq("id", "window_start_ms")
    free = by_id(gpu_index["id"], held["id"], False, pl.Boolean, default=True)
    if not free.any():
        return steady
    windows = pl.DataFrame(
        {"window_start_ms": range(edges.previous_ms, edges.edge_ms, edges.window_ms)},
        schema={"window_start_ms": pl.Int64},
    )
    return pl.concat([steady, gpu_index.select_seq("id").filter(free).join(windows, how="cross")])


def _place(window_ms: int) -> pl.Expr:
    """A GPU and a window as one integer, which groups and joins twice as fast as two."""
    return pl.col("id") * (1 << 32) + pl.col("window_start_ms") // window_ms


def _summed(pieces: pl.DataFrame) -> pl.DataFrame:
    """AMOUNTS by _ALIKE; adds place."""
    alike = pieces.select_seq(_ALIKE_AS_ONE).to_series()
    return sums_by(alike, pieces.select_seq("place", *_ALIKE, *AMOUNTS), AMOUNTS)


def _judged(state: pl.Expr, model: pl.Expr) -> tuple[str | pl.Expr, ...]:
    return "id", "window_start_ms", "late", "measured", state.alias("state"), model.alias("model"), *AMOUNTS


def whole_windows(activity: pl.DataFrame, alone: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """(id, window_start_ms, verdict, model) where the one engine that names a GPU was the same all window long.

    `alone`: see Holding.
    """
    span_ms = pl.col("end_ms") - pl.col("start_ms")
    engines = activity.group_by("server", "window_start_ms").agg(
        span_ms.sum().alias("read_ms"),
        pl.when("active").then(span_ms).otherwise(0).sum().alias("active_ms"),
        pl.col("model").first(),
        pl.col("model").n_unique().alias("models"),
    )
    whole = (
        (engines["read_ms"] == window_ms)
        & (engines["models"] == 1)
        & ((engines["active_ms"] == 0) | (engines["active_ms"] == window_ms))
    )
    verdict = (
        pl.when(pl.col("active_ms") > 0)
        .then(pl.lit("serving", STATE))
        .otherwise(pl.lit("idle_loaded", STATE))
    )
    engines = where(engines, whole).select_seq("server", "window_start_ms", verdict.alias("verdict"), "model")
    return alone.join(engines, on="server").select_seq("id", "window_start_ms", "verdict", "model")


def _pieces_at_once(activity: pl.DataFrame, held: pl.DataFrame, stays: pl.DataFrame) -> int:
    """So many that no more than about _PAIRS rows come of them and all that engines did in their windows."""
    in_window = max(_most(activity, "server", "window_start_ms"), _most(stays, "server"))
    return max(_PAIRS // max(1, _most(held, "id") * in_window), 1)


def _most(rows: pl.DataFrame, *alike: str) -> int:
    return highest(rows.group_by(alike).len()["len"])


def _piece_by_piece(
    pieces: pl.DataFrame, activity: pl.DataFrame, held: pl.DataFrame, stays: pl.DataFrame
) -> pl.DataFrame:
    pieces = pieces.with_row_index("piece")
    by_engine = pieces.select_seq("piece", "id", "window_start_ms", "from_ms", "to_ms").join(held, on="id")
    heard = (
        by_engine.join(activity, on=["server", "window_start_ms"])
        .filter(_overlaps("start_ms", "end_ms"))
        .group_by("piece")
        .agg(_FIRST_BY_NAME)
    )
    known = (
        by_engine.join(stays, on="server")
        .filter(_overlaps("since_ms", "until_ms"))
        .group_by("piece")
        .agg(named=_NAMED.any(), possible=(~_NAMED).any())
    )
    rows = pieces.join(known, on="piece", how="left").join(heard, on="piece", how="left")
    return rows.select_seq(*_PIECES_JUDGED)


_NAMED: Final = ~pl.col("inferred")
_FIRST_BY_NAME: Final = tuple(
    pl.when(says).then("model").min().alias(name)
    for name, says in {
        "serving_named": pl.col("active") & _NAMED,
        "serving_inferred": pl.col("active") & ~_NAMED,
        "loaded_named": _NAMED,
        "loaded_inferred": ~_NAMED,
    }.items()
)


def _overlaps(start_ms: str, end_ms: str) -> pl.Expr:
    """Whether that time touches the piece's."""
    return (pl.col(start_ms) < pl.col("to_ms")) & (pl.col(end_ms) > pl.col("from_ms"))


def _piece_judged() -> tuple[str | pl.Expr, ...]:
    named, maybe = (pl.col(name).fill_null(False) for name in ("named", "possible"))
    possible = ~named & pl.col("has_process_0").fill_null(False) & maybe
    serving = pl.coalesce("serving_named", pl.when(possible).then("serving_inferred"))
    loaded = pl.coalesce("loaded_named", pl.when(possible).then("loaded_inferred"))
    # an engine that names the GPU, or could hold it, was not heard; only a GPU without a process is known to idle
    unheard = (named & pl.col("has_process_0").fill_null(True)) | possible
    state = (
        pl.when(serving.is_not_null())
        .then(pl.lit("serving", STATE))
        .when(loaded.is_not_null())
        .then(pl.lit("idle_loaded", STATE))
        .when(unheard)
        .then(pl.lit("dark", STATE))
        .otherwise(_UNHELD)
    )
    return _judged(state, pl.when(serving.is_not_null()).then(serving).otherwise(loaded))


_PIECES_JUDGED: Final = _piece_judged()
_SUMMED_JUDGED: Final = _judged(
    pl.when(~pl.col("measured")).then(pl.lit("dark", STATE)).when("held").then("verdict").otherwise(_UNHELD),
    pl.when("measured").then("model"),
)
_ALIKE_AS_ONE: Final = (
    (pl.col("place") * 4 + pl.col("measured").cast(pl.Int64) * 2 + pl.col("late").cast(pl.Int64)) * 3
    + pl.col("has_process_0").cast(pl.Int64).fill_null(2)
).alias("alike")
