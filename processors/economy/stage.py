"""The economy: ledger rows and usage of a partition's sites to money."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import polars as pl
import structlog

from idlewatt.processors.amounts import SUM
from idlewatt.processors.at_once import at_once
from idlewatt.processors.booking import messages
from idlewatt.processors.economy import consumers, costs, envelopes, pricing, retiring, rolling, tiers
from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.families import families
from idlewatt.processors.economy.pricing import MIX_MS
from idlewatt.processors.economy.state import (
    TOTAL_KEY,
    UNATTRIBUTED_KEY,
    UNCOSTED_KEY,
    UNPRICED_KEY,
    EconomyState,
)
from idlewatt.processors.economy.usage import AHEAD_MS, fold_usage
from idlewatt.processors.families import Family
from idlewatt.processors.gone_pools import frames_of_others, of_others
from idlewatt.processors.stage import Batch, Folded
from idlewatt.stream import records, topics
from idlewatt.stream.clock import MINUTE_MS
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.log import Record
from idlewatt.stream.records import POOL

# frames of the state whose counters have a pool
_ENDING: Final = ("totals", "unpriced", "uncosted", "carbon", "booked")
_MOST_LINES: Final = 20
_log = structlog.get_logger()


class EconomyStage:
    """Stage over idlewatt.ledger and idlewatt.usage."""

    name: Final = "economy"
    inputs: Final = (topics.LEDGER, topics.USAGE)
    first: Final = frozenset({topics.USAGE})
    columns: Final = {
        **{schema: tuple(schema.arrow.names) for schema in (records.POWER, records.TOKENS, records.USAGE)},
        # they are in the ledger, and say nothing of money
        records.GPU_MINUTE: ("gpu_ms",),
    }
    names_apart: Final[frozenset[records.Schema]] = frozenset()
    # every commit of the meter brings rows of all sites
    gather_s: Final = 2.0
    at_most: Final[Mapping[str, int]] = {}

    def __init__(self, book: Callable[[], Book], config: EconomyConfig) -> None:
        """`book` gives the one in force."""
        self._book = book
        self._config = config

    def empty(self) -> EconomyState:
        return EconomyState.empty()

    def snapshot(self, state: EconomyState) -> bytes:
        return state.snapshot()

    def restore(self, snapshot: bytes) -> EconomyState:
        return EconomyState.restore(snapshot)

    def families(self, states: Sequence[EconomyState]) -> list[Family]:
        return families(states, self._book(), self._config)

    def waits(self, state: EconomyState, batch: Batch) -> bool:
        """While usage is behind the clock, and not read to its end: tokens that are priced before it are nobody's."""
        if topics.USAGE in batch.at_end:
            return False
        used = _as_told(state.used, batch.frames[records.USAGE.name], batch.now_ms)
        furthest_behind_ms = min((ms for ms, _ in used.values()), default=0)
        return furthest_behind_ms <= batch.now_ms - tiers.LEAD_MS

    def fold(self, state: EconomyState, batch: Batch) -> Folded[EconomyState]:
        """Price every row as it comes; nothing waits. Usage first: it says what tiers tokens are sold on."""
        book = self._book()
        if state.currency != book.currency:
            state = _in_currency(state, book.currency)
        used = self._fold_usage(state, batch, book)
        sold = self._fold_ledger(used.state, batch, book)
        tokens = batch.frames[records.TOKENS.name]
        # engines may go on without GPUs
        ends_ms = [sold.state.windows["end_ms"], tokens["window_start_ms"] + tokens["window_ms"]]
        newest_ms = pl.concat(ends_ms).max()
        return Folded(
            sold.state,
            [*used.records, *sold.records],
            rejected=used.rejected,
            event_ms=newest_ms if isinstance(newest_ms, int) else None,
            moved=used.moved or sold.moved,
        )

    def _fold_usage(self, state: EconomyState, batch: Batch, book: Book) -> Folded[EconomyState]:
        rows = batch.frames[records.USAGE.name]
        end_ms = batch.now_ms if topics.USAGE in batch.at_end else None
        if rows.is_empty():
            # periods end although nobody uses anything
            waited = envelopes.passed(state.envelopes, state.usage.sites, end_ms)
            moved = waited is not state.envelopes
            return Folded(replace(state, envelopes=waited) if moved else state, moved=moved)
        used = fold_usage(state.usage, rows, batch.now_ms)
        spent = consumers.spend(book, used.minutes, state.volumes, state.rests)
        # a site of which usage tells first may have engines whose tokens the meter has still to read
        compared = tiers.begun(state.compared, spent.tiers, state.compared)
        by_tier = tiers.told(state.tiers, spent.tiers, state.engines, compared)
        # others' would be made of ever less that can be compared
        told = tiers.reached(state.engines).join(spent.tiers, on="site", how="semi")
        folded = replace(
            _with_shares(replace(state, tiers=by_tier, compared=tiers.updated(compared, told)), told),
            usage=used.state,
            used=_as_told(state.used, rows, batch.now_ms),
            volumes=spent.volumes,
            rests=spent.rests,
            consumers=consumers.totals(state.consumers, spent.rows),
            envelopes=envelopes.used(state.envelopes, spent.rows, used.state.sites, book.time_zone, end_ms),
        )
        consumer_rows = spent.rows.select(*frame_schema(records.CONSUMER))
        return Folded(
            folded,
            list(messages(topics.MONEY, records.CONSUMER, consumer_rows)),
            rejected={(records.USAGE.name, reason): count for reason, count in used.rejected.items()},
            moved=True,
        )

    def _fold_ledger(self, state: EconomyState, batch: Batch, book: Book) -> Folded[EconomyState]:
        power, tokens = batch.frames[records.POWER.name], batch.frames[records.TOKENS.name]
        if power.is_empty() and tokens.is_empty():
            return Folded(state)
        priced, state = _priced(tokens, state, book)
        # what was read before came before
        before = state.mix.with_columns(src=pl.lit(-1, pl.Int64))
        sold = pricing.mix_rows(priced)
        losses = pricing.idle_losses(power, pl.concat([before, sold]), book, self._config, state.windows)
        costed = costs.costed(power, book)
        money = pl.concat(
            [
                pricing.revenue_rows(priced, book),
                pricing.loss_rows(losses, book),
                costs.cost_rows(costed, book),
            ]
        )
        ends = _ends(state.windows, power)
        booked = retiring.last_booked(state.booked, power, tokens)
        live = rolling.on_time(rolling.window_sums(costed, losses, priced, tokens), state.windows)
        held = rolling.packing(rolling.on_time(power.lazy(), state.windows), state.packing)
        counted = _counted(priced)
        unpriced = counted.filter("unpriced")
        _say_unpriced(unpriced, state.unpriced)
        mix = pl.concat([state.mix, sold[state.mix.columns]])
        roll = pl.concat([state.rolling, at_once(live)])
        packs = pl.concat([state.packing, at_once(held)])
        if _minute(ends, roll) != _minute(state.windows, state.rolling):
            # who reads them goes by time anyway: what is too old can wait for the minute's end
            silent = retiring.gone(booked, retiring.SILENT_MS)
            ends, mix, roll, packs = (of_others(silent, rows) for rows in (ends, mix, roll, packs))
            ends = retiring.with_gpus(ends, roll)
            mix, roll, packs = _recent(mix, ends), rolling.aged(roll, ends), rolling.packed(packs, ends)
        folded = replace(
            state,
            mix=mix,
            totals=_add_shown(
                state.totals,
                money.with_columns_seq(pl.col("tier", "origin").fill_null("")),
                TOTAL_KEY,
                "amount_micro",
                "shown_micro",
            ),
            unpriced=_add(state.unpriced, unpriced, UNPRICED_KEY),
            uncosted=_add_shown(
                state.uncosted,
                costed.filter(pl.col("capital_micro").is_null()),
                UNCOSTED_KEY,
                "gpu_ms",
                "shown_gpu_ms",
            ),
            carbon=_add(
                state.carbon, costed.filter(pl.col("carbon_ug").is_not_null()), ("site", "pool", "state")
            ),
            windows=ends,
            rolling=roll,
            packing=packs,
            unattributed=_add(state.unattributed, counted.filter(~pl.col("attributed")), UNATTRIBUTED_KEY),
            booked=booked,
        )
        return Folded(
            _without_gone(folded), list[Record](messages(topics.MONEY, records.MONEY, money)), moved=True
        )


