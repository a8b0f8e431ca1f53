"""What a stage books goes out in its order, in messages that Kafka takes, and a pool's window in one of them."""

from typing import Any

import polars as pl
import pytest
from report_ledgers import power
from stage_driver import frame

from idlewatt.processors import booking
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode


def ledger(windows: list[tuple[str, str, int, int]]) -> pl.DataFrame:
    """Rows of watts of (site, pool, window_start_ms, rows), told apart by what they drew."""
    rows = [
        power(site=site, pool=pool, window_start_ms=start_ms)
        for site, pool, start_ms, count in windows
        for _ in range(count)
    ]
    return frame(records.POWER, rows, 0).with_columns(draw_mj=pl.int_range(pl.len()))


def read(messages: list[Any]) -> list[pl.DataFrame]:
    return [decode(record.value)[1] for record in messages]


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_a_pools_window_stays_in_one_message(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Unless it is longer than a message; each site has messages of its own, and no row is lost or moved."""
    monkeypatch.setattr(booking, "ROWS_PER_MESSAGE", most)
    windows = [("n", "a", 0, 2), ("n", "a", 10, 3), ("n", "b", 10, 5), ("n", "b", 20, 1), ("s", "b", 20, 4)]
    rows = ledger(windows)
    sent = list(booking.messages(topics.LEDGER, records.POWER, rows, together=("pool", "window_start_ms")))
    found = read(sent)
    assert pl.concat(found)["draw_mj"].to_list() == list(range(15))
    assert all(part.height <= most and part["site"].n_unique() == 1 for part in found)
    for site, pool, start_ms, count in windows:
        alike = (pl.col("site") == site) & (pl.col("pool") == pool) & (pl.col("window_start_ms") == start_ms)
        parts = [part for part in found if part.filter(alike).height]
        assert len(parts) == 1 or count > most


def test_others_fill_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that need not stay together are cut where a message is full."""
    monkeypatch.setattr(booking, "ROWS_PER_MESSAGE", 4)
    rows = ledger([("n", "a", 0, 9), ("s", "a", 0, 3)])
    found = read(list(booking.messages(topics.LEDGER, records.POWER, rows)))
    assert [part.height for part in found] == [4, 4, 1, 3]


def test_a_message_of_long_names_is_one_that_kafka_takes() -> None:
    """What it refuses would be refused for ever, and all that is committed beside it."""
    rows = ledger([("n", "a", 0, 20_000)]).with_columns(
        pl.lit("n" * 512).alias(name) for name in ("site", "pool", "model_name", "product")
    )
    sent = list(booking.messages(topics.LEDGER, records.POWER, rows))
    assert max(len(record.value) for record in sent) < topics.MAX_MESSAGE_BYTES * 0.6
    assert pl.concat(read(sent))["draw_mj"].to_list() == list(range(20_000))
