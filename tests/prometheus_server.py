"""A real Prometheus for tests: on a free port of the loopback, with the configuration a test gives it."""

import ctypes
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_APT: Final = ("apt-get", "install", "-y", "--no-install-recommends", "prometheus", "prometheus-alertmanager")


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an instant query's result; `value` is NaN or infinite where Prometheus says so."""

    labels: Mapping[str, str]
    value: float


class PrometheusServer:
    """One running Prometheus that belongs to one test."""

    def __init__(self, folder: Path, config: str, files: Mapping[str, str]) -> None:
        """`config` is the text of prometheus.yml; `files` are texts by path relative to it."""
        self.folder = folder
        self.log_path = folder / "prometheus.log"
        for name, text in {"prometheus.yml": config, **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.url = f"http://127.0.0.1:{_free_port()}"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait_until(self._is_ready, "Prometheus is ready", _START_S)
        except BaseException:
            self.stop()
            raise

    def query(self, expr: str, at: float | None = None) -> list[Sample]:
        """Result of an instant query, now or at a Unix time in seconds. Scalars come as one sample without labels."""
        result = self._get("query", {"query": expr} | ({} if at is None else {"time": f"{at:.3f}"}))
        if result["resultType"] in ("scalar", "string"):
            return [Sample({}, float(result["result"][1]))]
        return [Sample(series["metric"], float(series["value"][1])) for series in result["result"]]

    def value(self, expr: str, at: float | None = None) -> float:
        """The value of a query that must have exactly one series; NaN counts as a failure."""
        samples = self.query(expr, at)
        assert len(samples) == 1, f"{expr} has {len(samples)} series: {samples}"
        assert not math.isnan(samples[0].value), f"{expr} is NaN"
        return samples[0].value

    def wait_for(self, expr: str, timeout_s: float = 30.0) -> list[Sample]:
        """Result of a query as soon as it has any."""
        found: list[Sample] = []

        def has_any() -> bool:
            found[:] = self.query(expr)
            return bool(found)

        self._wait_until(has_any, f"{expr} has a result", timeout_s)
        return found

    def targets(self) -> list[dict[str, Any]]:
        """Active scrape targets, with health and lastError."""
        active: list[dict[str, Any]] = self._get("targets", {"state": "active"})["activeTargets"]
        return active

    def rules(self) -> list[dict[str, Any]]:
        """Loaded rules of all groups, with their health and, for alerts, what fires."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def stop(self) -> None:
        """Stop the server; its log stays in the folder."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus ended with {self._process.returncode}:\n{self._log()}")
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                pass
        except OSError:
            return False
        flags = self._get("status/flags", {})
        found, mine = flags["storage.tsdb.path"], str(self.folder / "data")
        assert found == mine, f"another Prometheus (of {found}) answers at {self.url}"
        return True

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def _wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"within {timeout_s:.0f} s it did not come true that {what}\n{self._log()}"
                )
            time.sleep(0.1)

    def _log(self) -> str:
        return self.log_path.read_text(errors="replace")[-3000:]


StartPrometheus = Callable[..., PrometheusServer]


@pytest.fixture(scope="session")
def prometheus_tools() -> None:
    """Prometheus and promtool are there, or the test is skipped with the line that mends it."""
    if not _has_tools() and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], list(_APT)):
            subprocess.run(command, check=False, capture_output=True, timeout=600)
    if not _has_tools():
        pytest.skip("needs Prometheus and promtool: sudo apt-get install prometheus prometheus-alertmanager")


@pytest.fixture
def prometheus_server(prometheus_tools: None, tmp_path: Path) -> Iterator[StartPrometheus]:
    """Starts servers: prometheus_server(config, files={}) -> PrometheusServer. All of them end with the test."""
    started: list[PrometheusServer] = []

    def start(config: str, files: Mapping[str, str] | None = None) -> PrometheusServer:
        server = PrometheusServer(tmp_path / f"prometheus-{len(started)}", config, files or {})
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def _has_tools() -> bool:
    return all(shutil.which(tool) for tool in ("prometheus", "promtool"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _die_with_parent() -> None:
    # a test run that is killed leaves no server behind
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
