"""A stage's state as bytes: a header line and Arrow frames, readable only by the same layout version."""

import io
import json
import weakref
from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from idlewatt.stream.errors import IdlewattError

_MAGIC: Final = b"IDLEWATT-SNAPSHOT\n"


# by id of the frame, for as long as it lives
_written: Final[dict[int, bytes]] = {}


class SnapshotError(IdlewattError):
    """A snapshot cannot be read."""


def write_snapshot(layout: str, scalars: Mapping[str, Any], frames: Mapping[str, pl.DataFrame]) -> bytes:
    """`layout` names the stage and the version of its state, such as "meter/1"."""
    bodies = {name: _ipc(frame) for name, frame in frames.items()}
    header = {
        "layout": layout,
        "scalars": dict(scalars),
        "frames": {name: len(body) for name, body in bodies.items()},
    }
    return b"".join([_MAGIC, json.dumps(header).encode(), b"\n", *bodies.values()])


def read_snapshot(layout: str, snapshot: bytes) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """The scalars and frames of a snapshot. Raises SnapshotError where the layout is another one."""
    if not snapshot.startswith(_MAGIC):
        raise SnapshotError(
            "a snapshot in idlewatt.state is not one of ours: was the topic written to by something else?"
        )
    end = snapshot.index(b"\n", len(_MAGIC))
    header = json.loads(snapshot[len(_MAGIC) : end])
    if header["layout"] != layout:
        raise SnapshotError(
            f"the state in the log was written as {header['layout']}, this Idlewatt reads {layout}: "
            "run the version that wrote it, or give process.group a new name to start afresh"
        )
    frames, at = {}, end + 1
    for name, length in header["frames"].items():
        frames[name] = pl.read_ipc_stream(snapshot[at : at + length])
        at += length
    return header["scalars"], frames


def _ipc(frame: pl.DataFrame) -> bytes:
    # No state is changed in place: the same frame has the same bytes. Half the work is names that never change.
    body = _written.get(id(frame))
    if body is None:
        stream = io.BytesIO()
        frame.write_ipc_stream(stream, compression="zstd")
        body = _written[id(frame)] = stream.getvalue()
        weakref.finalize(frame, _written.pop, id(frame)).atexit = False
    return body
