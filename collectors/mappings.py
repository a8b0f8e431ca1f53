"""Looks up what is written about a kind of server: a module of a package that ends in `MAPPING = ...`."""

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

from idlewatt.stream.errors import ConfigError

M = TypeVar("M")


def kinds(package: ModuleType) -> tuple[str, ...]:
    """The modules of a package, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def mapping(package: ModuleType, kind: str, mapping_type: type[M], what: str) -> M:
    """The mapping of a kind. Raises ConfigError for one that nobody has written; `what` says what there is none of."""
    known = kinds(package)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no {what} is called {kind!r}; known: {', '.join(known)}.{meant}")
    module = f"{package.__name__}.{kind}"
    found = importlib.import_module(module).MAPPING
    if not isinstance(found, mapping_type):
        raise TypeError(f"{module}.MAPPING is no {mapping_type.__name__}")
    return found
