"""Reads the book, and reads it again when the file has changed. A bad one is refused and the one before kept."""

import threading
import time
import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import structlog
from pydantic import ValidationError

from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_checks import faults
from idlewatt.processors.economy.book_faults import describe
from idlewatt.stream.errors import ConfigError

_LOOK_INTERVAL_S: Final = 1.0
_MOST_BYTES: Final = 16 * 1024 * 1024
_log = structlog.get_logger()


def read_book(path: Path) -> Book:
    """The book of a file. Raises ConfigError with one line for each fault."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path.absolute()}: there is no such file; make one with: idlewatt config --book > {path.name}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_book(content, str(path))


def parse_book(content: bytes, source: str) -> Book:
    """The book of a file's content; `source` names it. Raises ConfigError with one line for each fault."""
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{source}: larger than {_MOST_BYTES} bytes")
    try:
        # utf-8-sig: some editors put a byte order mark before the first key
        tree = _tuples(tomllib.loads(content.decode("utf-8-sig"), parse_float=Decimal))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    # TOMLDecodeError, or a number of thousands of digits
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deep") from None
    if not tree:
        # a full disk, or an edit that failed, leaves it empty
        lacking = "has nothing but comments" if content.decode("utf-8-sig").strip() else "is empty"
        raise ConfigError(
            f"{source}: the file {lacking}; put back what was in it, or leave economy.book out to have no book"
        )
    try:
        book = Book.model_validate(tree)
    except ValidationError as error:
        rest = "what takes the whole book, such as currency, tiers, tariff and `within`, is checked once this is mended"
        told = [*describe(error), rest]
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in told)) from None
    if found := [f"{source}: {fault}" for fault in faults(book)]:
        raise ConfigError("\n".join(found))
    return book


def _tuples(value: Any) -> Any:
    """Lists as tuples: a book that is hashable can be what a cache goes by."""
    match value:
        case dict():
            return {key: _tuples(inner) for key, inner in value.items()}
        case list():
            return tuple(_tuples(inner) for inner in value)
    return value


class BookFile:
    """The book in force. Thread-safe."""

    def __init__(
        self, path: Path | None, told: Callable[[Literal["accepted", "refused"], Book], None]
    ) -> None:
        """`told` hears of every reading of the file but the first, and of the book that is in force then.

        Without a path the book stays empty. Raises ConfigError.
        """
        self._path = path
        self._told = told
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._stamp = self._stamp_of_file()
        self._book = Book() if path is None else read_book(path)

    def current(self) -> Book:
        """The book, read again if the file has changed; looks at most once a second."""
        with self._lock:
            now = time.monotonic()
            if self._path is not None and now - self._looked_at >= _LOOK_INTERVAL_S:
                self._looked_at = now
                self._look(self._path)
            return self._book

    def _look(self, path: Path) -> None:
        stamp = self._stamp_of_file()
        if stamp == self._stamp:
            return
        try:
            book = read_book(path)
        except ConfigError as error:
            _log.error("book_refused", path=str(path), error=str(error), in_force="the book before")
            self._told("refused", self._book)
        else:
            if book != self._book:
                _log.info("book_read", path=str(path), prices=len(book.price), envelopes=len(book.envelope))
            self._book = book
            self._told("accepted", book)
        self._stamp = stamp

    def _stamp_of_file(self) -> tuple[int, int, int] | None:
        """What changes when the file does. A Kubernetes ConfigMap changes by another file under the same name."""
        try:
            found = self._path.stat() if self._path else None
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size) if found else None
