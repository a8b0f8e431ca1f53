"""Frames to Prometheus families, by the names and labels in stream/metric_names.py."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from idlewatt.stream import metric_names


def family(metric: metric_names.Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """One family; each sample is its label values in the metric's order, and its value."""
    if metric.kind == "counter":
        counter = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
        for labels, value in samples:
            counter.add_metric(labels, value)
        return counter
    gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        gauge.add_metric(labels, value)
    return gauge
