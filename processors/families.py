"""Prometheus families as frames, and their text, by the names and labels in stream/metric_names.py.

prometheus_client takes 7 us a series; a window of 100,000 GPUs moves 80,000 of them. polars writes the same lines in
a tenth of that, and without holding up other threads.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import polars as pl

from idlewatt.stream import metric_names
from idlewatt.stream.records import TOKEN_COUNTS, TOKEN_KINDS

# the label `kind` of each count of tokens, for long()
KINDS: Final = dict(zip(TOKEN_COUNTS, TOKEN_KINDS, strict=True))
_SPECIAL: Final = ["\\", '"', "\n"]
_ESCAPED: Final = ["\\\\", '\\"', "\\n"]


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """One family: a row for each series, with the metric's labels and `value`."""

    metric: metric_names.Metric
    frame: pl.DataFrame

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def samples(self) -> Iterator[Sample]:
        for *labels, value in self.frame.iter_rows():
            yield Sample(self.name, dict(zip(self.metric.labels, labels, strict=True)), value)

    def header(self) -> bytes:
        text = self.metric.help.replace("\\", "\\\\").replace("\n", "\\n")
        return f"# HELP {self.name} {text}\n# TYPE {self.name} {self.metric.kind}\n".encode()

    @property
    def labels(self) -> pl.DataFrame:
        return self.frame[list(self.metric.labels)]

    def heads(self) -> pl.Series:
        """What stands before the value of each series in Prometheus' text format (version 0.0.4)."""
        if self.frame.is_empty():
            return pl.Series(dtype=pl.String)
        plain = self._heads({label: pl.col(label) for label in self.metric.labels})
        text = "\n".join(plain.str.join("\n"))
        # To escape is most of the work and hardly ever needed. Special characters in a label show by their number.
        rows, quotes = self.frame.height, 2 * len(self.metric.labels) * self.frame.height
        if "\\" not in text and (text.count("\n"), text.count('"')) == (rows - 1, quotes):
            return plain
        return self._heads(
            {label: pl.col(label).str.replace_many(_SPECIAL, _ESCAPED) for label in self.metric.labels}
        )

    def _heads(self, labels: Mapping[str, pl.Expr]) -> pl.Series:
        parts: list[pl.Expr] = []
        before = f"{self.name}{{"
        for label, text in labels.items():
            parts += [pl.lit(f'{before}{label}="'), text]
            before = '",'
        before = f"{before[:1]}}} " if labels else f"{self.name} "
        parts.append(pl.lit(before))
        # as many as there are rows, also without labels
        return self.frame.select(pl.concat_str(parts), pl.col("value")).to_series()

    def lines(self, heads: pl.Series | None = None) -> bytes:
        """The series in Prometheus' text format. `heads`: heads(), where they are known."""
        if self.frame.is_empty():
            return b""
        heads = self.heads() if heads is None else heads
        lines: str = (heads + self.frame.get_column("value").cast(pl.String)).str.join("\n").item()
        return lines.encode() + b"\n"


def in_units(amount: pl.Expr, per: int) -> pl.Expr:
    """An amount of which `per` make a unit.

    polars divides a column of one row, and multiplies longer ones by the reciprocal. That may be a bit less: a counter
    would step back when a second series joins it, and to Prometheus count its whole amount again.
    """
    return amount * (1 / per)


def family(
    metric: metric_names.Metric, rows: pl.DataFrame | Iterable[tuple[tuple[str, ...], float]]
) -> Family:
    """A family of rows with the metric's labels and `value`, or of label values in the metric's order with a value.

    A row whose value is null is no series: what is not known is absent.
    """
    if not isinstance(rows, pl.DataFrame):
        columns = [*metric.labels, "value"]
        rows = pl.DataFrame(
            [(*labels, float(value)) for labels, value in rows],
            schema={column: pl.Float64 if column == "value" else pl.String for column in columns},
            orient="row",
        )
    # each expression on a frame, however short, costs several times as much as looking whether it is needed
    frame = rows[[*metric.labels, "value"]]
    if frame.get_column("value").null_count():
        frame = frame.drop_nulls("value")
    if frame.schema["value"] != pl.Float64:
        frame = frame.with_columns(pl.col("value").cast(pl.Float64))
    return Family(metric, frame)


@functools.cache
def absent(metric: metric_names.Metric) -> Family:
    """The family without any series."""
    return family(metric, ())


def long(rows: pl.DataFrame, key: Sequence[str], label: str, columns: Mapping[str, str]) -> pl.DataFrame:
    """`key`, `label` and `value`: for each of the columns a row with the label's value that the column stands for."""
    named = rows.select_seq(*key, *(pl.col(column).alias(of) for column, of in columns.items()))
    return named.unpivot(index=list(key), variable_name=label, value_name="value")


def rendered(families: Iterable[Family]) -> bytes:
    """Families in Prometheus' text format."""
    return b"".join(family.header() + family.lines() for family in families)
