"""The settings tree as plain data: what the reader of the file, the sample and the docs all go by."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from idlewatt.stream.settings import Settings

Path = tuple[str, ...]

# the unit that the end of a key's name stands for
_UNITS: Final = {
    "_s": "seconds",
    "_bytes": "bytes",
    "watts_per_gpu": "watts",
    "tokens_per_joule": "tokens per joule",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting. `example` stands where there is no default to show."""

    name: str
    description: str
    # "a number of seconds, 0.1 to 60": what the value must be
    accepts: str
    is_text: bool
    required: bool
    default: Any
    example: Any

    @property
    def shown(self) -> Any:
        """The value to show a reader: the default, or an example where there is none."""
        return self.example if self.default is None else self.default


@dataclass(frozen=True, slots=True)
class Section:
    """A table of keys: written once, as [[list]] of tables, or as [map.NAME] of tables."""

    path: Path
    shape: Literal["table", "list", "map"]
    description: str
    keys: Mapping[str, Key]
    children: tuple[str, ...]

    @property
    def header(self) -> str:
        """How TOML begins it; empty for the top of the file."""
        dotted = ".".join(self.path)
        if not self.path:
            return ""
        return {"table": f"[{dotted}]", "list": f"[[{dotted}]]", "map": f"[{dotted}.NAME]"}[self.shape]

    @property
    def known(self) -> tuple[str, ...]:
        """Every name that may stand in it."""
        return (*self.keys, *self.children)


@functools.cache
def sections() -> Mapping[Path, Section]:
    """Every section by its path, in the order of the file; () is the top."""
    schema = Settings.model_json_schema()
    return {section.path: section for section in _walk(schema, schema, (), "table", schema["description"])}


def environment_name(path: Path) -> str:
    """The variable that sets the key, or the whole list, at `path`."""
    return "IDLEWATT_" + "__".join(path).upper()


def _walk(
    root: dict[str, Any], schema: dict[str, Any], path: Path, shape: Any, description: str
) -> Iterator[Section]:
    keys: dict[str, Key] = {}
    children: list[tuple[str, dict[str, Any], str, str]] = []
    for name, field in schema["properties"].items():
        shape_of_field, reference = _section_of(field)
        if reference:
            target = root["$defs"][reference.rpartition("/")[2]]
            text = field.get("description", target["description"])
            children.append((name, target, shape_of_field, text))
        else:
            keys[name] = _key(name, field, required=name in schema.get("required", ()))
    yield Section(path, shape, description, keys, tuple(child[0] for child in children))
    for name, target, shape_of_field, text in children:
        yield from _walk(root, target, (*path, name), shape_of_field, text)


def _section_of(field: dict[str, Any]) -> tuple[str, str]:
    """The shape and the schema reference of a field that is a section; the reference is empty if it is none."""
    for shape, holder in (
        ("table", field),
        ("list", field.get("items", {})),
        ("map", field.get("additionalProperties", {})),
    ):
        if "$ref" in holder:
            return shape, str(holder["$ref"])
    return "", ""


def _key(name: str, field: dict[str, Any], *, required: bool) -> Key:
    # "this or null" is how the schema says that a setting may be left out
    kind = next((option for option in field.get("anyOf", ()) if option["type"] != "null"), field)
    return Key(
        name=name,
        description=field["description"],
        accepts=_accepts(name, kind | {k: v for k, v in field.items() if k == "accepts"}),
        is_text=kind["type"] == "string",
        required=required,
        default=field.get("default"),
        example=next(iter(field.get("examples", ())), None),
    )


def _accepts(name: str, schema: dict[str, Any]) -> str:
    if "accepts" in schema:
        return str(schema["accepts"])
    if "enum" in schema:
        return "one of " + ", ".join(f'"{word}"' for word in schema["enum"])
    match schema["type"]:
        case "array":
            return f"a list of {_accepts(name, schema['items']).replace('one of', 'any of', 1)}"
        case "integer" | "number":
            words = "a whole number" if schema["type"] == "integer" else "a number"
            unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), None)
            return words + (f" of {unit}" if unit else "") + _limits(schema)
        case "boolean":
            return "true or false"
        case _:
            return "text"


def _limits(schema: dict[str, Any]) -> str:
    match schema:
        case {"minimum": low, "maximum": high}:
            return f", {low} to {high:.12g}"
        case {"exclusiveMinimum": low, "maximum": high}:
            return f", above {low}, at most {high:.12g}"
        case {"minimum": low}:
            return f", at least {low}"
        case _:
            return ""
