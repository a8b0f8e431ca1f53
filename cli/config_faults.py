"""Words for what is wrong with the settings: the place, the key, what it must be, and how to mend it."""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from idlewatt.cli import settings_tree
from idlewatt.cli.settings_tree import Key, Section

_LONGEST_VALUE: Final = 60
# a number as text, with the one unit that can be dropped: 500 ms is not 500 seconds
_DROPPABLE: Final = {"seconds": "s", "watts": "W", "bytes": "B"}


def describe(error: ValidationError, source: str, variables: Mapping[settings_tree.Path, str]) -> list[str]:
    """One line for each fault, beginning with the file, or with the variable that set the value."""
    lines: dict[str, None] = {}
    blamed: list[tuple[int | str, ...]] = []
    # a bad member of a list is also reported as a list that is too short: the longer place says more
    for detail in sorted(error.errors(include_url=False), key=lambda detail: -len(detail["loc"])):
        loc = detail["loc"]
        if any(place[: len(loc)] == loc and detail["type"] == "too_short" for place in blamed):
            continue
        blamed.append(loc)
        path = tuple(part for part in loc if isinstance(part, str))
        variable = next((name for key, name in variables.items() if path[: len(key)] == key), None)
        origin = f"environment: {variable}" if variable else source
        lines[f"{origin}: {_fault(detail)}"] = None
    return sorted(lines)


def _fault(detail: ErrorDetails) -> str:
    section, place, rest = _locate(detail["loc"])
    where = f"{place} " if place else ""
    kind, value = detail["type"], detail["input"]
    if kind == "value_error":
        return f"{where}{detail['msg'].removeprefix('Value error, ')}"
    name = rest[0] if rest else ""
    key = section.keys.get(name)
    if kind == "extra_forbidden":
        what = f"section [{name}]" if isinstance(value, dict) and not place else f"key {name}"
        return f"{place or 'the file'} has no {what}; {_nearest(section, name, value)}"
    if key is None:
        return _not_a_section(section, name)
    if kind == "missing":
        return (
            f"{where}needs {name} ({key.description.rstrip('.')}), such as {name} = {json.dumps(key.shown)}"
        )
    return f"{where}{name} must be {key.accepts}{_but(key, value, member=len(rest) > 1)}"


def _locate(loc: tuple[int | str, ...]) -> tuple[Section, str, list[str]]:
    """The innermost section a fault lies in, how to find it in the file, and what of the place remains."""
    tree = settings_tree.sections()
    path: settings_tree.Path = ()
    place = ""
    parts: list[int | str] = list(loc)
    while parts and (*path, str(parts[0])) in tree:
        inner = tree[(*path, str(parts[0]))]
        if inner.shape != "table" and len(parts) == 1:
            break
        path = inner.path
        parts.pop(0)
        place = inner.header
        if inner.shape == "list" and isinstance(parts[0], int):
            place = f"{inner.header} number {int(parts.pop(0)) + 1}"
        elif inner.shape == "map":
            place = inner.header.replace("NAME", str(parts.pop(0)))
    return tree[path], place, [str(part) for part in parts]


def _nearest(section: Section, name: str, value: Any) -> str:
    """The right name for a wrong one: close by, or the same name in its own section."""
    if near := difflib.get_close_matches(name, section.known, n=1):
        return f"did you mean {near[0]}?"
    homes = [home.header for home in settings_tree.sections().values() if name in home.known and home.header]
    if homes:
        return f"it belongs in {' or '.join(homes)}"
    if isinstance(value, dict):
        return f"sections there: {', '.join(section.children) or 'none'}"
    return f"keys there: {', '.join(section.keys) or 'none'}"


def _not_a_section(section: Section, name: str) -> str:
    """Something stands where a table, or a list of tables, must."""
    target = settings_tree.sections().get((*section.path, name), section)
    what = "a list of sections" if target.shape == "list" else "a section"
    return (
        f"{'.'.join(target.path)} must be {what}: write {target.header} on a line of its own, its keys below"
    )


def _but(key: Key, value: Any, *, member: bool) -> str:
    if key.name.endswith(("password", "token")):
        return ""
    shown = json.dumps(value, ensure_ascii=False)
    if len(shown) > _LONGEST_VALUE:
        shown = shown[:_LONGEST_VALUE] + "..."
    hint = _hint(key, value) if isinstance(value, str) else ""
    return f"; {'one' if member else 'it'} is {shown}{hint}"


def _hint(key: Key, value: str) -> str:
    if "number" in key.accepts:
        unit = next((sign for words, sign in _DROPPABLE.items() if words in key.accepts), "")
        number = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*{unit}", value) or re.fullmatch(r"(\d+(?:\.\d+)?)", value)
        plain = f", {key.name} = {number[1]}" if number else ""
        return f": write a plain number, without quotes or unit{plain}"
    # the words it may be stand in quotes
    near = difflib.get_close_matches(value, key.accepts.split('"')[1::2], n=1)
    return f": did you mean {near[0]}?" if near else ""
