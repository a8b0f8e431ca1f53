"""`idlewatt tail`: the newest rows of a topic, decoded."""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from idlewatt.cli.config import load_settings
from idlewatt.cli.exit_codes import ExitCode
from idlewatt.cli.text_table import printable, text_table
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.log import Message
from idlewatt.stream.opening import read_topic
from idlewatt.stream.records import Schema

_TIMES: Final = ("ts_ms", "window_start_ms", "minute_start_ms")
# a wild clock's is shown as the number that it is: the years 1 to 9999
_SHOWN_MS: Final = range(-62_135_596_800_000, 253_402_300_800_000)
_OVERLAP: Final = 1000
Row = dict[str, Any]


def tail(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ExitCode:
    """Print the newest rows by event time, and with --follow those that come. Raises ConfigError, LogUnavailableError."""
    settings = load_settings(arguments.config, environ)
    write = _write_json if arguments.format == "json" else _write_table
    # partition -> the newest that was seen
    seen: dict[int, int] = {}
    rows: list[tuple[Schema, Row]] = []
    for message in read_topic(settings, arguments.topic, newest=arguments.rows):
        seen[message.partition] = message.offset
        rows += _rows(message)
    rows.sort(key=_event_ms)
    write(rows[len(rows) - min(arguments.rows, len(rows)) :])
    if arguments.follow:
        # a few are read again, so that none that came meanwhile is passed over
        again = _OVERLAP if arguments.rows else 0
        for message in read_topic(settings, arguments.topic, newest=again, follow=True):
            if message.offset > seen.get(message.partition, -1):
                write(list(_rows(message)))
    return ExitCode.OK


def _rows(message: Message) -> Iterator[tuple[Schema, Row]]:
    try:
        schema, frame = decode(message.value)
    except UnreadableMessageError as error:
        place = f"{message.topic}, partition {message.partition}, offset {message.offset}"
        print(f"idlewatt: {place}: {printable(str(error))}", file=sys.stderr)
        return
    for row in frame.iter_rows(named=True):
        yield schema, row


def _event_ms(found: tuple[Schema, Row]) -> int:
    return next(int(found[1][name]) for name in _TIMES if name in found[1])


def _write_json(rows: Iterable[tuple[Schema, Row]]) -> None:
    for schema, row in rows:
        print(json.dumps({"schema": schema.name, **row}, ensure_ascii=False))
    sys.stdout.flush()


def _write_table(rows: Iterable[tuple[Schema, Row]]) -> None:
    by_schema: dict[Schema, list[Row]] = {}
    for schema, row in rows:
        by_schema.setdefault(schema, []).append(row)
    for schema, found in by_schema.items():
        names = schema.arrow.names
        print(schema.name)
        for line in text_table(names, [[_shown(name, row[name]) for name in names] for row in found], 0):
            print(line)
    sys.stdout.flush()


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in _TIMES and value in _SHOWN_MS:
        return dt.datetime.fromtimestamp(value / 1000, dt.UTC).isoformat(timespec="milliseconds")
    return ",".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
