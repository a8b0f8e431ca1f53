"""What chaos happens to: a real Kafka of one broker or several, real `idlewatt` processes, and a small disk for the spool of each collector."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from idlewatt_command import COMMAND, environment, wait_until
from kafka_broker import cluster_of, die_with_parent, start_all
from prometheus_client.parser import text_string_to_metric_families

from idlewatt.cli.exit_codes import ExitCode
from idlewatt.stream import metric_names as names
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.settings import Settings

WINDOW_S: Final = 2
GRACE_S: Final = 6
SESSION_S: Final = 6.0
SITES: Final = ("a", "b")
POOLS: Final = ("chat", "code", "agents", "batch")
PROCESSORS: Final = ("processor-1", "processor-2")
EXTRA: Final = "processor-3"
# of the simulated factories' own: engines that crash, pages and GPUs that are away, drivers reloaded
OUTAGE_EVERY_S: Final = 30.0
# Some models have a price, some none: every way to price a lost token is taken. How a model's tokens are split over
# tiers hangs on how far the usage was read, so that all tiers cost the same, whole dollars a million: a micro-unit a
# token, which no split can round otherwise.
PRICES: Final = {"meta-llama/*": (13, 3, 1), "Qwen/*": (7, 2, 0), "deepseek-ai/*": (22, 5, 1)}
TIERS: Final = ("standard", "premium", "free")
BOOK: Final = (
    """
[tariff]
per_kwh = 0.1234
pue = 1.17
[cost]
use_published = false
[[capital]]
product = "*H100*"
per_gpu_hour = 1.99
"""
    + "".join(f'[[tier]]\nname = "{tier}"\n' for tier in TIERS)
    + "".join(
        f'[[price]]\nmodel = "{model}"\ntier = "{tier}"\noutput = {output}\ninput = {uncached}\ncached_input = {cached}\n'
        for model, (output, uncached, cached) in PRICES.items()
        for tier in TIERS
    )
)
# More than their boards ever draw. By the enforced limit some draw more for a moment: what they drew counts as
# available then, and how much that is depends on how a window was amended (docs/metering.md, "The waterfall").
PROVISIONED: Final = {
    "agents": {"provisioned_watts_per_gpu": 900.0},
    "code": {"provisioned_watts_per_gpu": 1300.0},
}
YARDSTICKS: Final = ({"model": "Qwen/*", "tokens_per_joule": 1.7}, {"tokens_per_joule": 2.0})
# rows of a few minutes fit in, compressed
_DISK_BYTES: Final = 2 * 1024 * 1024
_START_S: Final = 180.0
_STOP_S: Final = 30.0
_RESTART_PAUSE_S: Final = 0.5


class SmallDisk:
    """A tmpfs that one fault can fill. Needs root; without it the folder is a plain one, and nothing fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_small = False

    def mount(self) -> None:
        self.folder.mkdir()
        self.is_small = os.geteuid() == 0 and _mount(self.folder, f"size={_DISK_BYTES}")

    def fill(self) -> None:
        """Take all that is left."""
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        if self.is_small:
            detach = 2
            ctypes.CDLL(None).umount2(str(self.folder).encode(), detach)

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"


def _mount(folder: Path, options: str) -> bool:
    found: int = ctypes.CDLL(None).mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options.encode())
    return found == 0


