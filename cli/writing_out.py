"""Writes what a command made to --out, or to stdout."""

from pathlib import Path

from idlewatt.stream.errors import ConfigError


def write_text(out: Path | None, text: str) -> None:
    """Raises ConfigError."""
    if out is None:
        print(text, end="", flush=True)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None
