"""Who spent a counter's tokens: from the labels of a gateway to names, by the rules of the settings."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from idlewatt.stream.globs import matches
from idlewatt.stream.settings import Consumer

# as settings.Consumer calls them
NAMES: Final = ("function", "team", "agent_family", "engineer", "tier", "model")
_VALUE: Final = "{value}"


class ConsumerNames:
    """Rules in their order, then what the gateway's kind knows by itself."""

    def __init__(
        self, rules: Sequence[Consumer], built_in: Sequence[tuple[str, str]], unset: Collection[str]
    ) -> None:
        """`built_in`: label, and the name it gives. `unset`: values of a label that mean that there is none."""
        self._rules = [
            *rules,
            *(Consumer.model_validate({"label": label, name: _VALUE}) for label, name in built_in),
        ]
        self._unset = unset

    def of(self, labels: Mapping[str, str]) -> dict[str, str]:
        """NAMES that some rule gives; each by the first one that fits."""
        names: dict[str, str] = {}
        for rule in self._rules:
            value = labels.get(rule.label, "")
            if value in self._unset or not matches(value, rule.match):
                continue
            for name in NAMES:
                given = getattr(rule, name)
                if given is not None:
                    names.setdefault(name, given.replace(_VALUE, value))
        return names
