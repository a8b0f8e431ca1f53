"""Fixtures: a scripted libnvidia-ml.so.1 (nvml_shim/nvml.c), and NvmlGpus reading it in another process.

The loader takes its search path from the environment a process starts with, hence the other process.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SHIM = Path(__file__).parent / "nvml_shim"


class NvmlScript:
    """The shim's directory, and the file that tells it what to do."""

    def __init__(self, library: Path, script: Path) -> None:
        self.library = library
        self.path = script
        self.write("gpus 1")

    def write(self, text: str) -> None:
        """Replace the script; the next call to the library follows it."""
        new = self.path.with_suffix(".new")
        new.write_text(textwrap.dedent(text) + "\n")
        new.replace(self.path)

    @property
    def environment(self) -> dict[str, str]:
        """For processes that shall find the shim."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library.parent),
            "NVML_SHIM_SCRIPT": str(self.path),
        }


class NvmlReader:
    """NvmlGpus in another process; see nvml_shim/reader.py for the requests."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SHIM / "reader.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the reader died with {self._process.wait(10)}"
        return json.loads(answer)

    def read(self, at_s: float = 1.0) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("read", at_s=at_s)
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build the shim, with preprocessor definitions if any are given; returns the library's path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the NVML tests need a C compiler: apt-get install gcc")
    built: dict[tuple[str, ...], Path] = {}

    def build(*definitions: str) -> Path:
        if definitions not in built:
            library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
            command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
            command += ["-Wl,-soname,libnvidia-ml.so.1", *(f"-D{name}" for name in definitions)]
            subprocess.run([*command, "-o", str(library), str(SHIM / "nvml.c")], check=True)
            built[definitions] = library
        return built[definitions]

    return build


@pytest.fixture(scope="session")
def nvml_reader(
    nvml_library: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[NvmlScript, NvmlReader]]:
    """One process for all tests, as a collector's process lives through everything a driver does."""
    script = NvmlScript(nvml_library(), tmp_path_factory.mktemp("nvml-script") / "script")
    reader = NvmlReader(script.environment)
    yield script, reader
    reader.stop()


@pytest.fixture
def nvml(nvml_reader: tuple[NvmlScript, NvmlReader]) -> Iterator[tuple[NvmlScript, NvmlReader]]:
    """The script and a freshly opened NvmlGpus that sees the host's processes."""
    script, reader = nvml_reader
    script.write("gpus 1")
    reader.ask("open", sees_every_process=True)
    yield script, reader
    script.write("gpus 1")
    reader.ask("close")


@pytest.fixture
def start_reader() -> Iterator[Callable[[dict[str, str]], NvmlReader]]:
    """Start another reader with an environment of its own."""
    readers: list[NvmlReader] = []

    def start(environment: dict[str, str]) -> NvmlReader:
        readers.append(NvmlReader(environment))
        return readers[-1]

    yield start
    for reader in readers:
        reader.stop()
