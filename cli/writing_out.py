"""Writes what a command made to --out, or to stdout."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from idlewatt.stream.errors import ConfigError

# of a folder without the right to it, and of a file that is mounted by itself
_NO_PLACE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV})


def write_text(out: Path | None, text: str) -> None:
    """As UTF-8 to a file; stdout has its own encoding. Raises ConfigError."""
    if out is not None:
        write_bytes(out, text.encode())
        return
    with _stdout():
        print(text, end="", flush=True)


def write_bytes(out: Path | None, content: bytes) -> None:
    """A file has all of it or what it had before. Raises ConfigError."""
    if out is None:
        with _stdout():
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        return
    try:
        _write(out, content)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None


def silence_stdout() -> None:
    """Nothing may be flushed at exit into what takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _stdout() -> Iterator[None]:
    """A reader of a pipe that goes away is no fault, and main()'s to see to."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise ConfigError(f"cannot write to standard output: {error.strerror}") from None


def _write(out: Path, content: bytes) -> None:
    # nothing can take the place of a pipe, of a device, and of some files
    if out.is_file() or not out.exists():
        try:
            _replace(out.resolve(), content)
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
        else:
            return
    out.write_bytes(content)


def _replace(out: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=".idlewatt-")
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        # what open() would have given it
        mask = os.umask(0)
        os.umask(mask)
        new.chmod(out.stat().st_mode & 0o777 if out.exists() else 0o666 & ~mask)
        new.replace(out)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
