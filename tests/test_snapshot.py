"""Snapshots: a frame that stays is written once, and never stands in for another one."""

import polars as pl
import pytest

from idlewatt.processors import snapshot
from idlewatt.processors.snapshot import SnapshotError, read_snapshot, write_snapshot


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


def test_integers_of_long_frames_are_read_back_whatever_they_are() -> None:
    """Columns are written in few bytes: no value, null, type or order of rows may differ afterwards."""
    rows = 4_500
    lows = {"tiny": 7, "minus": -300, "moment": 1_767_225_600_000, "large": -(2**63)}
    spans = {"one": 0, "byte": 255, "more": 256, "two": 65_535, "four": 2**32 - 1, "five": 2**32}
    columns = {
        f"{low}_{span}": [lows[low] + number * spans[span] // (rows - 1) for number in range(rows)]
        for low in lows
        for span in spans
    }
    wide = {"wide": [-(2**63), 2**63 - 1] * (rows // 2)}
    nulls = {"some": [None, 5, 6] * (rows // 3), "all": pl.Series([None] * rows, dtype=pl.Int64)}
    others = {
        "text": ["a", "b", None] * (rows // 3),
        "truth": [True, None] * (rows // 2),
        "ratio": [0.1] * rows,
    }
    frame = pl.DataFrame({**columns, **wide, **nulls, **others})
    chunked = pl.concat([frame.head(7), frame.tail(rows - 7)], rechunk=False)
    written = write_snapshot("test/1", {}, {"frame": frame, "chunked": chunked, "short": frame.head(3)})
    _, frames = read_snapshot("test/1", written)
    for name, found in frames.items():
        before = {"frame": frame, "chunked": frame, "short": frame.head(3)}[name]
        assert found.schema == before.schema
        assert found.equals(before)
    assert len(written) < 2 * frame.estimated_size() / 3


def test_state_of_another_layout_is_for_the_version_that_wrote_it() -> None:
    """A new process.group is no way: over Kafka it is refused, and the embedded log has none."""
    written = write_snapshot("test/1", {}, {})
    says = r"written as test/1, this Idlewatt reads test/2: run the version that wrote it \(docs/architecture\.md, State\)$"
    with pytest.raises(SnapshotError, match=says):
        read_snapshot("test/2", written)
