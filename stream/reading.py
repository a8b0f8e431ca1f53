"""Rows of a topic as it is now, a few hundred messages at a time."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from idlewatt.stream.decoding import decode_all, schema_of
from idlewatt.stream.errors import UnreadableMessageError
from idlewatt.stream.log import Message
from idlewatt.stream.opening import read_topic
from idlewatt.stream.records import Schema
from idlewatt.stream.settings import Settings

_MESSAGES: Final = 500


@dataclass(frozen=True, slots=True)
class Fault:
    """A message that cannot be read."""

    topic: str
    partition: int
    offset: int
    error: UnreadableMessageError


def read_rows(
    settings: Settings, topic: str, schemas: Sequence[Schema], since_ms: int = 0
) -> Iterator[tuple[Schema, pl.DataFrame] | Fault]:
    """All rows of these schemas that were appended from `since_ms` on, in the order of their partition.

    Raises ConfigError, LogUnavailableError.
    """
    messages = read_topic(settings, topic, since_ms=since_ms)
    while some := list(itertools.islice(messages, _MESSAGES)):
        wanted: list[Message] = []
        for message in some:
            try:
                if schema_of(message.value) in schemas:
                    wanted.append(message)
            except UnreadableMessageError as error:
                yield Fault(message.topic, message.partition, message.offset, error)
        found, faults = decode_all([message.value for message in wanted])
        for place, fault in faults.items():
            yield Fault(topic, wanted[place].partition, wanted[place].offset, fault)
        for schema, rows in found.items():
            yield schema, rows.frame
