"""The house: what is shipped equals the tree, and imports run one way."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("cli", "collectors", "dashboards", "processors", "stream")
# who may import whom; everybody may import their own stage
MAY_IMPORT = {
    "cli": {"collectors", "processors", "dashboards", "stream"},
    "collectors": {"stream"},
    "processors": {"stream"},
    "dashboards": {"stream"},
    "stream": set(),
}


def _setuptools() -> dict[str, Any]:
    tool: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return tool


def test_every_package_is_listed() -> None:
    """A folder with code that pyproject does not list would be missing from the wheel."""
    found = {
        ".".join(("idlewatt", *file.parent.relative_to(ROOT).parts))
        for stage in STAGES
        for file in (ROOT / stage).rglob("*.py")
    }
    assert set(_setuptools()["packages"]) == found
    for package in found:
        folder = ROOT / Path(*package.split(".")[1:])
        assert (folder / "__init__.py").is_file()


def test_every_stage_is_mapped_and_typed() -> None:
    """Each stage has its import path and says that it is typed."""
    assert _setuptools()["package-dir"] == {f"idlewatt.{stage}": stage for stage in STAGES}
    for stage in STAGES:
        assert (ROOT / stage / "py.typed").is_file()
        # what type checkers look at instead of the import path
        assert (ROOT / ".view" / "idlewatt" / stage).resolve() == ROOT / stage


def test_the_namespace_holds_no_code() -> None:
    """idlewatt itself is a namespace: an __init__.py would hide the stages of the editable install."""
    assert not (ROOT / "idlewatt").exists()
    assert not (ROOT / "__init__.py").exists()


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            module = node.module or ""
            yield from (
                [module] if module != "idlewatt" else [f"idlewatt.{alias.name}" for alias in node.names]
            )


@pytest.mark.parametrize("stage", STAGES)
def test_imports_run_one_way(stage: str) -> None:
    """cli uses the others, these never use each other, and stream uses none of them."""
    allowed = MAY_IMPORT[stage] | {stage}
    for file in (ROOT / stage).rglob("*.py"):
        for name in _imports(file):
            first, _, rest = name.partition(".")
            assert first not in STAGES, f"{file.relative_to(ROOT)} imports {name}: import idlewatt.{name}"
            if first == "idlewatt":
                assert rest.partition(".")[0] in allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_every_dependency_is_used() -> None:
    """What users must install is imported somewhere, and what is imported is installed."""
    modules = {
        "kafka-python": "kafka",
        "nvidia-ml-py": "pynvml",
        "prometheus-client": "prometheus_client",
        "pyyaml": "yaml",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {entry.partition(">")[0] for entry in project["dependencies"]}
    declared = {modules.get(name, name) for name in names}
    imported = {
        name.partition(".")[0]
        for stage in STAGES
        for file in (ROOT / stage).rglob("*.py")
        for name in _imports(file)
    }
    standard = __import__("sys").stdlib_module_names
    third_party = {name for name in imported if name not in standard and name != "idlewatt"}
    # pydantic brings its core
    assert third_party - {"pydantic_core"} == declared