class Member:
    """One `idlewatt` process, which a service manager keeps running: started again whenever it has ended."""

    def __init__(self, name: str, command: str, config: Path) -> None:
        self.name = name
        self.wanted = False
        self.frozen = False
        # what ended a process that was not told to end
        self.failures: list[str] = []
        # sums over all its lives of counters of its page, by family
        self.counted: Counter[str] = Counter()
        self._arguments = (*COMMAND, command, "--config", str(config))
        self._folder = config.parent
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: Counter[str] = Counter()
        self._not_before = 0.0
        # the signal that told this life to end, and until when it has to
        self._told: tuple[int, float] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self._folder / f"{self.name}.{self._lives}.log"

    def start(self) -> None:
        """Start it, and again whenever it ends."""
        self.wanted = True
        self.keep()

    def stop(self) -> None:
        """Tell it to end, and not to be started again."""
        self.end(signal.SIGTERM)

    def keep(self) -> None:
        """Look after it: to be called again and again."""
        if self._process is not None and (code := self._process.poll()) is not None:
            if not self._may_end_with(code):
                self.failures.append(f"{self.log.name}: ended with {code}: {self.log.read_text()[-1500:]}")
            self._process = self._told = None
            self._not_before = time.monotonic() + _RESTART_PAUSE_S
        if self._told is not None and time.monotonic() > self._told[1] and not self.frozen:
            self.failures.append(f"{self.log.name}: told to end, it did not; there stands where it was")
            self._told = (signal.SIGABRT, float("inf"))
            self.signal(signal.SIGABRT)
        if self.wanted and self._process is None and time.monotonic() >= self._not_before:
            self._lives += 1
            self.counted += self._seen
            self._seen = Counter()
            with self.log.open("wb") as output:
                self._process = subprocess.Popen(
                    self._arguments,
                    env=environment({"IDLEWATT_PORT": "0", "PYTHONFAULTHANDLER": "1"}),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=die_with_parent,
                )

    def signal(self, number: int) -> None:
        if self.runs:
            assert self._process is not None
            self._process.send_signal(number)
        self.frozen = number == signal.SIGSTOP

    def end(self, number: int) -> None:
        """Have it end, and not be started again before start()."""
        self.look()
        self.wanted = False
        if self.runs:
            self._told = (number, time.monotonic() + _STOP_S)
            self.signal(signal.SIGCONT)
            self.signal(number)

    def _may_end_with(self, code: int) -> bool:
        # only a start may fail for want of a broker; what serves waits for it to come back
        if code == ExitCode.UNREACHABLE and '"serving"' not in self.log.read_text():
            return True
        told = None if self._told is None else self._told[0]
        # Told before it could listen, it ends as any process does. Told while it still imports, Python with -m ends by
        # SIGINT: it has noted a KeyboardInterrupt that left an exec() of a text, as dataclasses have, though main() caught it.
        of_itself = (ExitCode.OK, -signal.SIGINT) if told == signal.SIGTERM else ()
        return told is not None and (code == -told or code in of_itself)

    def look(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Its page, {} if it does not answer; notes the counters on it."""
        if not self.runs or self.frozen:
            return {}
        found = {}
        with contextlib.suppress(OSError, ValueError, StopIteration):
            with urllib.request.urlopen(self._url(), timeout=2) as answer:
                text = answer.read().decode()
            seen: Counter[str] = Counter()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
                    if family.type == "counter":
                        seen[sample.name] += sample.value
            self._seen = seen
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """What all its lives have logged."""
        for life in range(1, self._lives + 1):
            for line in (self._folder / f"{self.name}.{life}.log").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def total(self, metric: names.Metric) -> int:
        """A counter over all its lives, as far as it was seen."""
        return round((self.counted + self._seen)[metric.name])

    def _url(self) -> str:
        lines = self.log.read_text().splitlines()
        return next(json.loads(line)["metrics"] for line in lines if '"serving"' in line)


class Scene:
    """Brokers, processors and collectors. All of it ends with this process, however it ends."""

    def __init__(self, folder: Path, java: Sequence[str], seed: int, brokers: int) -> None:
        self.folder = folder
        self.brokers = cluster_of(folder, java, brokers)
        self.settings = self.brokers[0].settings(
            log={"session_timeout_s": SESSION_S},
            process={
                "window_s": WINDOW_S,
                "grace_s": GRACE_S,
                "min_tokens": 10,
                "yardstick": YARDSTICKS,
                "pool": PROVISIONED,
                "group": f"chaos-{uuid.uuid4().hex[:8]}",
            },
            economy={"book": str(folder / "book.toml")},
        )
        (folder / "book.toml").write_text(BOOK)
        self.start_ms = unix_ms()
        self.seeds = {site: seed * 100 + n for n, site in enumerate(SITES)}
        self.disks = {site: SmallDisk(folder / f"spool-{site}") for site in SITES}
        self.processors = {
            name: Member(name, "process", self._configured(name, "beside", {}))
            for name in (*PROCESSORS, EXTRA)
        }
        self.collectors = {
            site: Member(f"collector-{site}", "collect", self._collector(site)) for site in SITES
        }
        self.members = {m.name: m for m in (*self.processors.values(), *self.collectors.values())}

    def start(self) -> None:
        """Return when every process serves."""
        for disk in self.disks.values():
            disk.mount()
        start_all(self.brokers)
        self.brokers[0].fresh_topics(self.settings)
        for member in self.members.values():
            if member.name != EXTRA:
                member.start()
        self.until(lambda: all(m.look() for m in self.members.values() if m.wanted), "all serve", _START_S)

    def kafka_is_whole(self) -> bool:
        return all(broker.answers() for broker in self.brokers)

    def keep(self) -> None:
        for member in self.members.values():
            member.keep()

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait, while what ends is started again."""

        def holds() -> bool:
            self.keep()
            return condition()

        wait_until(holds, what, timeout_s)

    def stop(self) -> None:
        """End everything at once and leave nothing behind but the folder."""
        for member in self.members.values():
            member.end(signal.SIGKILL)
        for disk in self.disks.values():
            disk.close()
        for broker in self.brokers:
            broker.remove()

    def _collector(self, site: str) -> Path:
        collect: dict[str, Any] = {
            "gpu": "simulated",
            "timeout_s": 1.0,
            "gateway_interval_s": 2.0,
            "node": f"node-{site}",
        }
        if "spool_path" in type(self.settings.collect).model_fields:
            collect["spool_path"] = str(self.disks[site].folder / "spool")
            collect["spool_max_bytes"] = _DISK_BYTES * 3 // 4
        simulate = {"seed": self.seeds[site], "start_ms": self.start_ms, "outage_every_s": OUTAGE_EVERY_S}
        return self._configured(f"collector-{site}", site, {"collect": collect, "simulate": simulate})

    def _configured(self, name: str, site: str, more: dict[str, Any]) -> Path:
        settings = Settings.model_validate({**self.settings.model_dump(exclude_unset=True), **more})
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join([f'site = "{site}"', *_toml(settings.model_dump(exclude_unset=True))]))
        return path


def _toml(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Tables of plain values and of lists of tables; JSON's texts and numbers are TOML's."""
    plain = {key: value for key, value in tree.items() if not _is_table(value)}
    yield from (f"{key} = {json.dumps(value)}" for key, value in plain.items() if value is not None)
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"[{prefix}{key}]"
            yield from _toml(value, f"{prefix}{key}.")
        elif _is_table(value):
            for one in value:
                yield f"[[{prefix}{key}]]"
                yield from _toml(one)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)
    )
