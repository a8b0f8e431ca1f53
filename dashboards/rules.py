"""Recording rules of recording.py and alerts of alerts.py as YAML."""

from typing import Any, Final

import yaml

from idlewatt.dashboards.alerts import ALERTS, AlertRule
from idlewatt.dashboards.recording import RECORDING, RECORDING_DAY, RecordingRule

# YAML width at which no expression is folded, so that one can search for it
WHOLE_LINES: Final = 100_000


def recording_yaml() -> str:
    """The file of recording rules."""
    return _groups_yaml(
        [
            _group("idlewatt.pools", "30s", [_recorded(rule) for rule in RECORDING]),
            _group("idlewatt.pools.day", "2m", [_recorded(rule) for rule in RECORDING_DAY]),
        ],
        "recording.py",
    )


def alerts_yaml() -> str:
    """The file of alert rules."""
    return _groups_yaml([_group("idlewatt.alerts", "30s", [_alert(rule) for rule in ALERTS])], "alerts.py")


def _recorded(rule: RecordingRule) -> dict[str, Any]:
    return {"record": rule.record, "expr": rule.expr}


def _alert(rule: AlertRule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.lasting,
        "labels": {"severity": rule.severity},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "runbook_url": rule.runbook_url,
        },
    }


def _group(name: str, interval: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "interval": interval, "rules": rules}


def _groups_yaml(groups: list[dict[str, Any]], source: str) -> str:
    header = f"# Written by `idlewatt dashboards`; change dashboards/{source} instead.\n"
    return header + yaml.safe_dump({"groups": groups}, sort_keys=False, width=WHOLE_LINES, allow_unicode=True)
