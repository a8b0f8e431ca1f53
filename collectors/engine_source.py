"""One inference server's metrics page as a source of engine rows."""

from idlewatt.collectors.engine_page import EnginePage
from idlewatt.collectors.engines import mapping_of
from idlewatt.collectors.exposition import SamplePicker
from idlewatt.collectors.http_page import HttpPage
from idlewatt.collectors.source import Reading
from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.errors import SourceError
from idlewatt.stream.records import EngineRow
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

    @property
    def name(self) -> str:
        """The engine's name in the settings, else as HttpPage.name_seen_from() has it."""
        return self._name

    @property
    def interval_s(self) -> float:
        """Seconds between readings."""
        return self._interval_s

    def read(self) -> Reading:
        """Fetch the page and read it; rows carry the moment its last byte had arrived.

        Raises SourceError with the reasons of HttpPage.fetch, SamplePicker.pick and EnginePage.read.
        """
        try:
            body = self._http.fetch()
        except SourceError:
            self._page.miss()
            raise
        ts_ms = self._clock()
        figures, left_out = self._page.read(self._picker.pick(body), ts_ms)
        rows = [
            EngineRow(
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
            for model in figures
        ]
        return Reading(rows, left_out)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
