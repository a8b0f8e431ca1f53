"""Names to ids: the same entity keeps its id, and the index says what its newest reading said."""

import polars as pl

from idlewatt.processors.meter.ids import ids_of, with_ids

KEY = ("pool", "gpu_uuid")
ATTRIBUTES = ("node",)
NONE_YET = pl.DataFrame(schema={"pool": pl.String, "gpu_uuid": pl.String, "node": pl.String, "id": pl.Int64})


def entities(*names: tuple[str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(names, schema=["pool", "gpu_uuid", "node"], orient="row")


def rows(*readings: tuple[int, int]) -> pl.DataFrame:
    """(ts_ms, entity)"""
    return pl.DataFrame(readings, schema={"ts_ms": pl.Int64, "entity": pl.Int64}, orient="row")


def given(
    index: pl.DataFrame, rows: pl.DataFrame, named: pl.DataFrame, *before: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`before`: of readings that came before, as with_ids() gave them."""
    readings = before or (pl.DataFrame(schema={"ts_ms": pl.Int64, "id": pl.Int64}),)
    return with_ids(ids_of(named, index, KEY, ATTRIBUTES, None), rows, KEY, ATTRIBUTES, readings)


def ids_by_time(found: pl.DataFrame) -> dict[int, int]:
    return dict(found.select("ts_ms", "id").iter_rows())


def test_an_entity_keeps_its_id() -> None:
    """However often a batch names it, whoever comes with it, and wherever it stands."""
    named = entities(("p", "a", "n1"), ("p", "b", "n1"), ("p", "a", "n1"))
    found, index = given(NONE_YET, rows((1, 0), (2, 1), (3, 2)), named)
    first = ids_by_time(found)
    assert first[1] == first[3] != first[2]
    named = entities(("q", "a", "n1"), ("p", "b", "n1"), ("p", "a", "n1"))
    found, index = given(index, rows((4, 0), (5, 1), (6, 2)), named)
    second = ids_by_time(found)
    assert (second[5], second[6]) == (first[2], first[1])
    assert second[4] not in (first[1], first[2])
    assert sorted(index["id"]) == [0, 1, 2]
    known, same = given(index, rows((7, 2), (8, 0)), named)
    assert same is index
    assert ids_by_time(known) == {7: second[6], 8: second[4]}


def test_the_newest_reading_says_where_it_is() -> None:
    """Not the one that came last: it moved from n1 to n2, and an old message comes after."""
    _, index = given(NONE_YET, rows((1, 0)), entities(("p", "a", "n1")))
    named = entities(("p", "a", "n2"), ("p", "a", "n1"))
    found, index = given(index, rows((20, 0), (10, 1)), named)
    assert index.select(*KEY, *ATTRIBUTES, "id").rows() == [("p", "a", "n2", 0)]
    assert ids_by_time(found) == {20: 0, 10: 0}


def test_an_old_message_that_comes_again_moves_nobody() -> None:
    """It moved from n1 to n2 at 20; the message of 10 is repeated by itself."""
    first, index = given(NONE_YET, rows((10, 0)), entities(("p", "a", "n1")))
    second, index = given(index, rows((20, 0)), entities(("p", "a", "n2")), first)
    found, index = given(index, rows((10, 0)), entities(("p", "a", "n1")), first, second)
    assert index["node"].to_list() == ["n2"]
    assert ids_by_time(found) == {10: 0}


def test_names_without_a_row_are_nobody() -> None:
    """Rows that were left out make no entity, beside known ones and new ones."""
    named = entities(("p", "bad", "n1"), ("p", "a", "n1"))
    found, index = given(NONE_YET, rows((1, 1)), named)
    assert index["gpu_uuid"].to_list() == ["a"]
    found, index = given(index, rows((2, 1)), named)
    assert index["gpu_uuid"].to_list() == ["a"]
    assert ids_by_time(found) == {2: 0}
