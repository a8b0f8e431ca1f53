"""Bodies of many record batches as one frame, without setting up a frame for each. See layouts.py."""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from idlewatt.stream.layouts import TEXT, Column, Layout, Layouts, RosterLayout
from idlewatt.stream.rosters import Rosters


def join(
    layouts: Layouts,
    of_each: Sequence[Layout],
    taken: Sequence[Sequence[bytes]],
    digests: Sequence[bytes],
    rosters: Rosters,
) -> pl.DataFrame:
    """The wanted columns of all record batches, in their order; instead of names that stand once per entity, the `entity`.

    `of_each`: the layout of each batch, the same of all if it is plain; `taken`: what its take() gave of the message;
    `digests`: of their rosters, see Layouts.seed. Raises pa.ArrowException if the values make no sense, KeyError if a
    roster was not learned.
    """
    counts = [layout.rows for layout in of_each]
    if of_each[0].is_plain:
        frame, indices = _one_below_the_other(layouts, of_each[0], taken)
    else:
        bodies = [body for body, *_ in taken]
        parts = iter(
            zip(*(layout.cut(body) for layout, body in zip(of_each, bodies, strict=True)), strict=True)
        )
        frame = _frame(layouts, layouts.columns, bodies, [layout.columns for layout in of_each], parts)
        indices = [pa.py_buffer(b"".join(next(parts))) for _ in layouts.names]
    if not layouts.apart:
        return frame
    firsts, heights = rosters.found(digests)
    if not layouts.names:
        return frame
    if not all(other.equals(indices[0]) for other in indices):
        raise pa.ArrowInvalid("names that do not share their indices")
    place = pl.Series(_numbers(pa.int32(), sum(counts), indices[0]))
    in_all = (place >= 0).all() and (place < min(heights)).all()
    if not in_all and not ((place >= 0) & (place < repeated(heights, counts))).all():
        raise pa.ArrowInvalid("a name that is in no dictionary")
    return frame.hstack([(repeated(firsts, counts) + place).alias("entity")])


def learn(layouts: Layouts, new: Mapping[bytes, tuple[RosterLayout, bytes]], rosters: Rosters) -> None:
    """Read the names of rosters. `new`: digest -> what Layouts.roster() gave. Raises pa.ArrowException."""
    if not new:
        return
    of_each, bodies = zip(*new.values(), strict=True)
    parts = zip(*(layout.cut(body) for layout, body in zip(of_each, bodies, strict=True)), strict=True)
    columns = [layout.values for layout in of_each]
    names = _frame(layouts, layouts.names, bodies, columns, iter(parts))
    rosters.learn(zip(new, (layout.entities for layout in of_each), strict=True), names)


def _one_below_the_other(
    layouts: Layouts, layout: Layout, taken: Sequence[Sequence[bytes]]
) -> tuple[pl.DataFrame, list[pa.Buffer]]:
    """The columns of batches with the same plain layout, and the indices of each name."""
    spans = [
        pa.Array.from_buffers(
            pa.binary(span.stop - span.start), len(taken), [None, pa.py_buffer(b"".join(parts))]
        )
        for span, parts in zip(layout.spans, zip(*taken, strict=True), strict=False)
    ]

    def cut(column: Column) -> pa.Buffer:
        number, where = layout.where(column)
        return pc.binary_slice(spans[number], where.start, where.stop).buffers()[1]

    rows = layout.rows * len(taken)
    arrays = [_numbers(column.type, rows, cut(column)) for column in layout.columns]
    return _as_frame(arrays, layouts.columns), [cut(column) for column in layout.places]


def _frame(
    layouts: Layouts,
    names: Sequence[str],
    bodies: Sequence[bytes],
    columns_of: Sequence[tuple[Column, ...]],
    parts: Iterator[Sequence[bytes]],
) -> pl.DataFrame:
    """Columns of all bodies. `columns_of`: of each body, where they lie; `parts`: their slices."""
    different = set(columns_of)
    arrays = []
    for place, name in enumerate(names):
        columns = [of[place] for of in columns_of]
        if all(of[place].joins for of in different):
            array = _joined(layouts.schema.arrow.field(name).type, columns, parts)
        else:
            for _ in columns[0].slices():
                next(parts)
            array = pa.concat_arrays(
                [column.array(pa.py_buffer(body)) for column, body in zip(columns, bodies, strict=True)]
            )
        # of the offsets only the places were seen until now
        array.validate(full=True)
        arrays.append(array)
    return _as_frame(arrays, names)


def _as_frame(arrays: Sequence[pa.Array], names: Sequence[str]) -> pl.DataFrame:
    frame = pl.from_arrow(pa.RecordBatch.from_arrays(list(arrays), names=list(names)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _joined(kind: pa.DataType, columns: Sequence[Column], parts: Iterator[Sequence[bytes]]) -> pa.Array:
    """One column of all bodies."""
    rows = [column.rows for column in columns]
    total = sum(rows)
    if kind != TEXT and not pa.types.is_large_list(kind):
        return _numbers(kind, total, pa.py_buffer(b"".join(next(parts))))
    firsts = b"".join(next(parts))
    within = _numbers(pa.int64(), total, pa.py_buffer(b"".join(next(parts))))
    before = [0, *itertools.accumulate(column.size for column in columns)]
    offsets = pa.concat_arrays([_own_numbers([0]), pc.add(within, _in_runs(before[:-1], rows))])
    # a writer may hand over a part of a column with the values of other rows before and after it
    last = offsets.take(_own_numbers(itertools.accumulate(rows)))
    if firsts.strip(b"\0") or not last.equals(_own_numbers(before[1:])):
        raise pa.ArrowInvalid("texts or lists with values of no row")
    ends = offsets.buffers()[1]
    if kind == TEXT:
        return pa.Array.from_buffers(kind, total, [None, ends, pa.py_buffer(b"".join(next(parts)))])
    inner = [column.values for column in columns if column.values is not None]
    return pa.Array.from_buffers(kind, total, [None, ends], children=[_joined(kind.value_type, inner, parts)])


def _numbers(kind: pa.DataType, rows: int, values: pa.Buffer) -> pa.Array:
    return pa.Array.from_buffers(kind, rows, [None, values])


_RUNS: Final = pa.run_end_encoded(pa.int64(), pa.int64())


def repeated(values: Sequence[int], counts: Sequence[int]) -> pl.Series:
    """Each value as often as its count says."""
    return pl.Series("value", _in_runs(values, counts))


def _in_runs(values: Sequence[int], counts: Sequence[int]) -> pa.Array:
    if 0 in counts:
        values, counts = [*itertools.compress(values, counts)], [count for count in counts if count]
    ends = _own_numbers(itertools.accumulate(counts))
    encoded = pa.Array.from_buffers(_RUNS, sum(counts), [None], children=[ends, _own_numbers(values)])
    return pc.run_end_decode(encoded)


def _own_numbers(values: Iterable[int]) -> pa.Array:
    # pyarrow would look for pandas and dateutil in all folders if it made arrays itself
    found = array("q", values)
    return _numbers(pa.int64(), len(found), pa.py_buffer(found))
