"""Times as people write them: ISO 8601, in the book's time zone where none is named."""

import argparse
import datetime as dt
import re
from zoneinfo import ZoneInfo

from idlewatt.stream.errors import ConfigError

_MINUTE_MS = 60_000


def moment_ms(option: str, text: str, time_zone: str) -> int:
    """Unix milliseconds of a date (its first moment) or a time, on a whole minute. Raises ConfigError."""
    zone = ZoneInfo(time_zone)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option}: {text!r} is no time; write 2026-11-01, 2026-11-01T07:30 or 2026-11-01T07:30+01:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
        there = moment.astimezone(dt.UTC).astimezone(zone)
        if "T" in text.upper() and there.replace(tzinfo=None) != moment.replace(tzinfo=None):
            raise ConfigError(
                f"{option}: {text} never was in {time_zone}, where the clock is put forward over it"
            )
    ms = moment.timestamp() * 1000
    if ms % _MINUTE_MS:
        raise ConfigError(f"{option}: {text} is not on a whole minute; windows of the ledger never span one")
    return int(ms)


def month_ms(text: str, time_zone: str) -> tuple[int, int]:
    """From the first moment of a calendar month (2026-11) to that of the next. Raises ConfigError."""
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text):
        raise ConfigError(f"--month: {text!r} is no month; write it as 2026-11")
    year, month = map(int, text.split("-"))
    zone = ZoneInfo(time_zone)
    begin = dt.datetime(year, month, 1, tzinfo=zone)
    end = dt.datetime(year + month // 12, month % 12 + 1, 1, tzinfo=zone)
    return round(begin.timestamp() * 1000), round(end.timestamp() * 1000)


def written(moment_ms: int, time_zone: str) -> str:
    """ISO 8601 with the offset, to the minute."""
    return dt.datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(time_zone)).isoformat(timespec="minutes")


def names(text: str) -> tuple[str, ...]:
    """Words between commas, for argparse."""
    found = tuple(word.strip() for word in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name between commas")
    return found
