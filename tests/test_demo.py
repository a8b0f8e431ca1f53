"""`idlewatt demo`: real figures within seconds, only such as /metrics serves, and a clean end."""

import contextlib
import fcntl
import os
import pty
import re
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from idlewatt_command import COMMAND, environment, idlewatt, taken_port
from rich.console import Console

from idlewatt.cli.demo_figures import Scrape, site_figures, sums
from idlewatt.cli.demo_screen import lines, screen, summary

WATTS = re.compile(r"([\d.]+) (k?)W")


def watts(text: str) -> list[float]:
    return [float(number) * (1000 if kilo else 1) for number, kilo in WATTS.findall(text)]


def test_a_pipe_gets_figures_a_summary_and_the_next_free_port() -> None:
    """Without a terminal the demo prints lines; it ends by itself, and a taken port is answered aloud."""
    with taken_port() as held:
        port = held.getsockname()[1]
        # the factory starts, its first two windows close, a rate is known
        result = idlewatt("demo", env={"DEMO_SECONDS": "18", "IDLEWATT_PORT": str(port)})
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    out = result.stdout
    assert f"port {port} is taken: using {port + 1}, the next free one" in out
    assert f"metrics: http://127.0.0.1:{port + 1}/metrics" in out
    site = re.search(
        r"^site ([\d,]+) tokens/s, .* ([\d.]+) tokens/J, lost ([\d,.]+) USD/h, benchmark", out, re.M
    )
    assert site is not None, out
    assert int(site[1].replace(",", "")) > 0
    # a quarter of the factory stands idle all day
    assert float(site[3].replace(",", "")) > 0
    waterfall = re.search(r"^  available .*$", out, re.M)
    assert waterfall is not None
    available, *parts = watts(waterfall[0])
    # each is rounded to 0.1 kW
    assert sum(parts) == pytest.approx(available, abs=50 * len(parts))
    assert {name for name in ("agents", "batch", "chat", "code") if f"  pool {name}: " in out} == {
        "agents",
        "batch",
        "chat",
        "code",
    }
    assert re.search(r"^  [\d,]+ output tokens from 0\.\d+ kWh", out, re.M)
    assert re.search(r"^  \d+\.\d% of the watts drawn were wasted", out, re.M)
    moneys = re.search(r"in three moneys: (\S+) USD of .*; (\S+) USD of .*; (\S+) USD of electricity", out)
    assert moneys is not None
    assert all(float(amount.replace(",", "")) > 0 for amount in moneys.groups())


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The demo on a terminal of its own, and the other end of that terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "demo"],
        env=environment({"TERM": "xterm", "COLUMNS": "100", "LINES": "40", "IDLEWATT_PORT": "0"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # only the terminal that controls a session turns Ctrl-C into a signal
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(terminal: int, pattern: str, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    seen = ""
    while not re.search(pattern, seen):
        assert time.monotonic() < deadline, seen
        # EIO: the other end is closed
        with contextlib.suppress(OSError):
            seen += os.read(terminal, 65_536).decode(errors="replace")
    return seen


def test_a_terminal_gets_a_screen_and_ctrl_c_ends_it() -> None:
    """On a terminal the figures are refreshed in place; Ctrl-C sums up and exits 0."""
    with _terminal() as (process, terminal):
        seen = _read_until(terminal, r"makes tokens(?s:.*)USD lost/h", 40)
        # no screen before the first watt
        assert not re.search(r"sum +0 W", seen)
        # whoever draws in place goes up again
        seen = _read_until(terminal, r"\x1b\[1A", 10)
        os.write(terminal, b"\x03")
        seen = _read_until(terminal, r"at the benchmark of 150 bn USD", 10)
        assert "metered in this demo:" in seen
        assert "Traceback" not in seen
        assert process.wait(10) == 0


PAGE = """\
# TYPE idlewatt_tokens counter
idlewatt_tokens_total{{site="s",pool="a",model_name="m",kind="output"}} {tokens}
idlewatt_tokens_total{{site="s",pool="a",model_name="m",kind="input"}} 999999
# TYPE idlewatt_energy_joules counter
idlewatt_energy_joules_total{{site="s",pool="a",state="serving",scope="it"}} {serving}
idlewatt_energy_joules_total{{site="s",pool="a",state="idle_free",scope="it"}} {idle}
idlewatt_energy_joules_total{{site="s",pool="a",state="serving",scope="facility"}} 999999
# TYPE idlewatt_window_end_timestamp_seconds gauge
idlewatt_window_end_timestamp_seconds{{site="s",pool="a"}} {end}
# TYPE idlewatt_tokens_per_joule gauge
idlewatt_tokens_per_joule{{site="s",pool="a",window="1m",kind="output"}} 0.5
# TYPE idlewatt_power_watts gauge
idlewatt_power_watts{{site="s",pool="a",state="serving",part="draw"}} 300
idlewatt_power_watts{{site="s",pool="a",state="serving",part="headroom"}} 400
idlewatt_power_watts{{site="s",pool="a",state="idle_free",part="draw"}} 100
idlewatt_power_watts{{site="s",pool="a",state="idle_free",part="headroom"}} 200
"""


def test_rates_are_differences_over_event_time() -> None:
    """Tokens per second and watts are what the counters gained per second of closed windows."""
    older = Scrape(PAGE.format(tokens=1000, serving=5000, idle=1000, end=100))
    newer = Scrape(PAGE.format(tokens=9000, serving=8000, idle=2000, end=110))
    figures = site_figures(older, newer)
    assert figures.tokens_per_s == 800
    assert figures.watts == 400
    assert figures.tokens_per_joule == 2
    assert figures.available_watts == 1000
    total = sums(newer)
    assert total.output_tokens == 9000
    assert total.wasted_share == 0.2
    assert total.kwh == pytest.approx(10_000 / 3_600_000)


def test_a_pool_s_yield_belongs_to_its_row() -> None:
    """Tokens per joule are the row's tokens/s by its watts, of the same seconds, and withheld where the meter withholds them."""
    older = PAGE.format(tokens=1000, serving=5000, idle=1000, end=100)
    newer = PAGE.format(tokens=9000, serving=8000, idle=2000, end=110)
    (pool,) = site_figures(Scrape(older), Scrape(newer)).pools
    assert (pool.tokens_per_s, pool.watts, pool.tokens_per_joule) == (800, 400, 2)
    withheld = "".join(line for line in newer.splitlines(keepends=True) if "tokens_per_joule{" not in line)
    (pool,) = site_figures(Scrape(older), Scrape(withheld)).pools
    assert (pool.tokens_per_s, pool.watts, pool.tokens_per_joule) == (800, 400, None)


def test_what_is_withheld_is_a_dash_and_never_zero() -> None:
    """Without a window between two scrapes there is no rate, and without a series no figure."""
    scrape = Scrape(PAGE.format(tokens=1000, serving=5000, idle=1000, end=100))
    figures = site_figures(scrape, scrape)
    assert figures.tokens_per_s is None
    assert figures.tokens_per_joule is None
    assert figures.lost_per_hour is None
    assert next(lines(figures)) == "site - tokens/s, - of 1.0 kW, - tokens/J, lost -/h, benchmark -/h"
    assert site_figures(Scrape(""), Scrape("")).pools == ()


LOSSES = """\
# TYPE idlewatt_window_end_timestamp_seconds gauge
idlewatt_window_end_timestamp_seconds{site="s",pool="a"} 100
idlewatt_window_end_timestamp_seconds{site="s",pool="b"} 100
# TYPE idlewatt_lost_revenue counter
idlewatt_lost_revenue_total{site="s",pool="a",state="idle_free",part="draw",demand="none",currency="USD"} 7
# TYPE idlewatt_lost_revenue_per_hour gauge
idlewatt_lost_revenue_per_hour{site="s",pool="a",window="1m",currency="USD"} 166
# TYPE idlewatt_benchmark_lost_revenue_per_hour gauge
idlewatt_benchmark_lost_revenue_per_hour{site="s",pool="a",window="1m",currency="USD"} 200
"""
LOSSES_OF_B = """\
idlewatt_lost_revenue_per_hour{site="s",pool="b",window="1m",currency="USD"} 34
"""


def test_a_loss_that_one_pool_withholds_is_not_the_site_s() -> None:
    """The site loses what all of its pools do; the sum at the end names those whose part of it is not known."""
    some = Scrape(LOSSES)
    figures = site_figures(some, some)
    assert [pool.lost_per_hour for pool in figures.pools] == [166, None]
    assert figures.lost_per_hour is None
    assert figures.benchmark_per_hour is None
    assert "7.00 USD of tokens not sold, without some of pool b;" in "\n".join(summary(sums(some)))
    known = Scrape(LOSSES + LOSSES_OF_B)
    assert site_figures(known, known).lost_per_hour == 200
    assert "7.00 USD of tokens not sold;" in "\n".join(summary(sums(known)))


def test_the_screen_fits_a_small_terminal() -> None:
    """With every state at work the screen is no wider than 80 and no higher than 24 or so."""
    every = "".join(
        f'idlewatt_power_watts{{site="s",pool="p{n}",state="{state}",part="{part}"}} 12345\n'
        for n in range(4)
        for state in ("serving", "idle_loaded", "idle_free", "other", "dark")
        for part in ("draw", "headroom")
    )
    ends = "".join(
        f'idlewatt_window_end_timestamp_seconds{{site="s",pool="pool-{n}"}} 10\n' for n in range(4)
    )
    figures = site_figures(Scrape(every + ends), Scrape(every + ends))
    console = Console(width=80, force_terminal=False, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.capture() as capture:
        console.print(screen(figures, "http://127.0.0.1:9477/metrics"))
    shown = capture.get().splitlines()
    assert len(shown) <= 25
    assert "sum" in capture.get()
    assert not any("…" in line for line in shown)
