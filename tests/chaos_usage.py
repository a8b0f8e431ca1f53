"""What consumers spent against what gateways counted, in plain Python: docs/metering.md, "Usage"."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from chaos_books import Difference, Row, compare

from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.opening import read_topic
from idlewatt.stream.settings import Settings

TOKENS: Final = ("output_tokens", "input_tokens", "cached_input_tokens")
NAMES: Final = ("site", "source", "function", "team", "agent_family", "engineer")
Key = tuple[Any, ...]


def read_usage(settings: Settings) -> tuple[list[Row], dict[int, int]]:
    """Readings of gateways, repeats included, and where each partition ends."""
    rows: list[Row] = []
    ends: dict[int, int] = {}
    for message in read_topic(settings, topics.USAGE):
        rows += decode(message.value)[1].to_dicts()
        ends[message.partition] = message.offset + 1
    return rows, ends


def read_spent(settings: Settings) -> list[Row]:
    """What is booked of consumers, beside the money of pools."""
    decoded = (decode(message.value) for message in read_topic(settings, topics.MONEY))
    return [row for schema, frame in decoded if schema is records.CONSUMER for row in frame.to_dicts()]


def compare_usage(
    usage: Iterable[Row], spent: Iterable[Row], prices: Mapping[str, Sequence[int]], default_tier: str
) -> list[Difference]:
    """A consumer's counter, never reset, spent its last reading less its first.

    `prices`: micro-units a token of each of TOKENS, by model; other models have none.
    """
    readings: dict[Key, list[Row]] = defaultdict(list)
    for row in usage:
        who = (row[name] or "" for name in NAMES)
        readings[*who, row["model_name"], row["tier"] or default_tier].append(row)
    tokens: dict[Key, tuple[int, ...]] = {}
    worth: dict[Key, tuple[int, ...]] = {}
    for key, found in readings.items():
        first, last = (of(found, key=lambda row: row["ts_ms"]) for of in (min, max))
        tokens[key] = tuple(last[kind] - first[kind] for kind in TOKENS)
        price = next((p for glob, p in prices.items() if fnmatch.fnmatchcase(key[-2], glob)), (0, 0, 0))
        worth[key] = (sum(count * each for count, each in zip(tokens[key], price, strict=True)),)
    booked: dict[Key, tuple[int, ...]] = defaultdict(lambda: (0, 0, 0))
    owed: dict[Key, tuple[int, ...]] = defaultdict(lambda: (0,))
    for row in spent:
        key = tuple(row[name] for name in (*NAMES, "model_name", "tier"))
        booked[key] = tuple(sum(pair) for pair in zip(booked[key], (row[k] for k in TOKENS), strict=True))
        owed[key] = (owed[key][0] + (row["spend_micro"] or 0),)
    return [
        compare("tokens per consumer, model and tier", "tokens", booked, tokens),
        compare("spend per consumer, model and tier", "micro-units", owed, worth),
    ]
