"""Every query of every dashboard as Prometheus gets it, with Grafana's variables replaced, and those of the docs."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from idlewatt.dashboards.writing import generated_files

# longest names first: $site must not eat the head of a longer one
VARIABLES: Final[Mapping[str, str]] = {
    "$__rate_interval": "1m",
    "$__range": "1h",
    "$site": ".+",
    "$pool": ".+",
}


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One target of one panel."""

    dashboard: str
    panel: str
    ref_id: str
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel} / {self.ref_id}"


def dashboards() -> dict[str, dict[str, Any]]:
    """The generated dashboards by uid."""
    texts = {name: text for name, text in generated_files().items() if name.startswith("grafana/dashboards/")}
    parsed = [json.loads(text) for text in texts.values()]
    return {dashboard["uid"]: dashboard for dashboard in parsed}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels, those in collapsed rows too; rows themselves are left out."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panels(panel)
        else:
            yield panel


def panel_queries(variables: Mapping[str, str] = VARIABLES) -> list[PanelQuery]:
    """Every query of every dashboard. Raises ValueError if a variable is left in one."""
    queries = []
    for uid, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expr = target["expr"]
                for name, value in variables.items():
                    expr = expr.replace(name, value)
                if "$" in expr:
                    raise ValueError(f"{uid} / {panel['title']}: a variable is left in {expr}")
                queries.append(PanelQuery(uid, panel["title"], target["refId"], expr))
    return queries


def page_queries() -> list[str]:
    """Every query that README.md and docs/ show."""
    root = Path(__file__).parent.parent
    pages = (root / "README.md", *sorted((root / "docs").glob("*.md")))
    texts = (page.read_text(encoding="utf-8") for page in pages)
    return [query for text in texts for query in re.findall(r"```promql\n(.*?)```", text, flags=re.DOTALL)]
