"""The collector's own figures for Prometheus."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from idlewatt.collectors.scheduled_source import SourceState
from idlewatt.collectors.sink import SinkState
from idlewatt.stream import metric_names


class CollectorMetrics(Collector):
    """How the sources and the sink are doing at the moment of asking: a source that is gone has no series."""

    def __init__(
        self,
        sources: Callable[[], Sequence[SourceState]],
        sink: Callable[[], SinkState],
        refused: Callable[[], Mapping[str, int]],
    ) -> None:
        """`refused`: requests of POST /v1/usage by the reason for which they were refused."""
        self._sources = sources
        self._sink = sink
        self._refused = refused

    def collect(self) -> Iterable[Metric]:
        """The families of stream.metric_names with stage "collector"."""
        success, duration = _family(metric_names.SCRAPE_SUCCESS), _family(metric_names.SCRAPE_DURATION)
        errors, left_out = _family(metric_names.SCRAPE_ERRORS), _family(metric_names.SAMPLE_ERRORS)
        for source in self._sources():
            if source.success is not None:
                success.add_metric([source.name], float(source.success))
                duration.add_metric([source.name], source.duration_s)
            for reason, count in source.errors.items():
                errors.add_metric([source.name, reason], count)
            for reason, count in source.left_out.items():
                left_out.add_metric([source.name, reason], count)

        sink = self._sink()
        sent, dropped = _family(metric_names.SENT_ROWS), _family(metric_names.DROPPED_ROWS)
        for topic, rows in sink.sent_rows.items():
            sent.add_metric([topic], rows)
        for topic, rows in sink.dropped_rows.items():
            dropped.add_metric([topic], rows)
        if sink.unencodable_rows:
            left_out.add_metric(["sink", "unencodable"], sink.unencodable_rows)
        if sink.damaged_records:
            left_out.add_metric(["spool", "damaged"], sink.damaged_records)
        if sink.spool_failures:
            left_out.add_metric(["spool", "failed"], sink.spool_failures)
        for reason, requests in self._refused().items():
            left_out.add_metric(["usage_post", reason], requests)
        waiting = _family(metric_names.SPOOL_BYTES)
        waiting.add_metric([], sink.waiting_bytes)
        limit = _family(metric_names.SPOOL_LIMIT)
        if sink.spool_max_bytes is not None:
            limit.add_metric([], sink.spool_max_bytes)
        return success, duration, errors, left_out, sent, dropped, waiting, limit


def _family(metric: metric_names.Metric) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return family(metric.name, metric.help, labels=metric.labels)