def _as_told(
    known: Mapping[str, tuple[int, int]], usage: pl.DataFrame, now_ms: int
) -> dict[str, tuple[int, int]]:
    """How far each site's usage goes, and when that was read, Unix ms: of these rows, or of others within five minutes.

    By the middle row, not the newest: in a backlog one of a clock that is ahead says nothing.
    """
    in_time = usage.filter(pl.col("ts_ms") <= now_ms + AHEAD_MS)
    middle = in_time.group_by("site").agg(pl.col("ts_ms").quantile(0.5))
    lately = {site: told for site, told in known.items() if 0 <= now_ms - told[1] < tiers.LEAD_MS}
    return lately | {site: (round(ts_ms), now_ms) for site, ts_ms in middle.iter_rows()}


def _in_currency(state: EconomyState, currency: str) -> EconomyState:
    """The state without the last hour's money, which is in another one: figures of it begin anew."""
    none = [pl.lit(None, SUM).alias(name) for name in ("owed", "listed")]
    return replace(
        state,
        currency=currency,
        mix=state.mix.clear(),
        rolling=state.rolling.clear(),
        tiers=state.tiers.with_columns(none),
        shares=state.shares.with_columns(none),
    )


def _with_shares(state: EconomyState, compared: pl.DataFrame) -> EconomyState:
    """The tiers' shares of sites by what usage and engines (up to `compared`) have told; others' shares as before."""
    others = state.shares.join(compared, on="site", how="anti")
    shares = tiers.shares(state.tiers, state.engines, state.shares, compared)
    return replace(state, shares=pl.concat([shares, others]))


