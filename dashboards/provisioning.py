"""Configuration of the servers around Idlewatt: Prometheus, Alertmanager, Grafana's data sources and dashboards."""

from collections.abc import Sequence
from typing import Any, Final

import yaml

from idlewatt.dashboards.queries import JOB
from idlewatt.dashboards.rules import WHOLE_LINES
from idlewatt.stream.metric_names import METRICS
from idlewatt.stream.settings import Serve

PORT: Final[int] = Serve.model_fields["port"].default
SCRAPE_INTERVAL: Final = "10s"
PROMETHEUS_UID: Final = "idlewatt-prometheus"
ALERTMANAGER_UID: Final = "idlewatt-alertmanager"
# where compose.yaml mounts the dashboards
DASHBOARDS_PATH: Final = "/var/lib/grafana/dashboards"

_WRITTEN: Final = "# Written by `idlewatt dashboards`; change dashboards/provisioning.py instead.\n"
_ON_INSTANCES: Final = """\
#
# Figures of pools (watts, tokens, money) carry no `instance`. A pool is served by one processor at a time,
# and when another takes it over, the counters go on from the committed state: without the label it is the
# same series, and increase() over a handover is right. With it, each handover would begin a new series and
# lose what was counted in between. Two processors of a group never serve one pool, so no two targets write one series.
# Each box with `idlewatt run` is a group of its own: give it a site of its own (IDLEWATT_SITE).
# Figures of a process itself (pipeline, collector, up) keep theirs.
"""


def prometheus_yaml(
    targets: Sequence[str] = (f"process-1:{PORT}", f"process-2:{PORT}"),
    collectors_dns: str | None = "collect",
    alertmanagers: Sequence[str] = ("alertmanager:9093",),
    scrape_interval: str = SCRAPE_INTERVAL,
) -> str:
    """prometheus.yml; rules are read from the folder `rules` beside it.

    `targets` are host:port of Idlewatt processes; every address of the DNS name `collectors_dns` is scraped
    as well. The defaults are the services of compose.yaml.
    """
    scrape: dict[str, Any] = {
        "job_name": JOB,
        "static_configs": [{"targets": list(targets)}],
        "metric_relabel_configs": [
            {
                "source_labels": ["__name__"],
                "regex": "|".join(m.name for m in METRICS if m.stage in ("meter", "economy")),
                "target_label": "instance",
                "replacement": "",
            }
        ],
    }
    if collectors_dns:
        scrape["dns_sd_configs"] = [
            {"names": [collectors_dns], "type": "A", "port": PORT, "refresh_interval": "15s"}
        ]
    document: dict[str, Any] = {
        "global": {
            "scrape_interval": scrape_interval,
            "scrape_timeout": scrape_interval,
            "evaluation_interval": scrape_interval,
        },
        "rule_files": ["rules/*.yaml"],
        "scrape_configs": [scrape],
    }
    if alertmanagers:
        document["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]}
    return _WRITTEN + _ON_INSTANCES + _dumped(document)


def alertmanager_yaml() -> str:
    """alertmanager.yml: alerts are grouped and shown; nobody is notified until a receiver is told how."""
    return (
        _WRITTEN
        + "# Add an integration (email, Slack, PagerDuty, a webhook) to the receiver to be notified.\n"
        + _dumped(
            {
                "route": {
                    "receiver": "operators",
                    "group_by": ["alertname", "site"],
                    "group_wait": "30s",
                    "group_interval": "5m",
                    "repeat_interval": "12h",
                },
                "inhibit_rules": [
                    # a pool that is not measured has no trustworthy waste or yield, and its engines lack the same GPUs
                    {
                        "source_matchers": ['alertname=~"IdlewattPoolDark|IdlewattWindowClockStalled"'],
                        "target_matchers": [
                            'alertname=~"IdlewattWastedWatts|IdlewattTokensPerJouleFell|IdlewattEnginesDark"'
                        ],
                        "equal": ["site", "pool"],
                    }
                ],
                "receivers": [{"name": "operators"}],
            }
        )
    )


def datasources_yaml() -> str:
    """Grafana's data sources."""
    return _WRITTEN + _dumped(
        {
            "apiVersion": 1,
            "datasources": [
                {
                    "name": "Prometheus",
                    "type": "prometheus",
                    "uid": PROMETHEUS_UID,
                    "access": "proxy",
                    "url": "http://prometheus:9090",
                    "isDefault": True,
                    "jsonData": {
                        "httpMethod": "POST",
                        # longer than a scrape, so that $__rate_interval spans six windows of the meter
                        "timeInterval": "15s",
                        "manageAlerts": True,
                        "alertmanagerUid": ALERTMANAGER_UID,
                    },
                },
                {
                    "name": "Alertmanager",
                    "type": "alertmanager",
                    "uid": ALERTMANAGER_UID,
                    "access": "proxy",
                    "url": "http://alertmanager:9093",
                    "jsonData": {"implementation": "prometheus"},
                },
            ],
        }
    )


def dashboard_provider_yaml() -> str:
    """Where Grafana finds the dashboards."""
    return _WRITTEN + _dumped(
        {
            "apiVersion": 1,
            "providers": [
                {
                    "name": "idlewatt",
                    "folder": "Idlewatt",
                    "type": "file",
                    "allowUiUpdates": False,
                    "disableDeletion": True,
                    "options": {"path": DASHBOARDS_PATH},
                }
            ],
        }
    )


def _dumped(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=WHOLE_LINES, allow_unicode=True)
