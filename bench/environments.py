"""Throw-away environments of other programs under .cache/bench, made at the first run. None is a dependency of ours."""

import subprocess
import sys
import venv
from pathlib import Path
from shutil import copytree, rmtree

from bench import CACHE


def python_with(name: str, *packages: str) -> Path:
    """The interpreter of a virtual environment with these packages from PyPI."""
    folder = CACHE / f"venv-{name}"
    mark = folder / "packages"
    wanted = "\n".join(packages)
    if not mark.exists() or mark.read_text() != wanted:
        print(f"  installing {', '.join(packages)}", flush=True)
        rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _run(
            [
                str(folder / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                *packages,
            ]
        )
        mark.write_text(wanted)
    return folder / "bin" / "python"


def java_class_path(source: Path) -> str:
    """A Maven project, built with what it depends on."""
    folder = CACHE / source.name
    built = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    fresh = all(
        (folder / file.relative_to(source)).exists()
        and (folder / file.relative_to(source)).read_bytes() == content
        for file, content in built.items()
    )
    if not fresh or not (folder / "libs").is_dir():
        print(f"  building {source.name} with Maven", flush=True)
        rmtree(folder, ignore_errors=True)
        copytree(source, folder)
        goals = [
            "package",
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={folder / 'libs'}",
        ]
        _run(["mvn", "--batch-mode", "--quiet", "--file", str(folder / "pom.xml"), *goals])
    return f"{folder / 'target'}/*:{folder / 'libs'}/*"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
        raise RuntimeError(f"{' '.join(command[:4])} ... failed")
