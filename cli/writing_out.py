"""Writes what a command made to --out, or to stdout."""

import sys
from pathlib import Path

from idlewatt.stream.errors import ConfigError


def write_text(out: Path | None, text: str) -> None:
    """As UTF-8 to a file; stdout has its own encoding. Raises ConfigError."""
    if out is None:
        print(text, end="", flush=True)
    else:
        write_bytes(out, text.encode())


def write_bytes(out: Path | None, content: bytes) -> None:
    """Raises ConfigError."""
    if out is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None
