"""What the page of /metrics costs a processor that has just committed: rendering, packing, and a scrape meanwhile."""

import gzip
import subprocess
import sys
import time
from statistics import quantiles
from typing import Any, Final

from idlewatt.processors.page import Page
from idlewatt.processors.processing import Processing
from idlewatt.stream.metrics_server import MetricsServer

_TICKING_S: Final = 5.0
_TICK_S: Final = 0.001
_SCRAPER: Final = """
import sys, time, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Accept-Encoding": "gzip"})
while True:
    began = time.monotonic()
    urllib.request.urlopen(request).read()
    print(time.monotonic() - began, flush=True)
    time.sleep(0.5)
"""


def page_cost(processing: Processing) -> dict[str, Any]:
    """Times in seconds of CPU or, for scrapes and stalls, of the clock; sizes in bytes."""
    body = processing.metrics_body()
    families_s = render_s = text_s = 0.0
    for runner in processing._runners.values():
        page = Page({})
        for partition, state in runner._states.items():
            began = time.process_time()
            families = list(runner._stage.families([state]))
            families_s += time.process_time() - began
            began = time.process_time()
            page.put(partition, families)
            render_s += time.process_time() - began
        began = time.process_time()
        page.text()
        text_s += time.process_time() - began
    began = time.process_time()
    packed = gzip.compress(body, compresslevel=1)
    gzip_s = time.process_time() - began
    quiet = _lateness_s()
    server = MetricsServer("127.0.0.1", 0, processing.metrics_body)
    server.start()
    scraper = subprocess.Popen(
        [sys.executable, "-c", _SCRAPER, server.url], stdout=subprocess.PIPE, text=True
    )
    try:
        assert scraper.stdout is not None
        scraper.stdout.readline()
        scraped = _lateness_s()
    finally:
        scraper.kill()
        scrapes = [float(line) for line in scraper.communicate()[0].splitlines()]
        server.stop()
    return {
        "families_s": families_s,
        "render_s": render_s,
        "text_s": text_s,
        "gzip_s": gzip_s,
        "gzip_bytes": len(packed),
        "scrape_s": sorted(scrapes)[len(scrapes) // 2],
        "quiet_p99_s": quiet[0],
        "quiet_max_s": quiet[1],
        "scraped_p99_s": scraped[0],
        "scraped_max_s": scraped[1],
    }


def _lateness_s() -> tuple[float, float]:
    """How late another thread of this process gets to run each millisecond: p99 and largest."""
    late = []
    end = time.monotonic() + _TICKING_S
    while (began := time.monotonic()) < end:
        time.sleep(_TICK_S)
        late.append(time.monotonic() - began - _TICK_S)
    return quantiles(late, n=100)[98], max(late)
