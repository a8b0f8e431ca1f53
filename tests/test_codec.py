"""Messages: what goes in comes out, and every way a peer can get it wrong has a name."""

import contextlib
import dataclasses
import random
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from crc32c import crc32c
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from polars.exceptions import PanicException
from pyarrow import ipc

from idlewatt.stream import decoding, foreign_messages, records, rosters
from idlewatt.stream.decoding import decode, decode_all
from idlewatt.stream.encoding import END_OF_STREAM, SEAL, SEAL_BYTES, encode_rows, encode_table, sealed
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.layouts import Layouts
from idlewatt.stream.rosters import Rosters

_INT = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
GPU_ROWS = st.lists(
    st.builds(
        records.GpuRow,
        ts_ms=_INT,
        site=_TEXT,
        pool=_TEXT,
        node=_TEXT,
        gpu_uuid=_TEXT,
        product=_TEXT,
        energy_mj=st.none() | _INT,
        power_mw=st.none() | _INT,
        sm_activity=st.none() | st.floats(allow_nan=False),
        has_process=st.none() | st.booleans(),
    ),
    max_size=18,
)
ENGINE_ROWS = st.lists(
    st.builds(
        records.EngineRow,
        ts_ms=_INT,
        site=_TEXT,
        pool=_TEXT,
        node=_TEXT,
        engine=_TEXT,
        server=_TEXT,
        model_name=_TEXT,
        output_tokens=_INT,
        advance=_TEXT,
        requests_running=st.none() | _INT,
        gpus=st.none() | st.lists(_TEXT, max_size=3),
    ),
    max_size=18,
)
ROW = records.EngineRow(
    ts_ms=1_790_000_000_000,
    site="hall-1",
    pool="chat",
    node="node-1",
    engine="node-1:8000",
    server="vllm",
    model_name="model",
    output_tokens=7,
    advance="step",
    gpus=["GPU-a", "GPU-b"],
)


def reason_of(message: bytes) -> str:
    with pytest.raises(UnreadableMessageError) as caught:
        decode(message)
    assert str(caught.value)
    return caught.value.reason


def foreign(columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None, **options: Any) -> bytes:
    """A message another Arrow writer made: no seal, its own types."""
    table = pa.table(columns).replace_schema_metadata(
        {records.NAME_KEY: b"engine", records.VERSION_KEY: b"1.0"} if metadata is None else metadata
    )
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def batch_at(message: bytes) -> int:
    """Where the seal says that the record batch begins."""
    return int.from_bytes(message[-SEAL_BYTES : 4 - SEAL_BYTES], "little")


def columns_of(row: records.EngineRow) -> dict[str, Any]:
    return {name: [value] for name, value in dataclasses.asdict(row).items() if value is not None}


@examples(40)
@given(GPU_ROWS)
def test_rows_come_back_as_they_went(rows: list[records.GpuRow]) -> None:
    """Encoding and decoding keep every value, nulls included."""
    schema, frame = decode(encode_rows(records.GPU, rows))
    assert schema is records.GPU
    assert frame.schema == frame_schema(records.GPU)
    assert frame.rows(named=True) == [dataclasses.asdict(row) for row in rows]


def test_lists_come_back_as_they_went() -> None:
    """The GPUs of an engine travel as a list."""
    _, frame = decode(encode_rows(records.ENGINE, [ROW, dataclasses.replace(ROW, gpus=None)]))
    assert frame.get_column("gpus").to_list() == [["GPU-a", "GPU-b"], None]


def test_any_arrow_reader_opens_a_message() -> None:
    """A message is one Arrow IPC stream with its schema's name and version; the seal after it disturbs nobody."""
    with ipc.open_stream(encode_rows(records.ENGINE, [ROW])) as reader:
        table = reader.read_all()
    assert table.schema.metadata == {records.NAME_KEY: b"engine", records.VERSION_KEY: b"1.0"}
    assert table.column("model_name").to_pylist() == ["model"]


@pytest.mark.parametrize("schema", records.SCHEMAS.values(), ids=records.SCHEMAS)
def test_every_schema_travels(schema: records.Schema) -> None:
    """Each kind of row can be written and read, also empty."""
    decoded, frame = decode(encode_rows(schema, []))
    assert decoded is schema
    assert frame.is_empty()


