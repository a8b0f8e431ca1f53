"""Engine pieces to token rows, and the serving joules each engine's tokens stand on."""

from typing import Final

import polars as pl

from idlewatt.processors.meter.activity import in_windows
from idlewatt.processors.meter.rows import by_id, where, with_names
from idlewatt.processors.meter.timeline import Bounds, Edges
from idlewatt.processors.meter.waterfall import SUMS
from idlewatt.stream.records import TOKEN_COUNTS

SHARE_COLUMNS: Final = {
    "id": pl.Int64,
    "window_start_ms": pl.Int64,
    "gpu_id": pl.Int64,
    "serving_mj": pl.Int64,
}
PART_COLUMNS: Final = {
    "id": pl.Int64,
    "window_start_ms": pl.Int64,
    "gpu_id": pl.Int64,
    "model_name": pl.String,
    **dict.fromkeys(SUMS, pl.Int64),
}
JOULE_COLUMNS: Final = {
    "id": pl.Int64,
    "window_start_ms": pl.Int64,
    "serving_mj": pl.Int64,
    "product": pl.String,
}
# A million of a kind per second: no server has as many right after a reset. A large counter that falls was not reset, but
# read twice, or by a clock that was set back.
TOKEN_BOUNDS: Final = Bounds(per_s=None, after_reset=(pl.col("ts_ms") - pl.col("t0_ms")) * 1000)
_WINDOW: Final = ("id", "window_start_ms")
_SEEN: Final = {"output_tokens": "seen_output_tokens", "input_tokens": "seen_input_tokens"}
_NAMES: Final = ("node", "engine", "model_name")


def without_unknown(intervals: pl.DataFrame) -> pl.DataFrame:
    """A kind the server does not count, or counts from now on, gained nothing that anybody knows."""
    return intervals.with_columns_seq(pl.col(f"inc_{kind}").fill_null(0) for kind in TOKEN_COUNTS)


def to_book() -> pl.Expr:
    """Whether a long gap says anything that silence did not."""
    return pl.col("fresh") | pl.any_horizontal(pl.col(f"inc_{kind}") > 0 for kind in TOKEN_COUNTS)


def engine_windows(pieces: pl.DataFrame) -> pl.DataFrame:
    """Sum engine pieces to (id, window_start_ms): the token kinds, measured_ms, silent_ms.

    Silent time that turns out to have been measured is taken back, as for GPUs. seen_output_tokens and
    seen_input_tokens are what was made while somebody looked.
    """
    span_ms = pl.col("to_ms") - pl.col("from_ms")
    measured, late = pl.col("measured"), pl.col("late")
    silent_ms = pl.when(~measured & ~late).then(span_ms).when(measured & late).then(-span_ms).otherwise(0)
    return (
        pieces.select_seq(
            *_WINDOW,
            *(pl.col(f"inc_{kind}").alias(kind) for kind in TOKEN_COUNTS),
            *(pl.when(measured).then(f"inc_{kind}").otherwise(0).alias(seen) for kind, seen in _SEEN.items()),
            pl.when(measured).then(span_ms).otherwise(0).alias("measured_ms"),
            silent_ms.alias("silent_ms"),
        )
        .group_by(*_WINDOW)
        .agg(pl.exclude(_WINDOW).sum())
    )


