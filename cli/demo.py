"""A living factory on one screen: the whole pipeline in one process, over hardware that is simulated."""

import contextlib
import http.client
import tempfile
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live

from idlewatt.cli.book_sample import SAMPLE_BOOK
from idlewatt.cli.config import load_settings
from idlewatt.cli.demo_figures import Scrape, SiteFigures, site_figures, sums
from idlewatt.cli.demo_screen import lines, screen, summary, waiting
from idlewatt.cli.exit_codes import ExitCode
from idlewatt.cli.serving import Service, running
from idlewatt.collectors.simulated.plant import DEFAULT_PLANT
from idlewatt.stream.settings import Collect, Economy, Log, Process, Settings, Yardstick

_PORTS_TRIED: Final = 100
_SCRAPE_INTERVAL_S: Final = 1.0
_LINES_INTERVAL_S: Final = 5.0
# rates are over so many scrapes: long enough to be steady, short enough to see the load move
_SCRAPES_KEPT: Final = 11
_TIMEOUT_S: Final = 10.0


def demo_settings(environ: Mapping[str, str], folder: Path) -> Settings:
    """A fast factory with a book and yardsticks; site, port and simulation are the user's. Raises ConfigError."""
    given = load_settings(None, environ)
    book = folder / "book.toml"
    book.write_text(SAMPLE_BOOK, encoding="utf-8")
    return Settings(
        site=given.site,
        log=Log(path=str(folder / "log.db")),
        collect=Collect(
            gpu="simulated",
            gpu_interval_s=0.5,
            engine_interval_s=0.5,
            gateway_interval_s=1.0,
            send_interval_s=0.25,
        ),
        process=Process(window_s=2, grace_s=3.0, yardstick=tuple(_yardsticks())),
        economy=Economy(book=str(book)),
        serve=given.serve,
        simulate=given.simulate,
    )


def _yardsticks() -> Iterator[Yardstick]:
    """What each deployment yields at its best; an empty GPU is held against the least of its product."""
    best = {
        (node.product.name, deployment.model_name): deployment.full_tokens_per_s / deployment.full_w
        for node in DEFAULT_PLANT.nodes
        for deployment in (holding.deployment for holding in node.holdings)
        if deployment is not None
    }
    for (product, model), tokens_per_joule in best.items():
        yield Yardstick(product=product, model=model, tokens_per_joule=tokens_per_joule)
    for product in sorted({product for product, _ in best}):
        least = min(value for (other, _), value in best.items() if other == product)
        yield Yardstick(product=product, tokens_per_joule=least)


def demo(environ: Mapping[str, str], seconds: float | None) -> ExitCode:
    """Show the factory for `seconds`, or until KeyboardInterrupt, and sum up. Raises ConfigError."""
    ends_at = time.monotonic() + seconds if seconds else float("inf")
    console = Console(highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idlewatt-demo-")))
        settings = demo_settings(environ, folder)
        port = settings.serve.port
        ports = [port] if port == 0 else range(port, min(port + _PORTS_TRIED, 65_536))
        service = stack.enter_context(running(settings, ports, collect=True, process=True))
        if port and (found := urllib.parse.urlsplit(service.url).port) != port:
            console.print(f"port {port} is taken: using {found}, the next free one")
        console.print(f"metrics: {service.url}  (Ctrl-C ends the demo)")
        with contextlib.suppress(KeyboardInterrupt):
            _show(console, service, ends_at)
        for line in summary(sums(_scrape(service.url))):
            console.print(line)
    return ExitCode.OK


def _show(console: Console, service: Service, ends_at: float) -> None:
    scrapes: deque[Scrape] = deque(maxlen=_SCRAPES_KEPT)
    live = Live(waiting(), console=console, auto_refresh=False) if console.is_terminal else None
    next_lines_at = 0.0
    with live or contextlib.nullcontext():
        while (now := time.monotonic()) < ends_at:
            if failure := service.failure():
                raise failure
            scrapes.append(_scrape(service.url))
            # a rate begins where every pool has its first window
            while scrapes[0].window_ends.keys() != scrapes[-1].window_ends.keys():
                scrapes.popleft()
            figures = site_figures(scrapes[0], scrapes[-1])
            if live is not None:
                # a pool's first window may hold no GPU second yet: zeros would tell of an empty factory
                ready = figures.available_watts > 0
                live.update(screen(figures, service.url) if ready else waiting(), refresh=True)
            elif _is_complete(figures) and now >= next_lines_at:
                next_lines_at = now + _LINES_INTERVAL_S
                for line in lines(figures):
                    console.print(line)
            time.sleep(max(0.0, min(now + _SCRAPE_INTERVAL_S, ends_at) - time.monotonic()))


def _is_complete(figures: SiteFigures) -> bool:
    return figures.tokens_per_s is not None and figures.lost_per_hour is not None


def _scrape(url: str) -> Scrape:
    """What Prometheus would get now."""
    parts = urllib.parse.urlsplit(url)
    # not urllib.request: a proxy of the environment has no business here
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        return Scrape(connection.getresponse().read().decode())
    finally:
        connection.close()
