"""Writes the parts of the documentation that are printed from code: `make docs`. A test holds them current."""

from collections.abc import Iterator
from pathlib import Path

from idlewatt.cli.config_sample import configuration_page
from idlewatt.stream.metric_names import METRICS, Metric

_ROOT = Path(__file__).parent.parent
_BEGIN = "<!-- metrics: written by `make docs` from stream/metric_names.py -->"
_END = "<!-- end of metrics -->"
_TITLES = {
    "meter": "Watts and tokens",
    "economy": "Money",
    "collector": "The collector itself",
    "pipeline": "The processor itself",
}


def generated() -> dict[Path, str]:
    """Every file that is generated or has a generated part, with the text it must have."""
    readme = _ROOT / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    tail = rest.partition(_END)[2]
    return {
        _ROOT / "docs" / "configuration.md": configuration_page(),
        readme: f"{head}{_BEGIN}\n{metrics_table()}\n{_END}{tail}",
    }


def metrics_table() -> str:
    """Every metric, by what it tells about."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for stage, title in _TITLES.items():
        yield f"\n**{title}**\n"
        yield "| metric | type | labels | what it says |"
        yield "|---|---|---|---|"
        for metric in METRICS:
            if metric.stage == stage:
                yield _row(metric)


def _row(metric: Metric) -> str:
    return f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.help} |"


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(_ROOT)}")
