"""A frame written by polars is the message that its rows are."""

import dataclasses

import polars as pl
import pytest
from pyarrow import ipc

from idlewatt.stream import records
from idlewatt.stream.decoding import decode, decode_all
from idlewatt.stream.frame_encoding import conforming, encode_frame, encode_runs
from idlewatt.stream.frames import frame_schema

ROWS = [
    records.MoneyRow(
        site="hall",
        pool=f"p{number}",
        window_start_ms=number,
        window_ms=10_000,
        model_name="" if number % 2 else "模型",
        state="idle_loaded",
        part="draw",
        demand="none",
        kind="lost_revenue",
        amount_micro=-number,
        currency="USD",
        tier=None if number % 3 else "premium",
        origin=None,
    )
    for number in range(1000)
]
FRAME = pl.DataFrame(
    [dataclasses.astuple(row) for row in ROWS], schema=frame_schema(records.MONEY), orient="row"
)


@pytest.mark.parametrize(("first", "rows"), [(0, 1000), (1, 1), (7, 300), (999, 1), (0, 0)])
def test_any_part_of_a_frame_is_the_message_of_its_rows(first: int, rows: int) -> None:
    """For our own reader, and for any Arrow reader: one batch, with the schema's name and version."""
    message = encode_frame(records.MONEY, conforming(records.MONEY, FRAME).slice(first, rows))
    assert decode(message)[1].equals(FRAME.slice(first, rows))
    table = ipc.open_stream(message).read_all()
    table.validate(full=True)
    assert table.schema.equals(records.MONEY.arrow, check_metadata=True)
    assert table.to_pylist() == [dataclasses.asdict(row) for row in ROWS[first : first + rows]]


def test_frames_of_several_pieces_are_one_batch() -> None:
    message = encode_frame(records.MONEY, pl.concat([FRAME.head(3), FRAME.tail(4)]))
    assert [batch.num_rows for batch in ipc.open_stream(message)] == [7]


def test_columns_are_put_in_order_and_type() -> None:
    """Others are left out."""
    odd = FRAME.select(pl.lit(1).alias("src"), pl.all().reverse()).cast({"amount_micro": pl.Int32})
    assert conforming(records.MONEY, odd.select(reversed(odd.columns))).schema == frame_schema(records.MONEY)


def test_a_required_value_that_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"money has rows without site, amount_micro"):
        conforming(records.MONEY, FRAME.with_columns(site=None, amount_micro=None))


@pytest.mark.parametrize(
    "counts", [[1000], [1, 2, 997], [7] * 142 + [6], [250] * 4, [1, 1, 500, 1, 1, 1, 1, 494], [100] * 10]
)
def test_runs_of_a_frame_are_the_messages_of_their_rows(counts: list[int]) -> None:
    """One by one, all together by our own reader, and by any Arrow reader; no message has bytes of other rows."""
    pieces = pl.concat([FRAME.head(3), FRAME.slice(3, 600), FRAME.tail(397)], rechunk=False)
    messages = encode_runs(records.MONEY, conforming(records.MONEY, pieces), counts)
    begin = 0
    for rows, message in zip(counts, messages, strict=True):
        part = FRAME.slice(begin, rows)
        assert decode(message)[1].equals(part)
        table = ipc.open_stream(message).read_all()
        table.validate(full=True)
        assert table.schema.equals(records.MONEY.arrow, check_metadata=True)
        for name in ("pool", "model_name", "tier"):
            for chunk in table.column(name).chunks:
                texts = chunk.buffers()[2]
                assert (texts.size if texts else 0) == part[name].str.len_bytes().sum()
        begin += rows
    decoded, faults = decode_all(messages)
    assert not faults
    assert decoded[records.MONEY].frame.equals(FRAME)


def test_runs_of_no_rows_are_no_messages() -> None:
    assert encode_runs(records.MONEY, FRAME.clear(), []) == []