def test_another_writers_message_is_read() -> None:
    """Plain strings, narrower integers, an unknown column and missing optional ones are no fault."""
    columns = columns_of(ROW) | {"colour": ["blue"], "output_tokens": pa.array([7], pa.int32())}
    _, frame = decode(foreign(columns, {records.NAME_KEY: b"engine", records.VERSION_KEY: b"1.7"}))
    assert frame.schema == frame_schema(records.ENGINE)
    assert frame.row(0, named=True) == dataclasses.asdict(ROW)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "not_arrow"),
        (b"garbage", "not_arrow"),
        (b"<html>502 Bad Gateway</html>", "not_arrow"),
        (b"\xff\xff\xff\xff" + b"\x00" * 100, "not_arrow"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", "not_arrow"),
        (foreign(columns_of(ROW), {}), "unknown_schema"),
        (foreign(columns_of(ROW), {records.NAME_KEY: b"weather", records.VERSION_KEY: b"1.0"}), "unknown_schema"),
        (foreign(columns_of(ROW), {records.NAME_KEY: b"engine", records.VERSION_KEY: b"2.0"}), "schema_version"),
        (foreign(columns_of(ROW), {records.NAME_KEY: b"engine"}), "schema_version"),
        (foreign({k: v for k, v in columns_of(ROW).items() if k != "model_name"}), "missing_column"),
        (foreign(columns_of(ROW) | {"output_tokens": ["many"]}), "column_type"),
        (foreign(columns_of(ROW) | {"output_tokens": pa.array([2**63], pa.uint64())}), "column_type"),
        (foreign(columns_of(ROW) | {"gpus": pa.array([["a"]], pa.list_view(pa.string()))}), "column_type"),
        (foreign(columns_of(ROW) | {"gpus": pa.array([["a"]], pa.large_list_view(pa.string()))}), "column_type"),
        (foreign(columns_of(ROW) | {"node": pa.nulls(1, pa.string())}), "null_value"),
    ],
)  # fmt: skip
def test_what_is_no_message_has_a_reason(message: bytes, reason: str) -> None:
    """Each fault of a peer is told by its own reason."""
    assert reason_of(message) == reason


def test_a_flipped_bit_is_noticed() -> None:
    """Arrow alone would read some damaged bodies as other values."""
    message = encode_rows(records.ENGINE, [ROW])
    for position in range(0, len(message) - SEAL_BYTES, 7):
        damaged = bytearray(message)
        damaged[position] ^= 1
        with pytest.raises(UnreadableMessageError):
            decode(bytes(damaged))


def test_no_bytes_end_the_process() -> None:
    """Damaged messages with and without a seal raise UnreadableMessageError, or are read; nothing worse."""
    rng = random.Random(4)
    message = encode_rows(records.ENGINE, [ROW] * 3)
    stream, at = message[:-SEAL_BYTES], batch_at(message)
    for _ in range(3000):
        damaged = bytearray(stream)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        del damaged[len(damaged) - rng.choice([0, 0, 1, 40]) :]
        for sent in (bytes(damaged), sealed(bytes(damaged), at)):
            with contextlib.suppress(UnreadableMessageError):
                decode(sent)


def test_the_seal_is_a_checksum_of_the_stream() -> None:
    """After the stream stand where its record batch begins, IWC3, and the CRC-32C of all before."""
    message = encode_rows(records.ENGINE, [ROW] * 3)
    stream = pa.py_buffer(message[:-SEAL_BYTES])
    assert ipc.read_message(stream.slice(batch_at(message))).type == "record batch"
    assert message[-8:-4] == SEAL == b"IWC3"
    assert message[-4:] == crc32c(message[:-4]).to_bytes(4, "little")
    assert reason_of(message[:-1] + bytes([message[-1] ^ 1])) == "checksum"


def test_many_messages_are_read_as_each_alone() -> None:
    """Rows keep their order and their message, whoever wrote it; what cannot be read costs its neighbours nothing."""
    other = foreign(columns_of(dataclasses.replace(ROW, output_tokens=5)))
    gpu = records.GpuRow(ts_ms=1, site="hall-1", pool="chat", node="n", gpu_uuid="GPU-a", product="H100")
    messages = [
        encode_rows(records.ENGINE, [dataclasses.replace(ROW, output_tokens=n) for n in (1, 2)]),
        encode_rows(records.GPU, [gpu]),
        b"garbage",
        encode_rows(records.ENGINE, []),
        encode_rows(records.ENGINE, [dataclasses.replace(ROW, output_tokens=n) for n in (3, 4)]),
        other,
        foreign(columns_of(ROW) | {"node": pa.nulls(1, pa.string())}),
        encode_rows(records.ENGINE, [dataclasses.replace(ROW, output_tokens=6)])[:-1] + b"?",
        encode_rows(records.ENGINE, [dataclasses.replace(ROW, output_tokens=7)]),
    ]
    found, faults = decode_all(messages)
    engines = found[records.ENGINE]
    assert engines.frame.get_column("output_tokens").to_list() == [1, 2, 3, 4, 5, 7]
    assert engines.of_message(range(9)).to_list() == [0, 0, 4, 4, 5, 8]
    assert list(found[records.GPU].messages) == [1]
    assert {place: fault.reason for place, fault in faults.items()} == {
        2: "not_arrow",
        6: "null_value",
        7: "checksum",
    }


