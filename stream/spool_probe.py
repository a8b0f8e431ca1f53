"""Looks at the folder of a spool as a visitor would, for `idlewatt doctor`: leaves everything as it was."""

import fcntl
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from idlewatt.stream.spool import LOCK_NAME, SEGMENT_NAME, refused


@dataclass(frozen=True, slots=True)
class SpoolFolder:
    """What was seen."""

    waiting_bytes: int
    # what this user may still write to its disk
    free_bytes: int
    # a collector has it open
    is_in_use: bool


def probe_spool(path: str) -> SpoolFolder:
    """Raises ConfigError if a spool could not be kept there."""
    folder = Path(path).absolute()
    try:
        # a collector makes the folder itself, but not the one above
        home = folder if folder.exists() else folder.parent
        with tempfile.TemporaryFile(dir=home):
            pass
        disk = os.statvfs(home)
        segments = (
            [] if home is not folder else [f for f in folder.iterdir() if SEGMENT_NAME.fullmatch(f.name)]
        )
        waiting_bytes = sum(_size(segment) for segment in segments)
        return SpoolFolder(waiting_bytes, disk.f_bavail * disk.f_frsize, _is_locked(folder / LOCK_NAME))
    except OSError as error:
        raise refused(folder, error) from error


def _size(segment: Path) -> int:
    with suppress(FileNotFoundError):
        return segment.stat().st_size
    # sent while we looked
    return 0


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
