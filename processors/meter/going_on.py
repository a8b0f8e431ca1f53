"""Which readings go on from the one before: not those of an epoch older than one seen, without a counter that the entity
had, or whose counters fell within a known epoch.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl


def without_bad(
    rows: pl.DataFrame, counters: Sequence[str], forget_ms: int, dropped: dict[str, int]
) -> pl.DataFrame:
    """Drop readings that do not go on, see going_on(), and count them; nearly always there are none."""
    suspicions = {str(number): doubt.any() for number, doubt in enumerate(_doubts(counters))}
    if not any(rows.select_seq(**suspicions).row(0)):
        return rows
    good, counts = going_on(rows, counters, forget_ms)
    dropped.update(counts)
    return good


def _doubts(counters: Sequence[str]) -> list[pl.Expr]:
    """Where a reading does not simply go on from the one before it; may be null, which is no doubt."""
    same = pl.col("id") == pl.col("id").shift(1)
    epoch_ms, before_ms = pl.col("epoch_ms"), pl.col("epoch_ms").shift(1)
    return [
        same & (epoch_ms < before_ms),
        *(same & (epoch_ms == before_ms) & (pl.col(c) < pl.col(c).shift(1)) for c in counters),
        *(same & pl.col(c).is_null() & pl.col(c).shift(1).is_not_null() for c in counters),
    ]


def going_on(
    rows: pl.DataFrame, counters: Sequence[str], forget_ms: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The readings that go on from the last good one of their `id`, or begin anew once that is forgotten.

    And how many do not, by reason. Readings of an id stand together, in the order of time.
    """
    doubtful = rows["id"].filter(
        rows.select_seq(pl.any_horizontal(_doubts(counters)).fill_null(False)).to_series()
    )
    is_judged = rows["id"].is_in(doubtful.unique().implode())
    # what a reading is held against depends on what became of the one before it: one by one, which is seldom
    faults = _faults(rows.filter(is_judged).select_seq("id", "ts_ms", "epoch_ms", *counters), forget_ms)
    is_good = (~is_judged).scatter(is_judged.arg_true(), [fault is None for fault in faults])
    return rows.filter(is_good), Counter(fault for fault in faults if fault is not None)


def _faults(rows: pl.DataFrame, forget_ms: int) -> list[str | None]:
    """Of each reading (id, ts_ms, epoch_ms, counters) why it does not go on from the last good one."""
    found: list[str | None] = []
    last: tuple[Any, ...] | None = None
    for row in rows.iter_rows():
        fault = None
        if last is not None and row[0] == last[0] and row[1] - last[1] < forget_ms:
            fault = _fault(last, row)
        if fault is None:
            last = row
        found.append(fault)
    return found


def _fault(before: Sequence[Any], row: Sequence[Any]) -> str | None:
    _, t0_ms, before_ms, *had = before
    _, ts_ms, epoch_ms, *has = row
    pairs = list(zip(had, has, strict=True))
    # A process that was started anew may be of a version that counts less; so may one that tells its epoch now, and a
    # collector that does without a GPU's counter. An epoch before may be later than its own reading: a clock that was
    # ahead told it, and is right again.
    is_told = epoch_ms is not None and epoch_ms != before_ms
    if is_told and (before_ms is None or epoch_ms > before_ms or t0_ms < epoch_ms <= ts_ms):
        return None
    if any(count is None and number is not None for number, count in pairs):
        return "counter_missing"
    if epoch_ms is None or before_ms is None:
        return None
    # without counters nothing is known to have begun with an epoch
    known = [pair for pair in pairs if None not in pair]
    if epoch_ms < before_ms:
        return "stale_epoch" if known else None
    return "counter_decrease" if any(count < number for number, count in known) else None
