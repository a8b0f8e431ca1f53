"""Writes everything the servers around Idlewatt need into one folder; deploy/ is its committed output."""

from collections.abc import Sequence
from pathlib import Path

from idlewatt.dashboards import provisioning, rules
from idlewatt.dashboards.economics import economics
from idlewatt.dashboards.grafana_json import dashboard_text
from idlewatt.dashboards.overview import overview
from idlewatt.stream.errors import IdlewattError


def generated_files(
    targets: Sequence[str] | None = None, collectors_dns: str | None = None
) -> dict[str, str]:
    """Text of every generated file, by its path in the folder: for compose.yaml, or for processes at these addresses.

    See prometheus_yaml(). Raises IdlewattError for `collectors_dns` without `targets`: no processor would be read.
    """
    if collectors_dns and not targets:
        raise IdlewattError("--collectors-dns needs a --target HOST:PORT for each processor beside it")
    dashboards = {dashboard.uid: dashboard_text(dashboard) for dashboard in (overview(), economics())}
    return {
        **{f"grafana/dashboards/{uid}.json": text for uid, text in dashboards.items()},
        "grafana/provisioning/dashboards/idlewatt.yaml": provisioning.dashboard_provider_yaml(),
        "grafana/provisioning/datasources/idlewatt.yaml": provisioning.datasources_yaml(),
        "prometheus/prometheus.yml": provisioning.prometheus_yaml(targets, collectors_dns, ())
        if targets
        else provisioning.prometheus_yaml(),
        "prometheus/rules/idlewatt.recording.yaml": rules.recording_yaml(),
        "prometheus/rules/idlewatt.alerts.yaml": rules.alerts_yaml(),
        "alertmanager/alertmanager.yml": provisioning.alertmanager_yaml(),
    }


def write_all(
    out: Path, targets: Sequence[str] | None = None, collectors_dns: str | None = None
) -> list[Path]:
    """Write the generated files into the folder `out` and return their paths. The others: see generated_files().

    Raises IdlewattError, also if the folder cannot be written to.
    """
    written = []
    for name, text in generated_files(targets, collectors_dns).items():
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise IdlewattError(
                f"cannot write {path}: {error.strerror}; name a folder you may write to with --out"
            ) from error
        written.append(path)
    return written
