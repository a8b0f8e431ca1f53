"""GET /v1/envelopes/{consumer}: what a consumer may still use, for gateways that ask before they serve.

Answered from what was put together at the last commit, and only while that is surely still this processor's to tell.
"""

import datetime as dt
import http
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS, MICRO, TOKENS, Book, Envelope
from idlewatt.processors.economy.consumers import OTHER
from idlewatt.processors.economy.envelope_figures import (
    ENVELOPE_KEY,
    FIGURE_COLUMNS,
    envelope_figures,
)
from idlewatt.processors.economy.envelopes import BURN_WINDOWS, EnvelopeState
from idlewatt.stream.clock import Clock
from idlewatt.stream.globs import matches
from idlewatt.stream.http_routes import Answer, Request, Route, error

PATH: Final = "/v1/envelopes/"
# What is known only up to longer ago is not known.
STALE_MS: Final = 300_000

Figures = Mapping[tuple[str, str, str], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Held:
    """What one partition's sites have used, ready to be looked up."""

    # FIGURE_COLUMNS by ENVELOPE_KEY; under the empty consumer those of who has used nothing
    figures: Figures
    # site -> name -> the kinds of consumer it was seen as
    kinds: Mapping[str, Mapping[str, Sequence[str]]]
    # site -> up to when its usage is known
    as_of_ms: Mapping[str, int]


class EnvelopeAnswers:
    """Holds the figures of the committed states. `hold` and requests may come from different threads."""

    def __init__(self, book: Callable[[], Book], clock: Clock, is_ours: Callable[[], bool]) -> None:
        """`is_ours`: whether the partitions are surely still this processor's."""
        self._book = book
        self._clock = clock
        self._is_ours = is_ours
        self._held: tuple[Book, dict[EnvelopeState, _Held]] = (book(), {})
        self.route = Route("GET", PATH, self.answer)

    def hold(self, states: Iterable[EnvelopeState]) -> None:
        """From now on answer from these states, one for each partition."""
        book = self._book()
        by_book, before = self._held
        known = before if by_book is book else {}
        # a commit of one partition leaves the others as they are
        self._held = (book, {state: known.get(state) or _held(state, book) for state in states})

    def answer(self, request: Request) -> Answer:
        name, kind, site = request.rest, request.query.get("kind"), request.query.get("site")
        if unknown := sorted(request.query.keys() - {"kind", "site"}):
            return error(http.HTTPStatus.BAD_REQUEST, f"?{unknown[0]}= is not known: there are kind and site")
        if kind is not None and kind not in CONSUMER_KINDS:
            return error(http.HTTPStatus.BAD_REQUEST, f"kind must be one of {', '.join(CONSUMER_KINDS)}")
        if name in ("", OTHER):
            return error(http.HTTPStatus.BAD_REQUEST, f"nobody can be called {name!r}")
        book, held = self._held
        here = {
            one_site: one for one in held.values() for one_site in one.as_of_ms if site in (None, one_site)
        }
        if (why := self._why_unknown(here, site)) is not None:
            return error(http.HTTPStatus.SERVICE_UNAVAILABLE, why, Retry_After="5")
        if kind is None:
            seen = {k for one_site, one in here.items() for k in one.kinds[one_site].get(name, ())}
            if not seen and any(OTHER in one.kinds[one_site] for one_site, one in here.items()):
                return _not_apart(name)
            if len(seen) != 1:
                what = f"is {' and '.join(sorted(seen))}" if seen else "has used nothing yet"
                status = http.HTTPStatus.BAD_REQUEST if seen else http.HTTPStatus.NOT_FOUND
                return error(status, f"{name} {what}: ask with ?kind= {', '.join(CONSUMER_KINDS)}")
            (kind,) = seen
        found = [
            (one_site, envelope, _figure(one, one_site, envelope, name))
            for one_site, one in sorted(here.items())
            for envelope in _binding(book, kind, name)
        ]
        if any(figure["is_folded"] for _, _, figure in found):
            return _not_apart(f"the {kind} {name}")
        if not found:
            return error(http.HTTPStatus.NOT_FOUND, f"the book has no envelope for the {kind} {name}")
        entries = [_entry(*one, book.time_zone) for one in found]
        return Answer(http.HTTPStatus.OK, {"consumer": name, "kind": kind, "envelopes": entries})

    def _why_unknown(self, here: Mapping[str, _Held], site: str | None) -> str | None:
        if not self._is_ours():
            return "the log does not answer: what was used meanwhile is not known"
        if not here:
            of = "any site" if site is None else f"site {site}"
            return f"usage of {of} is not known here: none was read yet, or another processor reads it"
        for one_site, one in here.items():
            if one.as_of_ms[one_site] < self._clock() - STALE_MS:
                return f"usage of site {one_site} is not known of the last minutes: this processor is behind"
        return None


def _binding(book: Book, kind: str, name: str) -> Iterator[Envelope]:
    """The envelopes that everything counts for which this consumer uses, whoever else has a part in it."""
    by_name = {envelope.name: envelope for envelope in book.envelope}
    found: dict[str, Envelope] = {}
    for envelope in book.envelope:
        if envelope.kind == kind and matches(name, envelope.match):
            found[envelope.name] = envelope
            outer = envelope.within
            while outer is not None:
                if not by_name[outer].each:
                    found[outer] = by_name[outer]
                outer = by_name[outer].within
    return (envelope for envelope in book.envelope if envelope.name in found)


def _held(state: EnvelopeState, book: Book) -> _Held:
    figures = envelope_figures(state, book)
    places = [figures.columns.index(name) for name in ENVELOPE_KEY]
    rows = {tuple(row[place] for place in places): row for row in figures.iter_rows()}
    known = state.sites.filter(pl.col("as_of_ms").is_not_null())
    kinds: dict[str, dict[str, list[str]]] = {site: {} for site in known.get_column("site")}
    for kind in CONSUMER_KINDS:
        for site, name in state.periods.select("site", kind).unique().iter_rows():
            if name and site in kinds:
                kinds[site].setdefault(name, []).append(kind)
    return _Held(rows, kinds, dict(known.select("site", "as_of_ms").iter_rows()))


def _not_apart(consumer: str) -> Answer:
    why = f"more names use tokens than are kept apart: what {consumer} has used is not known"
    return error(http.HTTPStatus.SERVICE_UNAVAILABLE, why, Retry_After="3600")


def _figure(held: _Held, site: str, envelope: Envelope, name: str) -> dict[str, Any]:
    """FIGURE_COLUMNS of the consumer's own, if it has any, else of whoever has used nothing yet."""
    consumer = name if envelope.each else envelope.match
    own = held.figures.get((site, envelope.name, consumer))
    figure = dict(zip(FIGURE_COLUMNS, own or held.figures[site, envelope.name, ""], strict=True))
    if own is None and envelope.kind in held.kinds[site].get(name, ()):
        # used nothing in this period and the one before, which says nothing of windows that go back further
        figure |= dict.fromkeys(f"burn_{window}" for window in BURN_WINDOWS)
    return figure | {"consumer": consumer}


def _entry(site: str, envelope: Envelope, figure: dict[str, Any], time_zone: str) -> dict[str, Any]:
    limit, used = figure["limit"], figure["used"]

    def amount(value: int | None) -> float | None:
        return value if value is None or envelope.unit == TOKENS else value / MICRO

    def moment(value_ms: int | None) -> str | None:
        if value_ms is None:
            return None
        return dt.datetime.fromtimestamp(value_ms / 1000, ZoneInfo(time_zone)).isoformat(timespec="seconds")

    return {
        "site": site,
        "envelope": envelope.name,
        "kind": envelope.kind,
        "consumer": figure["consumer"],
        "period": envelope.period,
        "begins": moment(figure["start_ms"]),
        "ends": moment(figure["end_ms"]),
        "unit": envelope.unit,
        "limit": amount(limit),
        "used": amount(used),
        "remaining": None if used is None else amount(limit - used),
        "exhausted": None if used is None else used >= limit,
        "unpriced_tokens": figure["unpriced_tokens"],
        "burn_rate": {window: figure[f"burn_{window}"] for window in BURN_WINDOWS},
        "exhaustion": moment(figure["exhaustion_ms"]),
        "known_since": moment(figure["since_ms"]),
        "known_until": moment(figure["as_of_ms"]),
    }
