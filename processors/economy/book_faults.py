"""Words for what is wrong with the shape of a book: the table, the key, and how to mend it."""

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from idlewatt.processors.economy.book import Book, Part


def describe(error: ValidationError) -> Iterator[str]:
    """One line for each fault."""
    told: set[tuple[str, tuple[int | str, ...]]] = set()
    # a union tells a fault once for each of its members
    for detail in error.errors(include_url=False):
        part, place, rest = _locate(detail["loc"])
        at = (place, rest[:1])
        if at not in told:
            told.add(at)
            yield _fault(detail, part, place, str(rest[0]) if rest else "")


def _fault(detail: ErrorDetails, part: type[Part], place: str, name: str) -> str:
    where = f"{place} " if place else ""
    keys = {field.alias or key: field for key, field in part.model_fields.items()}
    match detail["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(name, keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"keys there: {', '.join(keys)}"
            return f"{place or 'the book'} has no key {name}; {hint}"
        case "missing":
            return f"{where}needs {name} ({keys[name].description})"
        case "value_error":
            return f"{where}{name} {detail['msg'].removeprefix('Value error, ')}"
    if name in keys and _part_of(keys[name].annotation):
        header = f"[[{name}]]" if detail["type"] == "tuple_type" else f"[{name}]"
        return f"{where}{name} must be a table: write {header} on a line of its own, its keys below"
    message = detail["msg"].removeprefix("Input should ")
    if "date" in detail["type"]:
        message = "be a date, or a date and time, without quotes"
    shown = str(detail["input"])
    return f"{where}{name} must {message}; it is {shown if len(shown) <= 60 else shown[:60] + '...'}"


def _locate(loc: tuple[int | str, ...]) -> tuple[type[Part], str, tuple[int | str, ...]]:
    """The innermost table a fault lies in, how to find it in the file, and what of the place remains."""
    part: type[Part] = Book
    names: list[str] = []
    lists: list[str] = []
    place = ""
    while len(loc) > 1:
        field = next((f for k, f in part.model_fields.items() if (f.alias or k) == loc[0]), None)
        inner = _part_of(field.annotation) if field else None
        if inner is None:
            break
        names.append(str(loc[0]))
        if isinstance(loc[1], int):
            lists.append(f"[[{'.'.join(names)}]] number {loc[1] + 1}")
            place = " ".join(lists)
            loc = loc[2:]
        else:
            place = f"[{'.'.join(names)}]"
            loc = loc[1:]
        part = inner
    return part, place, loc


def _part_of(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Part) else None
    return next((found for inner in typing.get_args(annotation) if (found := _part_of(inner))), None)
