"""Prometheus on the same GPUs: one energy counter each, scraped every second, and a recording rule every 10 s."""

import contextlib
import http.server
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_server import PrometheusServer

from bench import CACHE, ROOT
from bench.fleet import GPUS_PER_POOL, pool_name
from bench.measuring import Usage, memory_mib, usage_of

_WARM_UP_S: Final = 20.0
_MEASURED_S: Final = 30.0
_RULES: Final = """groups:
- name: joules
  interval: 10s
  rules:
  - record: gpu:energy_joules:increase10s
    expr: increase(gpu_energy_joules_total[10s])
"""
_CONFIG: Final = """global: {scrape_interval: 1s, scrape_timeout: 1s}
rule_files: [rules.yml]
scrape_configs:
"""
_TARGET: Final = """- job_name: {pool}
  metrics_path: /{pool}
  static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def version() -> str:
    """Of the binary on the path; empty where there is none."""
    if not shutil.which("prometheus"):
        return ""
    done = subprocess.run(["prometheus", "--version"], check=True, capture_output=True, text=True)
    return (done.stdout + done.stderr).split()[2].partition("+")[0]


def measure(gpus: int) -> tuple[int, Usage, float]:
    """Samples scraped, CPU and wall time meanwhile, and peak memory in MiB."""
    pools = -(-gpus // GPUS_PER_POOL)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, _exporter(pools) as port:
        config = _CONFIG + "".join(
            _TARGET.format(pool=pool_name(pool)[1], port=port) for pool in range(pools)
        )
        server = PrometheusServer(Path(folder), config, {"rules.yml": _RULES})
        try:
            pid = server._process.pid
            time.sleep(_WARM_UP_S)
            before = usage_of(pid)
            time.sleep(_MEASURED_S)
            used = usage_of(pid) - before
            memory = memory_mib(pid, "VmHWM")
            samples = server.value(f"sum(count_over_time(gpu_energy_joules_total[{used.wall_s:.0f}s]))")
            _check(server, pools)
        finally:
            server.stop()
    return round(samples), used, memory


def _check(server: PrometheusServer, pools: int) -> None:
    """Raise unless the rule has a value for every GPU, and they are right to a tenth in sum."""
    count = server.value("count(gpu:energy_joules:increase10s)")
    ratio = server.value("sum(gpu:energy_joules:increase10s)") / sum(
        _watts(gpu) * 10 for gpu in range(pools * GPUS_PER_POOL)
    )
    if count != pools * GPUS_PER_POOL or not 0.9 < ratio < 1.1:
        raise RuntimeError(
            f"Prometheus has {count:.0f} GPUs, and their joules are {ratio:.3f} of what they should be"
        )


@contextmanager
def _exporter(pools: int) -> Iterator[int]:
    """A process that serves a page per pool; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.prometheus", str(pools)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def _watts(gpu: int) -> int:
    return 300 + gpu * 7919 % 300


def _serve(pools: int) -> None:
    pages = {}
    for pool in range(pools):
        site, name = pool_name(pool)
        gpus = range(pool * GPUS_PER_POOL, (pool + 1) * GPUS_PER_POOL)
        pages[f"/{name}"] = [
            (f'gpu_energy_joules_total{{site="{site}",pool="{name}",gpu="{gpu}"}} ', _watts(gpu))
            for gpu in gpus
        ]
    began = time.time()

    class Page(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            passed_s = time.time() - began
            lines = [f"{series}{watts * passed_s:.3f}\n" for series, watts in pages[self.path]]
            body = ("# TYPE gpu_energy_joules_total counter\n" + "".join(lines)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            # Prometheus hangs up when it is told to end
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
