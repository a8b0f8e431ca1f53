"""Reads the settings: defaults, then one TOML file, then the environment. Every fault is told at once."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from idlewatt.cli import settings_tree
from idlewatt.cli.config_faults import describe
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.settings import Settings

FILE_VARIABLE: Final = "IDLEWATT_CONFIG"
_PREFIX: Final = "IDLEWATT_"
_SHORT_NAMES: Final = {"IDLEWATT_PORT": ("serve", "port")}

# Kubernetes sets these in every pod of a namespace that has a Service called idlewatt or idlewatt-something.
_KUBERNETES_NAME: Final = re.compile(r"IDLEWATT_(\w+_)?(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP))(_\w+)?")
_KUBERNETES_PORT: Final = re.compile(r"(tcp|udp|sctp)://")


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Load the settings from `path`, else from the file IDLEWATT_CONFIG names, else from defaults alone.

    The environment wins over the file. Raises ConfigError with one line for each fault.
    """
    if path is None and environ.get(FILE_VARIABLE):
        path = Path(environ[FILE_VARIABLE])
    tree = _read(path) if path else {}
    variables, faults = _from_environment(environ)
    for key_path, (_, value) in variables.items():
        _put(tree, key_path, value)
    try:
        # the JSON way in is the one that is strict ("9477" is no number) and yet takes lists for tuples
        settings = Settings.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        names = {key_path: name for key_path, (name, _) in variables.items()}
        faults += describe(error, str(path) if path else "settings", names)
        raise ConfigError("\n".join(faults)) from None
    origin = path or "settings"
    faults += [f"{origin}: {fault}" for fault in _grace_faults(settings)]
    if faults:
        raise ConfigError("\n".join(faults))
    return settings


def _grace_faults(settings: Settings) -> Iterator[str]:
    """Readings further apart than two thirds of the grace are taken for an outage: everything would be dark.

    So it would be where rows come when their windows are closed, as by the rows of other nodes.
    """
    grace_s, collect = settings.process.grace_s, settings.collect
    for name in ("gpu_interval_s", "engine_interval_s"):
        least_s = 1.5 * getattr(collect, name)
        if grace_s < least_s:
            yield (
                f"[process] grace_s must be at least {least_s:g}, 1.5 times collect.{name}: "
                f"with {grace_s:g} no reading would count as measured. Set it alike here and where processors run"
            )
    read_s = [collect.gpu_interval_s] if collect.gpu != "none" else []
    read_s += [collect.engine_interval_s] if collect.engine else []
    slowest_s = max(read_s, default=0.0)
    # 0.1 + 0.2 is more than 0.3
    latest_s = round(slowest_s + collect.send_interval_s, 6)
    if read_s and 1.5 * slowest_s <= grace_s < latest_s:
        yield (
            f"[process] grace_s must be at least {latest_s:g}, collect.send_interval_s and the slower of gpu_interval_s and "
            f"engine_interval_s together: with {grace_s:g} rows would come too late for live figures. Raise it here and "
            "where processors run, or lower collect.send_interval_s"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        # utf-8-sig: some editors put a byte order mark before the first key
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; make one with: idlewatt config > {path.name}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        # with lines to spare, a fault in the last line is told with its number
        return tomllib.loads(text + "\n\n")
    # TOMLDecodeError, or a number of thousands of digits
    except ValueError as error:
        raise ConfigError(f"{path}: {_syntax_fault(str(error), text)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep") from None


def _syntax_fault(message: str, text: str) -> str:
    place = re.search(r"at line (\d+)", message)
    line = text.splitlines()[int(place[1]) - 1] if place and int(place[1]) <= text.count("\n") + 1 else ""
    key, _, value = (part.strip() for part in line.partition("="))
    if re.match(r"\d[\d._]*\s*[A-Za-z%]", value):
        return f"not valid TOML: {key} must be a plain number, without a unit ({message})"
    return f"not valid TOML: {message[0].lower()}{message[1:]}"


def _from_environment(
    environ: Mapping[str, str],
) -> tuple[dict[settings_tree.Path, tuple[str, Any]], list[str]]:
    """What the variables set, by the path of the key, as (variable, value); and what is wrong with their names."""
    known = _known_variables()
    found: dict[settings_tree.Path, tuple[str, Any]] = {}
    faults = []
    for name, value in environ.items():
        if not name.startswith(_PREFIX) or name == FILE_VARIABLE or not value or _kubernetes(name, value):
            continue
        if name in known:
            found[known[name]] = (name, _value(known[name], value))
        else:
            # the prefix is the same for all: with it, everything is near
            names = [other.removeprefix(_PREFIX) for other in (*known, FILE_VARIABLE)]
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), names, n=1)
            hint = f"did you mean {_PREFIX}{near[0]}?" if near else "idlewatt config lists what there is"
            faults.append(f"environment: there is no setting {name}; {hint}")
    return found, faults


def _known_variables() -> dict[str, settings_tree.Path]:
    names: dict[str, settings_tree.Path] = {}
    for path, section in settings_tree.sections().items():
        if section.shape == "table":
            names |= {settings_tree.environment_name((*path, key)): (*path, key) for key in section.keys}
        else:
            names[settings_tree.environment_name(path)] = path
    return names | _SHORT_NAMES


def _kubernetes(name: str, value: str) -> bool:
    return bool(_KUBERNETES_NAME.fullmatch(name)) or (
        name.endswith("_PORT") and bool(_KUBERNETES_PORT.match(value))
    )


def _value(path: settings_tree.Path, value: str) -> Any:
    """Text is taken as it stands; numbers, lists and tables are written as in the file."""
    section = settings_tree.sections().get(path[:-1])
    key = section.keys.get(path[-1]) if section else None
    if key and key.is_text:
        return value
    try:
        parsed = tomllib.loads(f"value = {value}")
    except ValueError:
        return value
    return parsed["value"] if len(parsed) == 1 else value


def _put(tree: dict[str, Any], path: settings_tree.Path, value: Any) -> None:
    for name in path[:-1]:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            # a section written as a value: the check of the whole tells it
            return
        tree = inner
    tree[path[-1]] = value