def serving_shares(
    gpu_windows: pl.DataFrame,
    engine_windows: pl.DataFrame,
    engine_index: pl.DataFrame,
    held: pl.DataFrame,
    segments: pl.DataFrame,
    window_ms: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Share each GPU's serving joules among those that were active on it: (id, window_start_ms, gpu_id, serving_mj).

    `id` is the engine and model. In proportion to output tokens, input tokens where there are none, evenly
    where there are neither; the last by name takes the remainder, so that totals do not depend on the sharing,
    nor the sharing on who was read first. Also returns all that is shared so, time and headroom too, of GPUs that
    several can serve on: PART_COLUMNS.
    """
    no_parts = pl.DataFrame(schema=PART_COLUMNS)
    serving = gpu_windows.filter(pl.col("state") == "serving").rename({"id": "gpu_id"})
    if serving.is_empty():
        return pl.DataFrame(schema=SHARE_COLUMNS), no_parts
    alone = _alone(held, engine_index)
    only = by_id(serving["gpu_id"], alone["gpu_id"], alone["id"])
    sole = _joules_of(where(serving.with_columns_seq(only.alias("id")), only.is_not_null()))
    several = where(serving, only.is_null())
    if several.is_empty():
        return sole, no_parts
    group = ("gpu_id", "window_start_ms")
    several = several.group_by(*group).agg(pl.col(SUMS).sum())
    since_ms, last_ms = several.select_seq(
        a=pl.col("window_start_ms").min(), b=pl.col("window_start_ms").max()
    ).row(0)
    active = in_windows(segments.filter("active"), since_ms, last_ms + window_ms, window_ms)
    active = active.select_seq("server", pl.col("model").alias("id"), "window_start_ms").unique()
    candidates = (
        several.join(held.select_seq("server", "inferred", pl.col("id").alias("gpu_id")), on="gpu_id")
        .join(active, on=["server", "window_start_ms"])
        .filter(pl.col("inferred") == pl.col("inferred").all().over(group))
        .join(engine_index.select_seq("id", *_NAMES), on="id")
        .join(engine_windows.select_seq(*_WINDOW, *_SEEN.values()), on=list(_WINDOW), how="left")
        .with_columns_seq(pl.col(*_SEEN.values()).fill_null(0))
        .sort(*group, *_NAMES)
    )
    parts = _weighed(candidates)
    return pl.concat([sole, _joules_of(parts)]), parts


def _joules_of(shares: pl.DataFrame) -> pl.DataFrame:
    return shares.select_seq(*_WINDOW, "gpu_id", pl.col("draw_mj").alias("serving_mj"))


def _alone(held: pl.DataFrame, engine_index: pl.DataFrame) -> pl.DataFrame:
    """(gpu_id, id) of GPUs that only one model of one engine can serve on: nothing to share there."""
    one_model = where(engine_index, engine_index["server"].is_unique())
    one_engine = where(held, held["id"].is_unique())
    model = by_id(one_engine["server"], one_model["server"], one_model["id"])
    alone = one_engine.select_seq(pl.col("id").alias("gpu_id"), model.alias("id"))
    return where(alone, alone["id"].is_not_null())


def _weighed(candidates: pl.DataFrame) -> pl.DataFrame:
    """Split SUMS among the rows of each (gpu_id, window_start_ms)."""
    group = ("gpu_id", "window_start_ms")
    weight = (
        pl.when(pl.col("seen_output_tokens").sum().over(group) > 0)
        .then("seen_output_tokens")
        .when(pl.col("seen_input_tokens").sum().over(group) > 0)
        .then("seen_input_tokens")
        .otherwise(1)
        .cast(pl.Int128)
    )
    weighed = candidates.with_columns_seq(weight=weight).with_columns_seq(
        upto=pl.col("weight").cum_sum().over(group), total=pl.col("weight").sum().over(group)
    )
    upto, total = pl.col("upto"), pl.col("total")
    whole = pl.col(SUMS).cast(pl.Int128)
    share = whole * upto // total - whole * (upto - pl.col("weight")) // total
    return weighed.select_seq(*_WINDOW, "gpu_id", "model_name", share.cast(pl.Int64))


def joules(shares: pl.DataFrame, gpus: pl.DataFrame) -> pl.DataFrame:
    """(id, window_start_ms, serving_mj, product) of engines: what their tokens stand on. `gpus`: the index.

    An engine's GPUs are taken to be of one product.
    """
    named = with_names(shares, gpus, "product", key="gpu_id")
    return named.group_by(*_WINDOW).agg(pl.col("serving_mj").sum(), pl.col("product").min())


def with_joules(
    engine_windows: pl.DataFrame, energy: pl.DataFrame, engine_index: pl.DataFrame
) -> pl.DataFrame:
    """Engine windows and those that only have joules, with names; what only the other has is null."""
    both = engine_windows.join(energy, on=list(_WINDOW), how="full", coalesce=True)
    return with_names(both, engine_index, "site", "pool", "node", "engine", "model_name", "advance")


def with_server(windows: pl.DataFrame, engine_index: pl.DataFrame) -> pl.DataFrame:
    """Add server."""
    server = by_id(windows["id"], engine_index["id"], engine_index["server"])
    return windows.with_columns_seq(server.alias("server"))


def with_stopped(
    windows: pl.DataFrame,
    gpu_windows: pl.DataFrame,
    held: pl.DataFrame,
    stays: pl.DataFrame,
    window_ms: int,
) -> pl.DataFrame:
    """Add stopped: the engine was not heard, and no process was on any GPU that it can hold, all window long.

    `windows`: with server, silent_ms and unread_gpus. `held`: see with_stays(). `stays`: of engines, see
    activity.stays(). Whoever scales in does not miss the tokens of what is gone.
    """
    window = ["server", "window_start_ms"]
    is_silent = ((windows["silent_ms"] > 0) & (windows["unread_gpus"] == 0)).fill_null(False)
    silent = where(windows, is_silent).select_seq(window).unique()
    if silent.is_empty():
        return windows.with_columns_seq(stopped=pl.lit(False))
    is_free = (gpu_windows["state"] == "idle_free") & (gpu_windows["gpu_ms"] == window_ms)
    free = where(gpu_windows, is_free).select_seq("id", "window_start_ms", free=pl.lit(True))
    # those that an engine names are held by no engine that names none, from when that one is known
    named = where(held, ~held["inferred"]).join(stays.select_seq("server", named_ms="since_ms"), on="server")
    named = named.group_by("id").agg(pl.col("named_ms").min())
    is_others = pl.col("inferred") & (pl.col("named_ms") < pl.col("window_start_ms") + window_ms)
    stopped = (
        silent.join(held.join(named, on="id", how="left"), on="server")
        .filter(~is_others.fill_null(False), _was_there(window_ms))
        .join(free, on=["id", "window_start_ms"], how="left")
        .group_by(window)
        .agg(pl.col("free").fill_null(False).all().alias("stopped"))
    )
    return windows.join(stopped, on=window, how="left", maintain_order="left").with_columns_seq(
        pl.col("stopped").fill_null(False) & is_silent
    )


def token_rows(windows: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """What with_joules() gives, with unread_gpus and stopped, to ledger rows (records.TokenRow)."""
    return windows.select_seq(
        "site",
        "pool",
        "window_start_ms",
        pl.lit(window_ms, pl.Int64).alias("window_ms"),
        "node",
        "engine",
        "model_name",
        "advance",
        pl.col(*TOKEN_COUNTS, "serving_mj", "measured_ms", "silent_ms").fill_null(0),
        "unread_gpus",
        "stopped",
    ).sort("site", "pool", "window_start_ms", "engine", "model_name")


def samples(
    windows: pl.DataFrame,
    gpu_windows: pl.DataFrame,
    held: pl.DataFrame,
    edges: Edges,
) -> pl.DataFrame:
    """Yields of windows in which an engine and all its GPUs were wholly measured, by pool, product and model.

    `windows`: see with_joules(), with server and unread_gpus, of this step. `held`: see with_stays(). Tokens beside the joules
    of some of the GPUs would teach a yield that no engine has.
    """
    # a counter that moves at a request's end gives zero, then a spike: its windows say nothing of the yield
    usable = (
        (windows["silent_ms"] == 0)
        & windows["product"].is_not_null()
        & (windows["advance"] != "request_end")
        & (windows["unread_gpus"] == 0)
    )
    rows = where(windows, usable.fill_null(False))
    blind = _not_whole(gpu_windows, held, edges)
    if blind.height:
        rows = rows.join(blind, on=["server", "window_start_ms"], how="anti")
    return rows.group_by("site", "pool", "product", "model_name", "window_start_ms").agg(
        pl.col("output_tokens", "serving_mj").sum()
    )


def _not_whole(gpu_windows: pl.DataFrame, held: pl.DataFrame, edges: Edges) -> pl.DataFrame:
    """(server, window_start_ms) in which a GPU it holds was not read all the time.

    One that was not read yet, or is forgotten, has no row at all.
    """
    read = gpu_windows.filter((pl.col("state") != "dark") & (pl.col("window_start_ms") >= edges.previous_ms))
    by_gpu = read.group_by("id").agg(pl.col("gpu_ms").sum())
    read_ms = by_id(held["id"], by_gpu["id"], by_gpu["gpu_ms"], default=0)
    partly = where(held, read_ms < edges.edge_ms - edges.previous_ms).select_seq(
        "server", "id", "from_ms", "until_ms"
    )
    if partly.is_empty():
        return partly
    starts = pl.int_range(edges.previous_ms, edges.edge_ms, edges.window_ms, eager=True)
    whole = (
        read.join(partly.select_seq("id").unique(), on="id", how="semi")
        .group_by("id", "window_start_ms")
        .agg(pl.col("gpu_ms").sum())
        .filter(pl.col("gpu_ms") >= edges.window_ms)
    )
    every = partly.join(starts.alias("window_start_ms").to_frame(), how="cross").filter(
        _was_there(edges.window_ms)
    )
    return every.join(whole, on=["id", "window_start_ms"], how="anti").select_seq("server", "window_start_ms")


def _was_there(window_ms: int) -> pl.Expr:
    """Whether a GPU that an engine may hold was known by the window's end, and when it began. See with_stays()."""
    comes_later = pl.col("from_ms") >= pl.col("window_start_ms") + window_ms
    is_forgotten = pl.col("until_ms") <= pl.col("window_start_ms")
    return ~(comes_later.fill_null(False) | is_forgotten.fill_null(False))
