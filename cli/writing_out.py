"""Writes what a command made to --out, or to stdout."""

import os
import sys
import tempfile
from pathlib import Path

from idlewatt.stream.errors import ConfigError


def write_text(out: Path | None, text: str) -> None:
    """As UTF-8 to a file; stdout has its own encoding. Raises ConfigError."""
    if out is not None:
        write_bytes(out, text.encode())
        return
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _no_stdout(error) from None


def write_bytes(out: Path | None, content: bytes) -> None:
    """A file has all of it or what it had before. Raises ConfigError."""
    if out is None:
        try:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _no_stdout(error) from None
        return
    try:
        if out.exists() and not out.is_file():
            # a pipe, a device
            out.write_bytes(content)
        else:
            _replace(out.resolve(), content)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None


def silence_stdout() -> None:
    """Nothing may be flushed at exit into what takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _no_stdout(error: OSError) -> ConfigError:
    silence_stdout()
    return ConfigError(f"cannot write to standard output: {error.strerror}")


def _replace(out: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        # what open() would have given it
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(out.stat().st_mode & 0o777 if out.exists() else 0o666 & ~mask)
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