def _priced(tokens: pl.DataFrame, state: EconomyState, book: Book) -> tuple[pl.DataFrame, EconomyState]:
    """pricing.priced_tokens() of the rows, and the state with engines' tokens and shares after them.

    Of hours that are read together, each few minutes are sold on the tiers that were asked for until then.
    """
    priced = []
    # of sites that only usage has told of yet, too: engines may have begun long before it
    state = replace(state, compared=tiers.begun(state.compared, tokens, state.engines))
    for number, rows in tiers.slices(tokens, state.compared):
        minutes = rows.with_columns(window_start_ms=pl.col("window_start_ms") // MINUTE_MS * MINUTE_MS)
        if number:
            # of sites that these rows are of: others are compared when theirs are read
            compared = tiers.reached(state.engines, minutes).join(minutes, on="site", how="semi")
            state = _with_shares(state, tiers.anew(compared, state.tiers, state.compared))
            state = replace(state, compared=tiers.updated(state.compared, compared))
        priced.append(pricing.priced_tokens(rows, state.shares, book))
        state = replace(state, engines=tiers.recent(state.engines, minutes))
    return pl.concat(priced), state


def _without_gone(state: EconomyState) -> EconomyState:
    gone = retiring.gone(state.booked, retiring.ENDED_MS)
    return state if gone.is_empty() else replace(state, **frames_of_others(gone, state, _ENDING))


def _counted(priced: pl.DataFrame) -> pl.DataFrame:
    """Tokens by where they were made, as what they are sold, whether for somebody and whether at no price."""
    key = ("site", "pool", "model_name", "tier", "attributed")
    counts = priced.lazy().group_by(*key, unpriced=pl.col("earned").is_null(), maintain_order=True)
    return at_once(counts.agg(pl.col(records.TOKEN_COUNTS).cast(SUM).sum()))


def _say_unpriced(rows: pl.DataFrame, before: pl.DataFrame) -> None:
    """A line for each model and tier that was never without a price before; the counter tells the rest."""
    if rows.is_empty():
        return
    line = ["model_name", "tier"]
    new = rows[line].unique().join(before, on=line, how="anti").sort(line)
    for model, tier in new.head(_MOST_LINES).iter_rows():
        _log.warning("tokens_without_price", model=model, tier=tier)


def _add(totals: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The totals with these rows added; every column that is not of the key is summed."""
    if rows.is_empty():
        return totals
    both = pl.concat([totals, rows[totals.columns].cast(totals.schema)]).lazy()
    return at_once(both.group_by(key, maintain_order=True).agg(pl.all().sum()))


def _add_shown(
    totals: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str], amount: str, shown: str
) -> pl.DataFrame:
    """The same of one amount, and the most that each ever came to.

    What dark time cost is taken back where it turns out to have been another state's; a counter may not fall.
    """
    if rows.is_empty():
        return totals
    dtype = totals.schema[amount]
    more = rows.lazy().select(*key, pl.col(amount).cast(dtype), pl.lit(0, dtype).alias(shown))
    both = pl.concat([totals.lazy(), more])
    sums = both.group_by(key, maintain_order=True).agg(pl.col(amount).sum(), pl.col(shown).max())
    return at_once(sums.with_columns(pl.max_horizontal(amount, shown).alias(shown)))


def _ends(windows: pl.DataFrame, power: pl.DataFrame) -> pl.DataFrame:
    seen = power.lazy().select(*POOL, (pl.col("window_start_ms") + pl.col("window_ms")).alias("end_ms"))
    both = pl.concat([windows.lazy(), seen])
    return at_once(both.group_by(*POOL, maintain_order=True).agg(pl.col("end_ms").max()))


def _minute(ends: pl.DataFrame, windows: pl.DataFrame) -> int:
    newest = (ends.get_column("end_ms").max(), windows.get_column("window_start_ms").max())
    return max(ms // MINUTE_MS if isinstance(ms, int) else 0 for ms in newest)


def _recent(rows: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Rows of the mix that lost revenue is priced by, up to the pool's newest window."""
    with_ends = rows.lazy().join(windows.lazy(), on=POOL, how="left")
    return at_once(with_ends.filter(rolling.recent(pl.col("window_start_ms"), MIX_MS)).drop("end_ms"))