@examples(40)
@given(st.lists(ENGINE_ROWS, max_size=6), st.lists(GPU_ROWS, max_size=6))
def test_messages_of_any_shape_are_joined(
    engines: list[list[records.EngineRow]], gpus: list[list[records.GpuRow]]
) -> None:
    """However many rows, nulls, texts and lists each message has, all of them are there, in order, and the wanted columns."""
    messages = [encode_rows(records.ENGINE, rows) for rows in engines]
    messages += [encode_rows(records.GPU, rows) for rows in gpus]
    wanted = {records.GPU: ("has_process", "gpu_uuid", "energy_mj")}
    found, faults = decode_all(messages, wanted)
    assert not faults
    if engines:
        rows = found[records.ENGINE]
        assert rows.frame.rows(named=True) == [dataclasses.asdict(row) for rows in engines for row in rows]
        assert rows.of_message(range(len(messages))).to_list() == [
            n for n, rows in enumerate(engines) for _ in rows
        ]
    if gpus:
        assert found[records.GPU].frame.rows() == [
            (row.has_process, row.gpu_uuid, row.energy_mj) for rows in gpus for row in rows
        ]


@examples(40)
@given(st.lists(ENGINE_ROWS, max_size=6))
def test_names_apart_are_those_of_the_rows(messages: list[list[records.EngineRow]]) -> None:
    """Wherever a row points, its names stand; messages that name the same in the same order bring them once."""
    sent = [encode_rows(records.ENGINE, rows) for rows in messages]
    plain = [encode_table(records.ENGINE, decode(message)[1].to_arrow()) for message in sent[:2]]
    kept = Rosters(records.ENGINE, records.ENGINE.arrow.names)
    expected = [dataclasses.asdict(row) for rows in [*messages, *messages[:2]] for row in rows]
    known = 0
    for again in (False, True):
        found, faults = decode_all([*sent, *plain], rosters={records.ENGINE: kept})
        assert not faults
        if not messages:
            return
        rows = found[records.ENGINE].frame
        whole = rows.hstack(kept.names[rows["entity"]]).select(frame_schema(records.ENGINE).names())
        assert whole.rows(named=True) == expected
        assert not again or kept.names.height == known
        known = kept.names.height
    alone = Rosters(records.ENGINE, records.ENGINE.arrow.names)
    decode_all(sent, rosters={records.ENGINE: alone})
    names = {tuple(dict.fromkeys(_names(row) for row in rows)) for rows in messages}
    assert alone.names.height == sum(len(some) for some in names)


def _names(row: records.EngineRow) -> tuple[str, ...]:
    return tuple(repr(getattr(row, name)) for name in records.ENGINE.names)


def test_a_required_name_is_looked_for_although_nobody_wants_it() -> None:
    """What lacks one is set aside by whoever reads it, whichever columns that is for."""
    lacking = encode_rows(records.ENGINE, [dataclasses.replace(ROW, server=None)])  # type: ignore[arg-type]
    _, faults = decode_all([lacking], {records.ENGINE: ("ts_ms", "engine")})
    assert [fault.reason for fault in faults.values()] == ["null_value"]


def test_indices_that_point_nowhere_are_refused() -> None:
    """A message of ours, whole and sealed, in which a row's name is in no dictionary, is set aside; the others are read."""
    honest = encode_rows(records.ENGINE, [ROW] * 2)
    lying = [
        honest[: at + 4] + place.to_bytes(4, "little", signed=True) + honest[at + 8 : -SEAL_BYTES]
        for at in _places_of_indices(honest)
        for place in (1, -1, 1 << 30)
    ]
    found, faults = decode_all([honest, *(sealed(stream, batch_at(honest)) for stream in lying), honest])
    assert list(found[records.ENGINE].messages) == [0, 1 + len(lying)]
    assert {fault.reason for fault in faults.values()} == {"not_arrow"}


