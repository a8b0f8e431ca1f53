"""The commented sample file, and docs/configuration.md: both printed from the settings tree."""

import json
from collections.abc import Iterator
from typing import Any, Final

from idlewatt.cli import settings_tree
from idlewatt.cli.settings_tree import Key, Section

_SAMPLE_HEAD: Final = """\
# Idlewatt reads one TOML file. Every setting stands here with its default, or with an example where it has none.
# Lines that begin with # and a blank explain; take the # from a line that has no blank behind it to set its key.
# A variable wins over the file: IDLEWATT_SECTION__KEY, such as IDLEWATT_SERVE__HOST=0.0.0.0.
"""

_DOCS_HEAD: Final = """\
<!-- Written by `make docs` from stream/settings.py: change the descriptions there. -->
# Configuration

Idlewatt reads one TOML file: `idlewatt run --config idlewatt.toml`, or the file that `IDLEWATT_CONFIG` names.
Without a file the defaults hold. `idlewatt config > idlewatt.toml` writes a file with every setting and its default,
commented out.

- **The environment wins over the file.** Each key has a variable: `IDLEWATT_SECTION__KEY`, with two underscores.
  Text is taken as it stands; numbers and lists are written as in the file
  (`IDLEWATT_PROCESS__STAGES='["meter"]'`). A list of sections is set whole
  (`IDLEWATT_COLLECT__ENGINE='[{url = "http://127.0.0.1:8000/metrics"}]'`). `IDLEWATT_PORT` is short for
  `IDLEWATT_SERVE__PORT`. An empty variable counts as not set.
- **Nothing is guessed.** An unknown key, section or `IDLEWATT_` variable, a wrong type or a value out of its limits
  ends the start with exit code 2 and one line for each fault, with the nearest right name. The variables that
  Kubernetes adds for a Service called `idlewatt` are left alone.
- **The unit stands in the name.** `_s` is seconds, written as a plain number: `10` or `0.5`, not `"10s"`.

Keep passwords out of the file: `IDLEWATT_LOG__SASL_PASSWORD`.
"""


def sample() -> str:
    """A TOML file with every key commented out; it loads as it is and with every key uncommented."""
    return _SAMPLE_HEAD + "\n" + "\n".join(_section_lines(section) for section in _sections())


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    return _DOCS_HEAD + "".join(_section_page(section) for section in _sections())


def _sections() -> Iterator[Section]:
    return iter(settings_tree.sections().values())


def _toml(value: Any) -> str:
    # JSON writes text, numbers, booleans and lists of them as TOML does
    return json.dumps(value, ensure_ascii=False)


def _section_lines(section: Section) -> str:
    lines = []
    if section.path:
        lines.append(f"# {section.description}")
    if section.shape == "list":
        lines.append("# Repeat the section for each.")
    # an empty [[list]] would lack its required keys; an empty [section] is harmless
    header = section.header.replace("NAME", "chat")
    if header:
        lines.append(header if section.shape == "table" else f"#{header}")
    for key in section.keys.values():
        lines.append(" ".join(["#", key.description, *_limits(key)]))
        lines.append(f"#{key.name} = {_toml(key.shown)}")
    return "\n".join(lines) + "\n"


def _limits(key: Key) -> Iterator[str]:
    # the value beside it shows that it is text
    if not key.accepts.startswith("text"):
        yield f"{key.accepts[0].upper()}{key.accepts[1:]}."
    if key.required:
        yield "Required."
    elif key.default is None:
        yield "No default."


def _section_page(section: Section) -> str:
    title = f"`{section.header}`" if section.header else "Top of the file"
    variable = settings_tree.environment_name(section.path)
    lines = ["", f"## {title}", "", section.description]
    if section.shape == "list":
        lines[-1] += f" Repeat the section for each; `{variable}` sets the whole list."
    elif section.shape == "map":
        lines[-1] += f" `{variable}` sets all of them."
    lines += ["", "| key | default | must be | meaning |", "|---|---|---|---|"]
    lines += [_row(key) for key in section.keys.values()]
    return "\n".join(lines) + "\n"


def _row(key: Key) -> str:
    without = "required" if key.required else "not set"
    default = without if key.default is None else f"`{_toml(key.default)}`"
    example = f" Example: `{_toml(key.example)}`." if key.default is None else ""
    # a bar would end the cell, and a lone * begins emphasis
    return f"| `{key.name}` | {default} | {key.accepts} | {_cell(key.description)}{example} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
