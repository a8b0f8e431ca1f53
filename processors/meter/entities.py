"""GPUs and engines alike: a step's pieces of their time, and what is remembered of them from one step to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from idlewatt.processors.meter import forgotten
from idlewatt.processors.meter.cutting import split, still_open
from idlewatt.processors.meter.gaps import put_off, taken_back
from idlewatt.processors.meter.rows import among, where
from idlewatt.processors.meter.state import ENGINE_GAP, ENGINE_KEY, GPU_GAP, GPU_KEY
from idlewatt.processors.meter.timeline import Advance, Edges, known_since
from idlewatt.stream.records import TOKEN_COUNTS

ENERGY: Final = ("energy_mj",)


@dataclass(frozen=True, slots=True)
class Kind:
    """What GPUs and engines differ in."""

    key: Sequence[str]
    gap_columns: dict[str, Any]
    counters: Sequence[str]


GPUS: Final = Kind(GPU_KEY, GPU_GAP, ENERGY)
ENGINES: Final = Kind(ENGINE_KEY, ENGINE_GAP, TOKEN_COUNTS)


@dataclass(frozen=True, slots=True)
class Entities:
    """The frames of MeterState that are about one kind."""

    last: pl.DataFrame
    forgotten: pl.DataFrame
    gone: pl.DataFrame
    open: pl.DataFrame
    gaps: pl.DataFrame
    index: pl.DataFrame


def remembered(
    kind: Kind,
    before: Entities,
    step: Advance,
    intervals: pl.DataFrame,
    gaps: pl.DataFrame,
    edges: Edges,
    unfinished: Sequence[pl.DataFrame],
) -> Entities:
    """After the step: those that were silent for `forget_ms` are forgotten, which frees what nothing waits for.

    `intervals` and `gaps`: the step's own. `unfinished`: frames with the ids of those that something else waits for.
    """
    dark, still_forgotten = forgotten.back(before.forgotten, step, before.index, kind.key)
    gaps = both(both(before.gaps, gaps), taken_back(dark, kind.gap_columns, kind.counters))
    is_kept = step.last["ts_ms"] > edges.edge_ms - edges.forget_ms
    kept, lost = where(step.last, is_kept), _with_until(where(step.last, ~is_kept), before.last, edges)
    if "power_limit_mw" in lost.columns:
        lost = lost.rename({"power_limit_mw": "power_limit_mw_0"})
    gone = _read_again(before.gone, step)
    index = with_first(before.index, known_since(step, edges.forget_ms))
    return Entities(
        last=kept,
        forgotten=forgotten.remember(still_forgotten, lost, before.index, kind.key, edges.edge_ms),
        gone=gone,
        open=still_open(pl.concat([before.open, intervals]), edges),
        gaps=gaps,
        index=_known(index, kept, step, gaps, gone, *unfinished),
    )


def pieces(
    opened: pl.DataFrame,
    intervals: pl.DataFrame,
    silent: pl.DataFrame,
    step: Advance,
    edges: Edges,
    counters: Sequence[str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was read and what was silent, cut at the windows; and the long gaps, which are booked later."""
    now, from_edge, gaps = put_off(both(intervals, silent), edges, step.new)
    return split(both(opened, from_edge), now, edges, counters, step.new), gaps


def with_first(index: pl.DataFrame, first: pl.DataFrame) -> pl.DataFrame:
    """Note the first readings (id, first_ms) of those that are new: they are known to be there from then on, not before.

    New is one that was forgotten, too, whose names are still known for what it did.
    """
    if first.is_empty():
        return index
    first = first.rename({"first_ms": "first"})
    return (
        index.join(first, on="id", how="left", maintain_order="left")
        .with_columns_seq(first_ms=pl.coalesce("first", "first_ms"))
        .drop("first")
    )


def both(rows: pl.DataFrame, seldom: pl.DataFrame) -> pl.DataFrame:
    """One below the other."""
    return pl.concat([rows, seldom.select_seq(rows.columns)]) if seldom.height else rows


def _with_until(lost: pl.DataFrame, known: pl.DataFrame, edges: Edges) -> pl.DataFrame:
    """Add until_ms, up to which the silence after last readings is booked; `known`: last readings before the step."""
    # of those it is booked up to the last edge, whatever forget_ms was then
    booked_ms = pl.when(among(lost["id"], known["id"])).then(edges.previous_ms)
    return lost.with_columns_seq(until_ms=pl.max_horizontal(pl.col("ts_ms") + edges.forget_ms, booked_ms))


def _read_again(gone: pl.DataFrame, step: Advance) -> pl.DataFrame:
    """Of readings that are gone, those whose message is read again after a restart: it is not older than all that wait."""
    rows = pl.concat([gone, step.gone]) if step.gone.height else gone
    if rows.is_empty():
        return rows
    oldest = step.pending["src"].min()
    return where(rows, rows["src"] >= oldest) if isinstance(oldest, int) else rows.clear()


def _known(index: pl.DataFrame, kept: pl.DataFrame, step: Advance, *unfinished: pl.DataFrame) -> pl.DataFrame:
    """The index without entities that are forgotten, have nothing waiting and nothing unfinished."""
    if kept.height == index.height:
        return index
    alive = pl.concat([frame.select_seq("id") for frame in (kept, step.pending, *unfinished)]).unique()
    return index.join(alive, on="id", how="semi", maintain_order="left")