def _places_of_indices(message: bytes) -> list[int]:
    """Where the indices of each name begin in the message."""
    stream = pa.py_buffer(message)
    batch = ipc.open_stream(stream).read_next_batch()
    return [batch.column(name).indices.buffers()[1].address - stream.address for name in records.ENGINE.names]


def test_a_part_of_a_table_is_read_as_it_is() -> None:
    """pyarrow writes a part of a column of lists or texts with offsets that do not begin at 0, and its neighbours' values."""
    rows = [dataclasses.replace(ROW, output_tokens=n, gpus=[f"GPU-{n}", f"GPU-{n}-b"]) for n in range(20)]
    frame = decode(encode_rows(records.ENGINE, rows))[1]
    parts = [encode_table(records.ENGINE, frame.slice(first, 7).to_arrow()) for first in (0, 7, 14)]
    found, faults = decode_all(parts)
    assert not faults
    assert found[records.ENGINE].frame.equals(frame)
    for part, first in zip(parts, (0, 7, 14), strict=True):
        assert decode(part)[1].equals(frame.slice(first, 7))


def test_a_seal_that_lies_is_not_believed() -> None:
    """A sealed message whose record batch stands elsewhere, or that ends early, is read by itself, the rest as well."""
    honest = encode_rows(records.ENGINE, [ROW])
    stream, at = honest[:-SEAL_BYTES], batch_at(honest)
    lying = [sealed(stream, wrong) for wrong in (0, 1, at - 8, at + 8, len(stream), 2**32 - 1)]
    lying += [sealed(stream[:-8] + stream, at), sealed(stream[:at] + bytes(8) + stream[at:], at + 8)]
    for messages in ([honest, *lying, honest], [*lying, honest, honest]):
        found, faults = decode_all(messages)
        rows = found[records.ENGINE]
        assert rows.frame.rows(named=True) == [dataclasses.asdict(ROW)] * rows.frame.height
        assert list(rows.messages) == [place for place in range(len(messages)) if place not in faults]
        assert {place for place, message in enumerate(messages) if message == honest} <= set(rows.messages)


PLAIN_ROWS = st.integers(1, 3).flatmap(
    lambda eighths: st.lists(
        st.builds(
            lambda name, value, share, holds: records.GpuRow(
                ts_ms=value,
                site=name,
                pool=name,
                node="n",
                gpu_uuid=name[::-1],
                product="H100",
                energy_mj=value,
                power_mw=value ^ 1,
                power_limit_mw=700_000,
                epoch_ms=0,
                sm_activity=share,
                memory_used_bytes=0,
                clocks_event_reasons=0,
                has_process=holds,
            ),
            _TEXT,
            _INT,
            st.floats(0, 1),
            st.booleans(),
        ),
        min_size=8 * eighths,
        max_size=8 * eighths,
    )
)


@examples(40)
@given(st.lists(PLAIN_ROWS | GPU_ROWS, max_size=8))
def test_bodies_of_one_layout_are_joined(sent: list[list[records.GpuRow]]) -> None:
    """Messages without nulls and as many rows are cut all at once; between others they keep their rows and places."""
    found, faults = decode_all([encode_rows(records.GPU, rows) for rows in sent])
    assert not faults
    if sent:
        rows = found[records.GPU]
        assert rows.frame.rows(named=True) == [dataclasses.asdict(row) for some in sent for row in some]
        assert rows.of_message(range(len(sent))).to_list() == [n for n, some in enumerate(sent) for _ in some]


def test_nothing_but_nulls_takes_no_memory() -> None:
    """A message of a kilobyte may have any number of rows where no column has a value."""
    names = records.GPU.arrow.names
    table = pa.table([pa.nulls(3_000_000)] * len(names), names=names)
    table = table.replace_schema_metadata(records.GPU.arrow.metadata)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    message = sink.getvalue().to_pybytes()
    assert len(message) < 10_000
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(UnreadableMessageError, match="3000000 rows"):
        decode(message)
    assert pa.default_memory_pool().max_memory() - before < 10_000_000


