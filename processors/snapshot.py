"""A stage's state as bytes: a header line and Arrow frames, readable only by the same layout version.

Integers of a long frame are written as what they are above the column's least one, in as few bytes as that takes:
readings are of the same minute and ids are dense, and to compress eight bytes of each is most of the work.
"""

import io
import json
import weakref
from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from idlewatt.stream.errors import IdlewattError

_MAGIC: Final = b"IDLEWATT-SNAPSHOT/2\n"
_NARROWER: Final = ((1 << 8, pl.UInt8), (1 << 16, pl.UInt16), (1 << 32, pl.UInt32))
# below it, to look for the least and the greatest costs more than it saves
_LONG_ROWS: Final = 4_000

# Arrow bytes, and the least value of each column that was narrowed
_Body = tuple[bytes, dict[str, int]]
# by id of the frame, for as long as it lives
_written: Final[dict[int, _Body]] = {}


class SnapshotError(IdlewattError):
    """A snapshot cannot be read."""


def write_snapshot(layout: str, scalars: Mapping[str, Any], frames: Mapping[str, pl.DataFrame]) -> bytes:
    """`layout` names the stage and the version of its state, such as "meter/1"."""
    bodies = {name: _body(frame) for name, frame in frames.items()}
    header = {
        "layout": layout,
        "scalars": dict(scalars),
        "frames": {name: len(body) for name, (body, _) in bodies.items()},
        "least": {name: least for name, (_, least) in bodies.items() if least},
    }
    return b"".join([_MAGIC, json.dumps(header).encode(), b"\n", *(body for body, _ in bodies.values())])


def read_snapshot(layout: str, snapshot: bytes) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """The scalars and frames of a snapshot. Raises SnapshotError where the layout is another one."""
    if not snapshot.startswith(_MAGIC):
        raise SnapshotError(
            "a snapshot in idlewatt.state is not one of ours: was the topic written to by something else?"
        )
    begin = len(_MAGIC)
    end = snapshot.index(b"\n", begin)
    header = json.loads(snapshot[begin:end])
    if header["layout"] != layout:
        raise SnapshotError(
            f"the state in the log was written as {header['layout']}, this Idlewatt reads {layout}: "
            "run the version that wrote it (docs/architecture.md, State)"
        )
    frames, at = {}, end + 1
    for name, length in header["frames"].items():
        frame = pl.read_ipc_stream(snapshot[at : at + length])
        for column, low in header["least"].get(name, {}).items():
            frame = frame.with_columns(pl.col(column).cast(pl.Int64) + low)
        frames[name] = frame
        at += length
    return header["scalars"], frames


def _body(frame: pl.DataFrame) -> _Body:
    # No state is changed in place: the same frame has the same bytes. Half the work is names that never change.
    body = _written.get(id(frame))
    if body is None:
        stream = io.BytesIO()
        narrow, least = _narrow(frame)
        narrow.write_ipc_stream(stream, compression="zstd")
        body = _written[id(frame)] = stream.getvalue(), least
        weakref.finalize(frame, _written.pop, id(frame)).atexit = False
    return body


def _narrow(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    if frame.height < _LONG_ROWS:
        return frame, {}
    columns, least = [], {}
    for column in frame.iter_columns():
        if column.dtype == pl.Int64:
            low, high = column.min(), column.max()
            if isinstance(low, int) and isinstance(high, int):
                for values, dtype in _NARROWER:
                    if high - low < values:
                        column = (column - low).cast(dtype)
                        least[column.name] = low
                        break
        columns.append(column)
    return pl.DataFrame(columns), least
