"""One simulated inference server: a queue, a batch, and the counters its page shows."""

import bisect
import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from idlewatt.collectors.simulated.plant import Deployment, Workload

MAX_RUNNING: Final = 256  # vLLM's max_num_seqs
MAX_WAITING: Final = 64  # beyond it the router in front sends requests away

# Upper bounds of vLLM's histograms; seconds, and tokens per engine step.
FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_TOKENS: Final = (
    *(1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0),
)


class Histogram:
    """Observations by upper bound; `counts` has one more entry, for what lies beyond the last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass(slots=True)
class Counters:
    """What one server process has counted since it started."""

    output_tokens: int = 0
    input_tokens: int = 0  # computed, without cached ones
    cached_input_tokens: int = 0
    stopped: int = 0
    cut_at_length: int = 0
    first_token_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    inter_token_s: Histogram = field(default_factory=lambda: Histogram(INTER_TOKEN_S))
    request_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    step_tokens: Histogram = field(default_factory=lambda: Histogram(STEP_TOKENS))


@dataclass(frozen=True, slots=True)
class _Cohort:
    """Requests that were admitted together and are in prefill."""

    ready_ms: int
    arrived_ms: int
    count: int
    input_tokens: int
    cached_input_tokens: int


class EngineModel:
    """The physics of one engine. `begin_tick` settles the gauges of a tick, `end_tick` moves the counters."""

    def __init__(self, deployment: Deployment, workload: Workload, rng: random.Random) -> None:
        self.deployment = deployment
        self.counters = Counters()
        self.epoch_ms = 0
        self.up = True
        self.stalled = False
        self.waiting = 0
        self._workload = workload
        self._rng = rng
        self._half = deployment.half_batch
        self._endless = deployment.endless_tokens_per_s
        self._small_mw = deployment.small_w * 1000 / deployment.gpus
        self._full_mw = deployment.full_w * 1000 / deployment.gpus
        self._clear()

    def _clear(self) -> None:
        self.waiting = 0
        self._queue: deque[tuple[int, int]] = deque()  # (arrived_ms, count)
        self._prefilling: deque[_Cohort] = deque()
        self._prefill_count = 0
        self._decoding = 0
        # (tokens per sequence at which it ends, tie-breaker, arrived_ms, count)
        self._ends: list[tuple[float, int, int, int]] = []
        self._order = itertools.count()
        self._progress = 0.0
        self._fraction = 0.0

    def start(self, now_ms: int) -> None:
        """A new process begins to count, at zero."""
        self.counters = Counters()
        self.epoch_ms = now_ms
        self.up = True

    def stop(self) -> None:
        """The process ends; what it was working on is lost."""
        self.up = False
        self.stalled = False
        self._clear()

    def assume_past(self, started_ms: int, requests: int) -> None:
        """Let the process have served `requests` since `started_ms`."""
        self.epoch_ms = started_ms
        counters, load = self.counters, self._workload
        counters.output_tokens = requests * load.output_tokens
        prompt = requests * load.prompt_tokens
        counters.cached_input_tokens = int(prompt * load.cached_share)
        counters.input_tokens = prompt - counters.cached_input_tokens
        counters.stopped = requests
        if requests:
            counters.first_token_s.observe(load.prefill_ms / 1000, requests)
            counters.inter_token_s.observe(0.03, counters.output_tokens)
            counters.request_s.observe(0.03 * load.output_tokens, requests)
            steps = max(1, counters.output_tokens // 64)
            counters.step_tokens.observe((counters.output_tokens + counters.input_tokens) / steps, steps)

    @property
    def running(self) -> int:
        """Requests in execution, in prefill or decode."""
        return self._decoding + self._prefill_count

    @property
    def decoding(self) -> int:
        """Those of the running requests that make tokens."""
        return self._decoding

    def tokens_per_s(self, batch: int) -> float:
        return self._endless * batch / (batch + self._half)

    @property
    def requests_per_s(self) -> float:
        """Requests it can finish in a second at its largest batch."""
        return self.tokens_per_s(MAX_RUNNING) / self._workload.output_tokens

    def power_mw(self, idle_mw: int) -> float:
        """Draw of each of its GPUs while it serves, `idle_mw` while nothing runs."""
        if not self.running:
            return idle_mw
        if self.stalled:
            return self._small_mw
        if not self._decoding:
            return self._full_mw  # prefill keeps every unit busy
        small, full = self.deployment.small_tokens_per_s, self.deployment.full_tokens_per_s
        share = (self.tokens_per_s(self._decoding) - small) / (full - small)
        return self._small_mw + (self._full_mw - self._small_mw) * share

    def begin_tick(self, now_ms: int, arrivals: int) -> None:
        """Queue what arrives, admit what fits."""
        free = 0 if self.stalled else MAX_RUNNING - self.running
        taken = min(arrivals, MAX_WAITING + free - self.waiting)
        if taken > 0:
            self._queue.append((now_ms, taken))
            self.waiting += taken
        while self._queue and free:
            arrived_ms, count = self._queue.popleft()
            admitted = min(count, free)
            if admitted < count:
                self._queue.appendleft((arrived_ms, count - admitted))
            load = self._workload
            prompt = int(admitted * load.prompt_tokens * self._rng.uniform(0.7, 1.3))
            cached = int(prompt * load.cached_share)
            self._prefilling.append(
                _Cohort(now_ms + load.prefill_ms, arrived_ms, admitted, prompt - cached, cached)
            )
            self._prefill_count += admitted
            self.waiting -= admitted
            free -= admitted

    def end_tick(self, now_ms: int, tick_ms: int) -> tuple[int, int, int]:
        """Work until `now_ms`; return the output, input and cached input tokens of the tick."""
        if self.stalled or not self.running:
            return 0, 0, 0
        output = self._decode(now_ms, tick_ms) if self._decoding else 0
        computed = cached = 0
        # prompt tokens count when their prefill ends, as in vLLM
        while self._prefilling and self._prefilling[0].ready_ms <= now_ms:
            cohort = self._prefilling.popleft()
            computed += cohort.input_tokens
            cached += cohort.cached_input_tokens
            self._prefill_count -= cohort.count
            self._decoding += cohort.count
            length = self._workload.output_tokens * self._rng.uniform(0.5, 1.5)
            end = (self._progress + length, next(self._order), cohort.arrived_ms, cohort.count)
            heapq.heappush(self._ends, end)
            self.counters.first_token_s.observe((now_ms - cohort.arrived_ms) / 1000, cohort.count)
        if computed:
            self.counters.step_tokens.observe(computed)
        self.counters.output_tokens += output
        self.counters.input_tokens += computed
        self.counters.cached_input_tokens += cached
        return output, computed, cached

    def _decode(self, now_ms: int, tick_ms: int) -> int:
        batch = self._decoding
        due = self.tokens_per_s(batch) * tick_ms / 1000
        self._fraction += due
        output = int(self._fraction)
        self._fraction -= output
        self._progress += due / batch
        counters = self.counters
        if output:
            counters.inter_token_s.observe(tick_ms / 1000 * batch / due, output)
            steps = max(1, output // batch)
            counters.step_tokens.observe(output / steps, steps)
        while self._ends and self._ends[0][0] <= self._progress:
            _, _, arrived_ms, count = heapq.heappop(self._ends)
            self._decoding -= count
            counters.cut_at_length += count // 10
            counters.stopped += count - count // 10
            counters.request_s.observe((now_ms - arrived_ms) / 1000, count)
        if not self._ends:
            self._progress = 0.0
        return output