def test_what_a_cast_makes_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a list_view, whose cast may end the last list before all others: polars would panic over it."""
    offsets = pa.array([0, 1, 2, 0]).buffers()[1]
    texts = pa.array(["a", "b", "c"], pa.large_string())
    lists = pa.Array.from_buffers(pa.large_list(texts.type), 3, [None, offsets], children=[texts])

    def badly(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pa.chunked_array([lists]) if pa.types.is_list(column.type) else column

    monkeypatch.setattr(foreign_messages, "_plain", badly)
    assert reason_of(foreign({name: value * 3 for name, value in columns_of(ROW).items()})) == "column_type"


@pytest.mark.parametrize("step", ["read_foreign", "_as_wanted"])
def test_what_a_library_fails_over_is_set_aside(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Also a panic, which is no Exception; the messages beside it are read."""

    done = getattr(decoding, step)

    def panicking(*given: Any) -> Any:
        if any(value is records.ENGINE for value in given):
            raise PanicException("polars' maximum length reached")
        return done(*given)

    gpu = records.GpuRow(ts_ms=1, site="hall-1", pool="chat", node="n", gpu_uuid="GPU-a", product="H100")
    honest, other = encode_rows(records.GPU, [gpu]), foreign(columns_of(ROW))
    monkeypatch.setattr(decoding, step, panicking)
    found, faults = decode_all([honest, other, honest])
    assert list(found[records.GPU].messages) == [0, 2]
    assert [(place, fault.reason) for place, fault in faults.items()] == [(1, "not_arrow")]


def many(rows: int, **changed: Any) -> dict[str, Any]:
    """Columns of so many rows, of which the names take a byte each; those in `changed` may take more."""
    return {
        name: pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), rows), pa.array(value))
        if isinstance(value[0], str)
        else pa.repeat(pa.scalar(value[0]), rows)
        for name, value in (columns_of(ROW) | changed).items()
        if name != "gpus"
    }


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_what_a_small_message_opens_to_is_bounded(codec: str | None) -> None:
    """Another writer may compress, and a name stands for any number of rows; it is refused before it is opened."""
    for columns, told in (
        (many(200_000), "2000.. rows"),
        (many(5000, model_name=["x" * 20_000]), "bytes"),
        # a column that nobody knows is opened as well
        (many(1) | {"colour": ["x" * (65 << 20)]}, "bytes"),
        (
            {name: pa.chunked_array([[value[0]]] * 3) for name, value in many(1).items()}
            | {"gpus": pa.chunked_array([pa.array([["x"] * 50_000])] * 3)},
            "rows",
        ),
    ):
        message = foreign(columns, compression=codec)
        before = pa.default_memory_pool().max_memory()
        with pytest.raises(
            UnreadableMessageError, match=f"opens to .*{told}.*, more than any message of ours"
        ):
            decode(message)
        assert pa.default_memory_pool().max_memory() - before < 10_000_000
        if codec:
            assert len(message) < 1_000_000


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_an_honest_message_may_be_compressed(codec: str | None) -> None:
    """Many rows, names in dictionaries or in views of text: what other writers make of the same rows."""
    rows = [
        dataclasses.replace(ROW, engine=f"node-1:{n}", output_tokens=n, gpus=[f"GPU-{n}"] * 8)
        for n in range(3000)
    ]
    table = decode(encode_rows(records.ENGINE, rows))[1].to_arrow()
    views = table.set_column(
        table.column_names.index("gpus"), "gpus", table.column("gpus").cast(pa.list_(pa.string_view()))
    )
    dictionaries = table
    for number, name in enumerate(table.column_names):
        if table.schema.field(name).type == pa.large_string():
            views = views.set_column(number, name, table.column(name).cast(pa.string_view()))
            dictionaries = dictionaries.set_column(number, name, table.column(name).dictionary_encode())
    for made in (table, views, dictionaries):
        message = foreign(dict(zip(made.column_names, made.columns, strict=True)), compression=codec)
        assert decode(message)[1].rows(named=True) == [dataclasses.asdict(row) for row in rows]


