"""The page of /metrics for 1,000 pools: time to render, bytes, and what a scrape does to the rest of the process."""

from typing import Final

from bench.fleet import GPUS_PER_POOL
from bench.processor import PARTITIONS, measured
from bench.recorded import fresh_outputs, recorded
from bench.report import Part, Table

_POOLS: Final = 1_000
_SECONDS: Final = 30


def run() -> Part:
    with recorded(_POOLS * GPUS_PER_POOL, "nodes", _SECONDS, PARTITIONS) as (broker, fleet):
        found = measured(fresh_outputs(broker, PARTITIONS), fleet, page=True)
    page = found["page"]
    whole_s = page["families_s"] + page["render_s"] + page["text_s"]
    table = Table("of the page", "")
    table.add("pools", f"{_POOLS:,}")
    table.add("series", f"{found['page_series']:,}")
    table.add("bytes", f"{found['page_bytes']:,}")
    table.add("bytes with gzip", f"{page['gzip_bytes']:,}")
    table.add("CPU ms to make it whole", f"{whole_s * 1e3:.0f}")
    table.add("of these: figures from the state", f"{page['families_s'] * 1e3:.0f}")
    table.add("of these: their text", f"{page['render_s'] * 1e3:.0f}")
    table.add("of these: putting it together", f"{page['text_s'] * 1e3:.1f}")
    table.add("CPU ms to gzip it, per scrape", f"{page['gzip_s'] * 1e3:.0f}")
    table.add("ms a scrape takes, median", f"{page['scrape_s'] * 1e3:.0f}")
    table.add(
        "ms another thread waits, scrapes twice a second: p99, largest",
        f"{page['scraped_p99_s'] * 1e3:.1f}, {page['scraped_max_s'] * 1e3:.1f}",
    )
    table.add(
        "ms another thread waits, no scrapes: p99, largest",
        f"{page['quiet_p99_s'] * 1e3:.1f}, {page['quiet_max_s'] * 1e3:.1f}",
    )
    note = (
        "A commit renders only the partitions it moves on; a scrape gets bytes that are there already. The wait is that of a "
        "thread that asks to run each millisecond, as the poll loop would."
    )
    values = {
        "page_render_milliseconds": round(whole_s * 1e3, 1),
        "page_bytes": found["page_bytes"],
        "scrape_stall_p99_milliseconds": round(page["scraped_p99_s"] * 1e3, 2),
    }
    return Part("metrics_page", [table], values, [note])
