"""Prometheus text to the few samples that are wanted, refusing what would give a wrong number."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from idlewatt.stream.errors import SourceError

# A page that is longer or wider than these is no metrics page of an inference server. The parser reads
# character by character, so a hostile page would cost seconds.
_MAX_SAMPLES: Final = 5_000
# Of a line's labels, and of the rest. Series of one thing have the same labels, so that all of them are too long or none:
# a counter of input that is left out beside its output would be wrong.
_MAX_PART_BYTES: Final = 2_048

_PLAIN_VALUE: Final = re.compile(rb"[ \t]+([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)[ \t\r]*")
_SERIES_NAME: Final = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*(?=[ \t{])")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page. `name` is folded."""

    name: str
    labels: dict[str, str]
    value: float


def fold(name: str) -> str:
    """The name with ':' written as '_': some servers escape it even in text (prometheus_client >= 0.23)."""
    return name.replace(":", "_")


class SamplePicker:
    """Picks the samples of the named series out of a page.

    `required` are the names of which one must be there, `if_absent` says what to do when none is. With
    `may_be_empty` it is enough that the page has the type of one, as a server shows that has counted nothing yet.
    """

    def __init__(
        self,
        names: Iterable[str],
        required: Iterable[str],
        if_absent: str = "",
        *,
        max_samples: int = _MAX_SAMPLES,
        may_be_empty: bool = False,
    ) -> None:
        self._max_samples = max_samples
        self._may_be_empty = may_be_empty
        self._required = tuple(required)
        self._required_folded = frozenset(map(fold, self._required))
        self._if_absent = if_absent
        wanted = _any_of(names)
        # the name must end here: vllm:prompt_tokens_created is a time, and some histograms end in _total
        self._lines = re.compile(rf"^[ \t]*(?:{wanted})[ \t]*[{{ \t][^\n]*".encode(), re.MULTILINE)
        self._announcement = re.compile(rf"^# TYPE (?:{_any_of(self._required)})[ \t]".encode(), re.MULTILINE)
        # Of the page before: name and labels as they stand there, to a sample that has them. They are the same from page to
        # page, and the parser takes six times as long over them as all else does.
        self._series: dict[bytes, Sample] = {}

    def pick(self, body: bytes | bytearray, left_out: Counter[str] | None = None) -> list[Sample]:
        """The wanted samples, in the page's order.

        Raises SourceError with reason no_known_series, duplicate_series, bad_sample, too_many_series or
        truncated. With `left_out` a bad sample is counted there and costs nothing else: for pages on which anybody
        who sends a request can have a line of his own.
        """
        samples: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
        before, self._series = self._series, {}
        for line in self._lines.finditer(body):
            try:
                sample = self._sample(line.group(), before)
            except SourceError as error:
                if left_out is None:
                    raise
                left_out[error.reason] += 1
                continue
            key = sample.name, frozenset(sample.labels.items())
            if key in samples:
                raise SourceError(
                    "duplicate_series",
                    f"the page has {sample.name} twice with the same labels: which one is true is unknown",
                )
            if len(samples) == self._max_samples:
                raise SourceError(
                    "too_many_series", f"the page has more than {self._max_samples} samples of known series"
                )
            samples[key] = sample
        known = any(sample.name in self._required_folded for sample in samples.values())
        if not known and not (self._may_be_empty and self._announcement.search(body)):
            raise SourceError("no_known_series", self._absence(body))
        # The format ends every line with a line feed. A page cut within a line leaves a number cut short.
        if not body.endswith(b"\n"):
            raise SourceError("truncated", "the page breaks off within its last line")
        return list(samples.values())

    def _sample(self, line: bytes, before: Mapping[bytes, Sample]) -> Sample:
        series = line[: line.rfind(b"}") + 1]
        value = _plain_value(line[len(series) :]) if series else None
        known = before.get(series)
        if value is None or known is None:
            sample, is_alone = _parse(line)
            if value is not None and is_alone:
                self._series[series] = sample
            return sample
        self._series[series] = known
        return Sample(known.name, known.labels, value)

    def _absence(self, body: bytes | bytearray) -> str:
        expected = f"expected {' or '.join(self._required)}, but {_looks(body)}"
        return f"{expected}; {self._if_absent}" if self._if_absent else expected


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(fold(name)).replace("_", "[:_]") for name in sorted(names))


def _plain_value(text: bytes) -> float | None:
    """What stands behind the labels of nearly every line; None if it is anything else, for the parser to read."""
    plain = _PLAIN_VALUE.fullmatch(text)
    return float(plain[1]) if plain else None


def _parse(line: bytes) -> tuple[Sample, bool]:
    """The sample, and whether its value is all that stands behind its labels. Raises SourceError."""
    labels_bytes = line.rfind(b"}") - line.find(b"{")
    if max(labels_bytes, len(line) - labels_bytes) > _MAX_PART_BYTES:
        raise SourceError(
            "bad_sample",
            f"a line's labels, or the rest, are longer than {_MAX_PART_BYTES} bytes: {_shown(line)}",
        )
    text = line.decode(errors="replace")
    try:
        # one line at a time, so that a bad one can be named
        [family] = text_string_to_metric_families(text)
        [sample] = family.samples
    except (ValueError, IndexError) as error:
        raise SourceError("bad_sample", f"a line is not in the Prometheus format: {_shown(line)}") from error
    return Sample(fold(sample.name), sample.labels, sample.value), sample.timestamp is None


def _looks(body: bytes | bytearray) -> str:
    """What the page is, in a few words."""
    start = bytes(body[:1024]).lstrip()
    if not start:
        return "the page is empty"
    if start.startswith(b"<"):
        return "the page is HTML"
    if start.startswith((b"{", b"[")):
        return "the page is JSON"
    prefixes = {prefix for line in bytes(body[:65_536]).split(b"\n") if (prefix := _prefix(line))}
    if prefixes:
        return f"its series begin with {', '.join(sorted(prefixes)[:8])}"
    return f"the page begins with {_shown(start)}"


def _prefix(line: bytes) -> str | None:
    """What comes before the first ':' or '_' in the name, if the line is a sample."""
    name = _SERIES_NAME.match(line)
    try:
        float(line.split()[-1])
    except (ValueError, IndexError):
        return None
    found = name and re.match("[^_:]*[_:]?", name.group().decode())
    return found.group() if found else None


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace"))