def test_what_an_old_writer_has_compressed_is_bounded() -> None:
    """Arrow 0.17 said so elsewhere, and pyarrow reads that still."""
    for rows, fits in ((1000, True), (100_000, False)):
        columns = many(rows) | {"node": ["x" * 1000] * rows}
        batch = pa.record_batch(columns).replace_schema_metadata(records.ENGINE.arrow.metadata)
        sink = pa.BufferOutputStream()
        options = ipc.IpcWriteOptions(compression="zstd", metadata_version=ipc.MetadataVersion.V4)
        with ipc.new_stream(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
        message = sink.getvalue().to_pybytes()
        assert len(message) < 500_000
        if fits:
            assert decode(message)[1].height == rows
        else:
            assert reason_of(message) == "not_arrow"


def test_many_rows_may_not_show_the_same_long_text() -> None:
    """Views of text lie upon each other, in a column and in a list."""
    text = pa.py_buffer(b"x" * 20_000)
    view = (20_000).to_bytes(4, "little") + b"xxxx" + bytes(8)
    views = pa.Array.from_buffers(pa.string_view(), 5000, [None, pa.py_buffer(view * 5000), text])
    lists = pa.ListArray.from_arrays(pa.array(range(5001), pa.int32()), views)
    for changed in ({"node": views}, {"gpus": lists}):
        message = foreign(many(5000) | changed)
        assert len(message) < 300_000
        with pytest.raises(
            UnreadableMessageError, match=r"opens to 100.* bytes, more than any message of ours"
        ):
            decode(message)


def test_what_is_too_long_is_refused_before_it_is_looked_at() -> None:
    """What views of the same text show would hold up its partition for minutes, were it read through, as here the bytes
    that are no text would show."""
    text = pa.py_buffer(b"\xff" * 3_000_000)
    view = (3_000_000).to_bytes(4, "little") + b"xxxx" + bytes(8)
    views = pa.Array.from_buffers(pa.string_view(), 20_000, [None, pa.py_buffer(view * 20_000), text])
    with pytest.raises(UnreadableMessageError, match="opens to 60000000000 bytes"):
        decode(foreign(many(20_000) | {"node": views}))


def test_many_batches_of_one_row_are_not_read_to_their_end() -> None:
    """Each takes memory and time, however little is in it."""
    batch = pa.record_batch(many(1)).replace_schema_metadata(records.ENGINE.arrow.metadata)
    for count, fits in ((100, True), (20_000, False)):
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, batch.schema) as writer:
            for _ in range(count):
                writer.write_batch(batch)
        message = sink.getvalue().to_pybytes()
        if fits:
            assert decode(message)[1].height == count
        else:
            with pytest.raises(UnreadableMessageError, match=r"opens to 1\d\d\d rows"):
                decode(message)


def test_additions_to_a_dictionary_are_copies_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch may add a value, and keeps the dictionary that it was written with."""
    monkeypatch.setattr(foreign_messages, "_MOST_BYTES", 1_000_000)
    columns = many(1)
    names = ["x" * 1000 * n for n in range(1, 5)]
    for some, fits in ((names[:2], True), (names * 4, False)):
        kinds = [pa.array(some[: n + 1]) for n in range(len(some))]
        batches = [
            pa.record_batch(
                columns | {"node": pa.DictionaryArray.from_arrays(pa.array([n], pa.int8()), kind)}
            )
            for n, kind in enumerate(kinds)
        ]
        schema = batches[0].schema.with_metadata(records.ENGINE.arrow.metadata)
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, schema, options=ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as writer:
            for made in batches:
                writer.write_batch(made.replace_schema_metadata(schema.metadata))
        message = sink.getvalue().to_pybytes()
        assert len(message) < 100_000
        if fits:
            assert decode(message)[1].get_column("node").to_list() == some
        else:
            assert reason_of(message) == "not_arrow"


def test_a_padded_header_is_read_and_not_remembered() -> None:
    """Layouts are told apart by their headers: those of any length would stay in memory."""
    message = encode_rows(records.REJECTED, [])
    at = int.from_bytes(message[-SEAL_BYTES:][:4], "little")
    size = int.from_bytes(message[at + 4 : at + 8], "little")
    padding = bytes(1 << 17)
    stream = (
        message[: at + 4]
        + (size + len(padding)).to_bytes(4, "little")
        + message[at + 8 : at + 8 + size]
        + padding
        + message[at + 8 + size : -SEAL_BYTES]
    )
    schema, rows = decode(sealed(stream, at))
    assert (schema, rows.height) == (records.REJECTED, 0)
    layouts = Layouts(records.REJECTED, tuple(records.REJECTED.arrow.names), message[:at], apart=False)
    padded = sealed(stream, at)
    assert layouts.of(padded, at, len(padded) - SEAL_BYTES - len(END_OF_STREAM)) is None
    assert layouts.of(message, at, len(message) - SEAL_BYTES - len(END_OF_STREAM)) is not None


def test_rosters_are_full_of_long_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gathers them begins anew then, before they take all memory."""
    monkeypatch.setattr(rosters, "_MOST_BYTES", 1000)
    found = Rosters(records.GPU, ("pool",))
    found.learn([(b"1", 1)], pl.DataFrame({"pool": ["x" * 500]}))
    assert not found.full
    found.learn([(b"2", 1)], pl.DataFrame({"pool": ["y" * 600]}))
    assert found.full
