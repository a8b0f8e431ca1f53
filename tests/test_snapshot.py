"""Snapshots: a frame that stays is written once, and never stands in for another one."""

import polars as pl

from idlewatt.processors import snapshot
from idlewatt.processors.snapshot import read_snapshot, write_snapshot


def test_each_frame_is_read_back_however_long_it_lives() -> None:
    """New frames come where old ones were in memory: nothing of those may be left."""
    stays = pl.DataFrame({"name": ["a", "b"]})
    kept = len(snapshot._written)
    for number in range(200):
        written = write_snapshot(
            "test/1", {"number": number}, {"stays": stays, "goes": pl.DataFrame({"number": [number] * 10})}
        )
        scalars, frames = read_snapshot("test/1", written)
        assert scalars == {"number": number}
        assert frames["stays"].equals(stays)
        assert frames["goes"].get_column("number").to_list() == [number] * 10
    place = id(stays)
    assert place in snapshot._written
    assert len(snapshot._written) <= kept + 1
    del stays
    assert place not in snapshot._written
