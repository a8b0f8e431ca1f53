"""The economy: ledger rows of a partition's sites to money."""

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from idlewatt.processors.booking import messages
from idlewatt.processors.economy import pricing
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.families import families
from idlewatt.processors.economy.state import TOTAL_KEY, EconomyState
from idlewatt.processors.families import Family
from idlewatt.processors.stage import Batch, Folded
from idlewatt.stream import records, topics

_POOL: Final = ("site", "pool")


class EconomyStage:
    """Stage over idlewatt.ledger."""

    name: Final = "economy"
    inputs: Final = (topics.LEDGER,)
    schemas: Final = (records.POWER, records.TOKENS, records.GPU_MINUTE)
    at_most: Final[Mapping[str, int]] = {}

    def __init__(self, config: EconomyConfig) -> None:
        self._config = config

    def empty(self) -> EconomyState:
        return EconomyState.empty()

    def snapshot(self, state: EconomyState) -> bytes:
        return state.snapshot()

    def restore(self, snapshot: bytes) -> EconomyState:
        return EconomyState.restore(snapshot)

    def families(self, states: Sequence[EconomyState]) -> list[Family]:
        return families(states)

    def fold(self, state: EconomyState, batch: Batch) -> Folded[EconomyState]:
        """Price every row as it comes; nothing waits."""
        power = batch.frames[records.POWER.name]
        tokens = batch.frames[records.TOKENS.name]
        if power.is_empty() and tokens.is_empty():
            return Folded(state)
        priced = pricing.priced_tokens(tokens, self._config)
        # what was read before came before
        before = state.mix.with_columns(src=pl.lit(-1, pl.Int64))
        mix = pl.concat([before, pricing.mix_rows(priced)])
        losses = pricing.idle_losses(power, mix, self._config)
        money = pl.concat(
            [pricing.revenue_rows(priced, self._config), pricing.loss_rows(losses, self._config)]
        )
        windows = _windows(state.windows, power)
        folded = EconomyState(
            mix=_recent(mix.drop("src"), windows),
            totals=_add(state.totals, money.select(*TOTAL_KEY, "amount_micro"), TOTAL_KEY, "amount_micro"),
            unpriced=_add(
                state.unpriced,
                priced.filter(pl.col("worth").is_null()).select(*_POOL, "model_name", "output_tokens"),
                (*_POOL, "model_name"),
                "output_tokens",
            ),
            losses=_recent(_live(state, pricing.window_losses(power, losses, self._config)), windows),
            windows=windows,
        )
        newest = windows.get_column("end_ms").max()
        return Folded(
            folded,
            list(messages(topics.MONEY, records.MONEY, money)),
            event_ms=newest if isinstance(newest, int) else None,
            moved=True,
        )


def _add(totals: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str], amount: str) -> pl.DataFrame:
    return (
        pl.concat([totals, rows.select(totals.columns)]).group_by(*key).agg(pl.col(amount).sum()).sort(*key)
    )


def _windows(windows: pl.DataFrame, power: pl.DataFrame) -> pl.DataFrame:
    seen = power.select(*_POOL, (pl.col("window_start_ms") + pl.col("window_ms")).alias("end_ms"))
    return pl.concat([windows, seen]).group_by(*_POOL).agg(pl.col("end_ms").max()).sort(*_POOL)


def _live(state: EconomyState, losses: pl.DataFrame) -> pl.DataFrame:
    """The last hour's losses; amendments of windows closed before stay out of the rolling figures."""
    on_time = (pl.col("window_start_ms") >= pl.col("end_ms")).fill_null(True)
    live = losses.join(state.windows, on=_POOL, how="left").filter(on_time)
    return pl.concat([state.losses, live.select(state.losses.columns)])


def _recent(rows: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Rows of the hour before the pool's newest window."""
    recent = (pl.col("window_start_ms") >= pl.col("end_ms") - pricing.HOUR_MS).fill_null(True)
    return rows.join(windows, on=_POOL, how="left").filter(recent).drop("end_ms")
