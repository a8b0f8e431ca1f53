"""One gateway's metrics page as a source of usage rows."""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Final

from idlewatt.collectors.consumer_names import ConsumerNames
from idlewatt.collectors.exposition import SamplePicker
from idlewatt.collectors.gateway_page import GatewayCounter, GatewayPage
from idlewatt.collectors.gateways import mapping_of
from idlewatt.collectors.http_page import HttpPage
from idlewatt.collectors.source import Reading, is_set_back
from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.errors import SourceError
from idlewatt.stream.records import UsageRow
from idlewatt.stream.settings import Consumer, Gateway

# six series for each of 8,000 users of a model, a page of some 20 MB: by default collect.max_body_bytes ends it before
_MAX_SAMPLES: Final = 50_000
_MAX_REMEMBERED: Final = 200_000
_UNNAMED: Final = "no_model"


class GatewaySource:
    """Scrapes one gateway: a UsageRow for each set of labels it counts tokens under."""

    def __init__(
        self,
        gateway: Gateway,
        rules: Sequence[Consumer],
        *,
        site: str,
        node: str,
        interval_s: float,
        timeout_s: float,
        max_body_bytes: int,
        clock: Clock = unix_ms,
    ) -> None:
        """Raises ConfigError for an unknown gateway kind or a URL that is none."""
        mapping = mapping_of(gateway.kind)
        self._http = HttpPage(gateway.url, timeout_s, max_body_bytes)
        self._picker = SamplePicker(
            mapping.series_names,
            [series.name for series in mapping.output_tokens],
            mapping.if_absent,
            max_samples=_MAX_SAMPLES,
            may_be_empty=True,
        )
        self._page = GatewayPage(mapping)
        self._names = ConsumerNames(rules, mapping.names, mapping.unset)
        self._name = self._http.name_seen_from(node, gateway.name)
        self._token_file = gateway.token_file
        self._site = site
        self._interval_s = interval_s
        self._clock = clock
        # the page before this one, and of every counter seen so far the epoch and the output tokens
        self._before_ms: int | None = None
        self._seen: dict[str, tuple[int | None, int]] = {}
        # counters of that page that could not be true: they did not begin after it
        self._unread: set[str] = set()

    @property
    def name(self) -> str:
        """The gateway's name in the settings, else host:port of its URL; see HttpPage.name_seen_from()."""
        return self._name

    @property
    def address(self) -> str:
        """See HttpPage.address."""
        return self._http.address

    @property
    def interval_s(self) -> float:
        """Seconds between readings."""
        return self._interval_s

    def read(self) -> Reading:
        """Fetch the page and read it; rows carry the moment its last byte had arrived.

        Raises SourceError with the reasons of HttpPage.fetch and SamplePicker.pick, and token_file.
        """
        try:
            body = self._http.fetch(self._token())
        except SourceError as error:
            if error.reason == "http_status" and self._token_file is None and " 401 " in str(error):
                raise SourceError(error.reason, f"{error}: name a file with its key in token_file") from error
            raise
        ts_ms = self._clock()
        if is_set_back(ts_ms, self._before_ms):
            # who is new on this page is new on the next that is passed on
            return Reading([], {"clock_set_back": 1})
        left_out: Counter[str] = Counter()
        counters, unread = self._page.read(self._picker.pick(body, left_out))
        self._forget_what_restarted(counters, unread)
        rows = [row for counter in counters for row in self._rows(counter, ts_ms, left_out)]
        self._before_ms = ts_ms
        self._unread = set(unread)
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen = {counter.name: _life(counter) for counter in counters}
        return Reading(rows, left_out + Counter(unread.values()))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _token(self) -> str | None:
        if self._token_file is None:
            return None
        try:
            token = Path(self._token_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise SourceError("token_file", f"{self._name}: the token cannot be read: {error}") from error
        if not (token.isascii() and token.isprintable()):
            # what refuses it as a header would quote it
            raise SourceError(
                "token_file", f"{self._name}: {self._token_file} must hold one line of plain ASCII, the token"
            )
        return token

    def _rows(self, counter: GatewayCounter, ts_ms: int, left_out: Counter[str]) -> Iterator[UsageRow]:
        """The counter now; before that the zero from which it began, if that was since the page before this one.

        A counter nobody has seen at zero would lose what it counted until it was first read: for somebody who asks
        once a day, everything.
        """
        names = self._names.of(counter.labels)
        if "model" not in names:
            left_out[_UNNAMED] += 1
            return
        epoch_ms = counter.epoch_ms
        unseen = counter.name not in self._seen or self._seen[counter.name][0] != epoch_ms
        unseen &= counter.name not in self._unread
        self._seen[counter.name] = _life(counter)
        if unseen and self._before_ms is not None and self._before_ms < ts_ms:
            # clocks of the two hosts may differ
            began_ms = min(max(self._before_ms, epoch_ms or 0), ts_ms - 1)
            yield self._row(counter, names, began_ms, (0, 0, 0))
        yield self._row(
            counter, names, ts_ms, (counter.output_tokens, counter.input_tokens, counter.cached_input_tokens)
        )

    def _forget_what_restarted(self, counters: Sequence[GatewayCounter], unread: Container[str]) -> None:
        """A counter without an epoch that is gone since a restart will begin at zero.

        A page that only lacks some has not restarted: they would be counted twice when they are back.
        """
        if counters and not any(map(self._fell, counters)):
            return
        here = {counter.name for counter in counters}
        for name, (epoch_ms, _) in list(self._seen.items()):
            if epoch_ms is None and name not in here and name not in unread:
                del self._seen[name]

    def _fell(self, counter: GatewayCounter) -> bool:
        before_epoch_ms, before = self._seen.get(counter.name, _life(counter))
        return before_epoch_ms is None is counter.epoch_ms and counter.output_tokens < before

    def _row(
        self, counter: GatewayCounter, names: dict[str, str], ts_ms: int, tokens: tuple[int, int, int]
    ) -> UsageRow:
        output, input_, cached = tokens
        return UsageRow(
            ts_ms=ts_ms,
            site=self._site,
            source=self._name,
            counter=counter.name,
            function=names.get("function"),
            team=names.get("team"),
            agent_family=names.get("agent_family"),
            engineer=names.get("engineer"),
            model_name=names["model"],
            tier=names.get("tier"),
            output_tokens=output,
            input_tokens=input_,
            cached_input_tokens=cached,
            epoch_ms=counter.epoch_ms,
        )


def _life(counter: GatewayCounter) -> tuple[int | None, int]:
    return counter.epoch_ms, counter.output_tokens
