"""One inference server's metrics page as a source of engine rows."""

from collections.abc import Iterator
from dataclasses import replace

from idlewatt.collectors.engine_page import EnginePage, ModelFigures
from idlewatt.collectors.engines import mapping_of
from idlewatt.collectors.exposition import SamplePicker
from idlewatt.collectors.http_page import HttpPage
from idlewatt.collectors.source import Reading, is_set_back
from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.errors import SourceError
from idlewatt.stream.records import RESTART_GAP_MS, EngineRow
from idlewatt.stream.settings import Engine


class EngineSource:
    """Scrapes one inference server: an EngineRow for each model it serves."""

    def __init__(
        self,
        engine: Engine,
        *,
        site: str,
        pool: str,
        node: str,
        interval_s: float,
        timeout_s: float,
        max_body_bytes: int,
        grace_s: float = 0.0,
        clock: Clock = unix_ms,
    ) -> None:
        """`pool` is where it serves unless its settings name another; `grace_s` is the processors'.

        Raises ConfigError for an unknown server kind or a URL that is none.
        """
        mapping = mapping_of(engine.server)
        self._http = HttpPage(engine.url, timeout_s, max_body_bytes)
        self._picker = SamplePicker(
            mapping.series_names, [series.name for series in mapping.output_tokens], mapping.if_absent
        )
        self._page = EnginePage(mapping, round(grace_s * 1000))
        self._engine = engine
        self._name = engine.name or self._http.name_seen_from(node)
        self._advance = mapping.advance
        self._site = site
        self._pool = engine.pool or pool
        self._node = node
        self._interval_s = interval_s
        self._clock = clock
        # when the newest page that was passed on had arrived
        self._newest_ms: int | None = None
        # the same as the clock has it now, which may have been set back since; before the first page, the first attempt
        self._read_ms: int | None = None
        self._epochs_ms: dict[str, int | None] = {}

    @property
    def name(self) -> str:
        """The engine's name in the settings, else as HttpPage.name_seen_from() has it."""
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

        Raises SourceError with the reasons of HttpPage.fetch, SamplePicker.pick and EnginePage.read.
        """
        try:
            return self._read()
        except SourceError:
            now_ms = self._clock()
            if not self._is_set_back(now_ms) and self._read_ms is None:
                self._read_ms = now_ms
            raise

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _read(self) -> Reading:
        try:
            body = self._http.fetch()
        except SourceError:
            self._page.miss()
            raise
        ts_ms = self._clock()
        if self._is_set_back(ts_ms):
            return Reading([], {"clock_set_back": 1})
        figures, left_out = self._page.read(self._picker.pick(body), ts_ms)
        rows = [row for model in figures for row in self._rows(model, ts_ms)]
        self._newest_ms = self._read_ms = ts_ms
        self._epochs_ms = {model.model_name: model.epoch_ms for model in figures}
        return Reading(rows, left_out)

    def _is_set_back(self, now_ms: int) -> bool:
        if not is_set_back(now_ms, self._newest_ms):
            return False
        assert self._read_ms is not None
        # epochs of servers that share the clock are to be held against what it tells now
        self._read_ms = min(self._read_ms, now_ms - round(self._interval_s * 1000))
        return True

    def _rows(self, model: ModelFigures, ts_ms: int) -> Iterator[EngineRow]:
        """The model now; before that the zero from which its counters began, if they began since the last page."""
        row = EngineRow(
            ts_ms=ts_ms,
            site=self._site,
            pool=self._pool,
            node=self._node,
            engine=self._name,
            server=self._engine.server,
            server_version=model.server_version,
            model_name=model.model_name,
            output_tokens=model.output_tokens,
            input_tokens=model.input_tokens,
            cached_input_tokens=model.cached_input_tokens,
            advance=self._advance,
            requests_running=model.requests_running,
            requests_waiting=model.requests_waiting,
            kv_cache_ratio=model.kv_cache_ratio,
            epoch_ms=model.epoch_ms,
            gpus=list(self._engine.gpus),
        )
        zero_ms = self._zero_ms(model, ts_ms)
        if zero_ms is not None:
            yield replace(
                row,
                ts_ms=zero_ms,
                output_tokens=0,
                input_tokens=None if row.input_tokens is None else 0,
                cached_input_tokens=None if row.cached_input_tokens is None else 0,
                requests_running=None,
                requests_waiting=None,
                kv_cache_ratio=None,
            )
        yield row

    def _zero_ms(self, model: ModelFigures, ts_ms: int) -> int | None:
        """When the model's counters were zero, if that is known to be since the last page.

        The first reading of a model gains nothing: what it made until then would be lost. So would, of a server that was
        started anew and whose clock is behind, as much as it had made before.
        """
        began_ms = model.epoch_ms
        # a known model's is told by one series, see CounterLives: the same process has no other
        before_ms = self._epochs_ms.get(model.model_name, self._read_ms)
        newest_ms = -1 if self._newest_ms is None else self._newest_ms
        if began_ms is None or before_ms is None or began_ms <= before_ms:
            return None
        # Clocks of two hosts differ. What began long before the last page was not started since: another server answers.
        if began_ms <= newest_ms - RESTART_GAP_MS:
            return None
        # of what is told for one moment the meter takes the first
        return min(max(newest_ms + 1, began_ms), ts_ms - 1)
