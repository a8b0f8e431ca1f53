"""GPUs that engines name and nobody reads: until when, and how many in each window."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from idlewatt.processors.meter.activity import Holding
from idlewatt.processors.meter.rows import by_id, where
from idlewatt.processors.meter.timeline import Advance, first_readings

_NEVER_MS: Final = (1 << 63) - 1


def unread_gpus(holding: Holding, read_before: pl.DataFrame, step: Advance) -> pl.DataFrame:
    """(server, site, pool, gpu_uuid, until_ms): what an engine names and nobody had read until then.

    A GPU has been read when a reading was taken, not when one has come: else it would depend on how many are read at once.
    `read_before`: last readings when the step of GPUs began.
    """
    never = holding.unread.with_columns_seq(until_ms=pl.lit(_NEVER_MS))
    named = where(holding.held, ~holding.held["inferred"])
    was_read = by_id(named["id"], read_before["id"], True, pl.Boolean, default=False)
    if was_read.all():
        return never
    since = (
        where(named, ~was_read)
        .join(holding.servers.select_seq("server", "site", "pool"), on="server")
        .join(holding.gpu_index.select_seq("id", "gpu_uuid"), on="id")
        .join(first_readings(step), on="id", how="left")
        .with_columns_seq(until_ms=pl.col("first_ms").fill_null(_NEVER_MS))
    )
    return pl.concat([never, since.select_seq(never.columns)])


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
    # several engines may name the same GPU
    counts = lasting.unique([*whose, "gpu_uuid"]).group_by(*whose, "until_ms").len("unread_gpus")
    window = [*whose, "window_start_ms"]
    found = (
        windows.select_seq(window)
        .unique()
        .join(counts, on=list(whose))
        .filter(pl.col("until_ms") >= pl.col("window_start_ms") + window_ms)
        .group_by(window)
        .agg(pl.col("unread_gpus").cast(pl.Int64).sum())
    )
    return windows.join(found, on=window, how="left", maintain_order="left").with_columns_seq(
        pl.col("unread_gpus").fill_null(0)
    )
