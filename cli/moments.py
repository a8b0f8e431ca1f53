"""Times as people write them: ISO 8601, in the book's time zone where none is named."""

import datetime as dt
import re
from typing import Final
from zoneinfo import ZoneInfo

from idlewatt.processors.reports.ledger import Interval, calendar_month
from idlewatt.stream.clock import MINUTE_MS, unix_ms
from idlewatt.stream.errors import ConfigError

# time zones know of no others
_YEARS: Final = range(1970, 2200)


def moment_ms(option: str, text: str, time_zone: str) -> int:
    """Unix milliseconds of a date (its first moment) or a time, on a whole minute. Raises ConfigError."""
    zone = ZoneInfo(time_zone)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option}: {text!r} is no time; write 2026-11-01, 2026-11-01T07:30 or 2026-11-01T07:30+01:00"
        ) from None
    if moment.year not in _YEARS:
        raise ConfigError(f"{option}: there is no ledger of {moment.year}")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
        there = moment.astimezone(dt.UTC).astimezone(zone)
        if not _is_date(text) and there.replace(tzinfo=None) != moment.replace(tzinfo=None):
            raise ConfigError(
                f"{option}: {text} never was in {time_zone}, where the clock is put forward over it"
            )
    ms = moment.timestamp() * 1000
    if ms % MINUTE_MS:
        raise ConfigError(f"{option}: {text} is not on a whole minute; windows of the ledger never span one")
    return int(ms)


def _is_date(text: str) -> bool:
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def interval_of(begin: str | None, end: str | None, time_zone: str) -> Interval:
    """From --from to --to, or to now. Raises ConfigError."""
    if begin is None:
        raise ConfigError("--from is missing; write --from 2026-11-01 or --from 2026-11-01T07:30")
    from_ms = moment_ms("--from", begin, time_zone)
    to_ms = unix_ms() // MINUTE_MS * MINUTE_MS if end is None else moment_ms("--to", end, time_zone)
    if from_ms >= to_ms:
        raise ConfigError(f"--from {begin} is not before --to {end or 'now'}: the interval is empty")
    return Interval(from_ms, to_ms)


def month_of(text: str, time_zone: str) -> Interval:
    """From the first moment of a calendar month (2026-11) to that of the next. Raises ConfigError."""
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text):
        raise ConfigError(f"--month: {text!r} is no month; write it as 2026-11")
    return calendar_month(moment_ms("--month", f"{text}-01", time_zone), time_zone)


def written(moment_ms: int, time_zone: str) -> str:
    """ISO 8601 with the offset, to the minute."""
    return dt.datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(time_zone)).isoformat(timespec="minutes")
