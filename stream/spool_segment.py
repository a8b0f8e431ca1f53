"""One file of the spool: frames, one behind the other."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from idlewatt.stream.spool_frames import WaitingMessage, read_frames, rows_in


class Segment:
    """`bytes` are its whole frames; `rows` those in it that still wait for the log, by topic."""

    def __init__(self, path: Path, fd: int | None = None) -> None:
        """A file that is there already; `fd` if it may be written to. Raises OSError."""
        self.path = path
        self.bytes = path.stat().st_size
        self.rows: Counter[str] = Counter()
        self._fd = fd
        self._name_synced = fd is None

    @classmethod
    def create(cls, path: Path) -> "Segment":
        """A new file to be written to. Raises OSError."""
        return cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))

    @property
    def is_open(self) -> bool:
        """Whether it can be written to."""
        return self._fd is not None

    @property
    def is_removed(self) -> bool:
        """Whether somebody else removed the file that is written to."""
        return self._fd is not None and os.fstat(self._fd).st_nlink == 0

    def write(self, frame: bytes) -> None:
        """Raises OSError, after which nothing of the frame counts."""
        assert self._fd is not None
        written = 0
        try:
            while written < len(frame):
                written += os.pwrite(self._fd, memoryview(frame)[written:], self.bytes + written)
        except OSError:
            # should it stay, the next frame is written over it
            with suppress(OSError):
                os.ftruncate(self._fd, self.bytes)
            raise
        self.bytes += len(frame)

    def sync(self) -> None:
        """Have the disk hold what was written. Raises OSError."""
        if self._fd is None:
            return
        os.fdatasync(self._fd)
        if not self._name_synced:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._name_synced = True

    def end(self) -> None:
        """Write no more to it."""
        if self._fd is not None:
            # an error this late shows as a damaged frame, if it means anything
            with suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def read(self, start: int = 0) -> tuple[list[WaitingMessage], int]:
        """Its messages from byte `start` on, and how many torn or damaged ones were skipped. Raises OSError."""
        return read_frames(self._from(start))

    def count(self) -> None:
        """Count in `rows` what it holds. Raises OSError."""
        self.rows = rows_in(self._from(0))

    def _from(self, start: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(self.bytes - start)

    def remove(self) -> None:
        """Remove the file, which takes no room on any disk. Raises OSError."""
        self.end()
        self.path.unlink(missing_ok=True)
