"""Runs the `idlewatt` command as a user does: in a process of its own, with an environment of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "idlewatt.cli.main")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of Idlewatt's, and with those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDLEWATT_")}
    kept.pop("DEMO_SECONDS", None)
    return kept | dict(extra or {})


def idlewatt(*arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> Any:
    """Run to the end; a CompletedProcess with text."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Serving:
    """A command that goes on until it is stopped; what it logs is kept in a file."""

    def __init__(self, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], env=environment(env), stdout=stderr, stderr=stderr
            )

    def events(self) -> list[dict[str, Any]]:
        """What it has logged, by line; fails on a line that is no JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def url(self) -> str:
        """Its metrics page; waits until it serves."""
        found: list[str] = []

        def serving() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            found[:] = [event["metrics"] for event in self.events() if event["event"] == "serving"]
            return bool(found)

        wait_until(serving, "it says that it serves")
        return found[0]

    def page(self) -> str:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            return str(answer.read().decode())

    def stop(self, signal_number: int = signal.SIGTERM) -> tuple[int, float]:
        """Exit code, and the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal_number)
        code = self.process.wait(30)
        return code, time.monotonic() - began


@contextlib.contextmanager
def serving(*arguments: str, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """Start a serving command on a free port; killed at the end if it still runs."""
    command = Serving(arguments, log, {"IDLEWATT_PORT": "0"} | dict(env or {}))
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"within {timeout_s:.0f} s it did not come true that {what}"
        time.sleep(0.1)


def taken_port() -> socket.socket:
    """A port of loopback that somebody else listens on, and the next one is free."""
    while True:
        held = socket.create_server(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return held
        held.close()
