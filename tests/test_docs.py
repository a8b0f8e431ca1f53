"""The documentation is current: what is printed from code equals the code, and links lead somewhere."""

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from idlewatt.collectors.usage_post import UsageLine
from idlewatt.stream import topics
from idlewatt.stream.kafka_topics import _configs
from idlewatt.stream.metric_names import METRICS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_generated_parts_are_current() -> None:
    """`make docs` was run after the last change of settings or metrics."""
    generated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generated"]()
    assert {path.name for path in generated} == {"README.md", "configuration.md"}
    for path, text in generated.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run make docs"


def test_settings_of_topics_are_those_they_are_created_with() -> None:
    """Who creates topics beforehand finds each setting, and its value, in the architecture."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("### Topics and rights")[2].partition("\n## ")[0]
    for name in topics.ALL:
        assert f"`{name}`" in section
        for key, value in _configs(name, 3).items():
            assert f"`{key}`" in section
            assert re.search(rf"(?<!\w){value}\b", section), (name, key, value)


def test_fields_of_a_line_of_usage_are_those_that_are_taken() -> None:
    """Who posts usage finds each field of a line, and which of them are required."""
    section = (ROOT / "docs" / "metering.md").read_text().partition("| field | what it is |")[2]
    rows = re.findall(r"^\| (`.*?`) \| (required: )?", section.partition("\n\n")[0], flags=re.MULTILINE)
    told = {name: bool(required) for names, required in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == {name: field.is_required() for name, field in UsageLine.model_fields.items()}


def test_readme_has_every_metric_once() -> None:
    """The table of the README lists each metric once."""
    readme = (ROOT / "README.md").read_text()
    for metric in METRICS:
        assert readme.count(f"| `{metric.name}` |") == 1


def test_commands_of_the_readme_name_their_settings() -> None:
    """Typed word for word, one after the other, all of them go by the settings that the first of them writes."""
    readme = (ROOT / "README.md").read_text()
    for block in re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL):
        before, *commands = re.split(
            r"^idlewatt (?=run|collect|process|doctor|report|whatif|tail)", block, flags=re.M
        )
        for command in commands:
            assert "--config idlewatt.toml" in command or "export IDLEWATT_CONFIG=idlewatt.toml" in before


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_series_of_the_pages_have_their_labels(page: Path) -> None:
    """Each series that a page names is one of ours, by labels that it has."""
    labels = {metric.name: metric.labels for metric in METRICS}
    for name, selector in re.findall(r"\b(idlewatt_\w+)\{([^}]*)\}", page.read_text()):
        assert name in labels, f"{page.name}: there is no {name}"
        wrong = set(re.findall(r"(\w+) *[=!]", selector)) - set(labels[name])
        assert not wrong, f"{page.name}: {name} has no label {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_queries_of_the_pages_stand_where_they_are_tried(page: Path) -> None:
    """A query over a range is in a block of `promql`, which a real Prometheus answers in the tests of panels."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"\bidlewatt_\w+(?:\{[^}]*\})?\[", text)


def _links(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    yield from re.findall(r"\]\((?!https?://)([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file, and a heading in it where it says so."""
    for link in _links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {link}"


def test_make_help_lists_every_target() -> None:
    """A dozen targets or so, each with a word of explanation."""
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert f"make {target} " in result.stdout
