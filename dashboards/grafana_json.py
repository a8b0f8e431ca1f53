"""From what grafanalib writes to what Grafana 11 and 12 write themselves.

grafanalib 0.7.1 stops at schema version 12: Grafana would run thirty migrations on every load, leave
queries without a letter, and not resolve data sources given by name. `modernised` puts that right and
refuses the panel types that Grafana 12 no longer has.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from grafanalib._gen import DashboardEncoder
from grafanalib.core import Dashboard

Json = dict[str, Any]

# what Grafana 11.6 and 12.0 export; newer ones migrate from here without a change of meaning
SCHEMA_VERSION: Final = 41
DATASOURCE: Final[Mapping[str, str]] = {"type": "prometheus", "uid": "${datasource}"}

# all that grafanalib can write and Grafana 12 can draw; the rest of grafanalib's are Angular panels or
# write options of before Grafana 9
PANEL_TYPES: Final = frozenset({"bargauge", "row", "stat", "table", "text", "timeseries"})

_DASHBOARD_KEYS: Final = (
    "annotations",
    "description",
    "editable",
    "graphTooltip",
    "links",
    "refresh",
    "tags",
    "time",
    "timezone",
    "title",
    "uid",
)
_PANEL_KEYS: Final = (
    "collapsed",
    "description",
    "fieldConfig",
    "gridPos",
    "id",
    "interval",
    "links",
    "maxDataPoints",
    "options",
    "timeFrom",
    "title",
    "transformations",
    "type",
)
_UID: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")


def dashboard_text(dashboard: Dashboard) -> str:
    """The dashboard as the text of a file, keys sorted so that a change shows as a small difference."""
    raw = json.loads(json.dumps(dashboard.auto_panel_ids().to_json_data(), cls=DashboardEncoder))
    return json.dumps(modernised(raw), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def modernised(raw: Mapping[str, Any]) -> Json:
    """Current dashboard JSON from grafanalib's.

    Raises ValueError for a missing or overlong uid, a panel type that Grafana 12 cannot draw, and a
    variable type other than datasource and query.
    """
    uid = raw.get("uid") or ""
    if not _UID.fullmatch(uid):
        raise ValueError(f"uid {uid!r} must be 1 to 40 letters, digits, - or _")
    return {
        **_present(raw, _DASHBOARD_KEYS),
        "id": None,
        "schemaVersion": SCHEMA_VERSION,
        "panels": [_panel(panel) for panel in raw["panels"]],
        "templating": {"list": [_variable(variable) for variable in raw["templating"]["list"]]},
        "timepicker": {"refresh_intervals": raw["timepicker"]["refresh_intervals"]},
    }


def _panel(raw: Mapping[str, Any]) -> Json:
    if raw["type"] not in PANEL_TYPES:
        raise ValueError(
            f"panel {raw['title']!r} has type {raw['type']!r}, which Grafana 12 cannot draw; "
            f"use one of {', '.join(sorted(PANEL_TYPES))}"
        )
    panel = _present(raw, _PANEL_KEYS)
    if raw["type"] == "row":
        for key in ("fieldConfig", "maxDataPoints"):
            panel.pop(key, None)
        return {**panel, "panels": [_panel(inner) for inner in raw["panels"]]}
    panel["datasource"] = dict(DATASOURCE)
    panel["targets"] = [
        _target(target, chr(ord("A") + position)) for position, target in enumerate(raw["targets"])
    ]
    if raw["type"] == "bargauge":
        _lift_field_options(panel)
    if raw["type"] == "table":
        custom = panel["fieldConfig"]["defaults"]["custom"]
        custom["cellOptions"] = {"type": custom.pop("displayMode", "auto")}
    if "legend" in panel.get("options", {}):
        panel["options"]["legend"]["showLegend"] = True
    defaults = panel["fieldConfig"]["defaults"]
    defaults["thresholds"] = _thresholds(defaults["thresholds"])
    panel["fieldConfig"]["overrides"] = panel["fieldConfig"].get("overrides", [])
    return panel


def _target(raw: Mapping[str, Any], ref_id: str) -> Json:
    return {
        "datasource": dict(DATASOURCE),
        "editorMode": "code",
        "expr": raw["expr"],
        "format": raw["format"],
        "instant": raw["instant"],
        "legendFormat": raw["legendFormat"] or "__auto",
        "range": not raw["instant"],
        "refId": ref_id,
    }


def _lift_field_options(panel: Json) -> None:
    """The bar gauge of before Grafana 7 kept its field's settings among its options."""
    options = panel["options"]
    old = options.pop("fieldOptions")
    panel["fieldConfig"]["defaults"] |= {
        key: value
        for key, value in old["defaults"].items()
        if key in ("decimals", "max", "min", "unit") and value is not None
    }
    panel["options"] = {
        "displayMode": options["displayMode"],
        "orientation": options["orientation"],
        "reduceOptions": {"calcs": old["calcs"], "fields": "", "values": False},
    }


def _thresholds(raw: Mapping[str, Any]) -> Json:
    """Steps with their value alone. The first one stands for minus infinity, which JSON writes as null."""
    steps = [{"color": step["color"], "value": step["value"]} for step in raw["steps"] or ()]
    if steps:
        steps[0]["value"] = None
    return {"mode": raw["mode"], "steps": steps or [{"color": "text", "value": None}]}


def _variable(raw: Mapping[str, Any]) -> Json:
    variable = _present(raw, ("allValue", "hide", "includeAll", "label", "multi", "name", "type"))
    if raw["type"] == "datasource":
        return variable | {"current": {}, "options": [], "query": raw["query"], "refresh": 1, "regex": ""}
    if raw["type"] != "query":
        raise ValueError(f"variable {raw['name']!r} has type {raw['type']!r}; use datasource or query")
    return variable | {
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": dict(DATASOURCE),
        "definition": raw["query"],
        "options": [],
        "query": {
            "qryType": 1,
            "query": raw["query"],
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        },
        # 2: whenever the time range changes, so that a pool of last week can be chosen
        "refresh": 2,
        "regex": "",
        "sort": raw["sort"],
    }


def _present(raw: Mapping[str, Any], keys: Sequence[str]) -> Json:
    return {key: _without_nulls(raw[key]) for key in keys if raw.get(key) is not None}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
