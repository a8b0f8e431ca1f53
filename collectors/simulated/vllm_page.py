"""A simulated engine's metrics page, line for line as vLLM 0.9 and later print theirs.

Traps of the real page are kept: `vllm:iteration_tokens_total` is a histogram, every counter has a gauge
`_created` beside it, prompt tokens include cached ones.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client.utils import floatToGoString

from idlewatt.collectors.simulated.engine_model import MAX_RUNNING, MAX_WAITING, EngineModel, Histogram

# the way the Python client prints floats, which vLLM uses
_number: Final[Callable[[float], str]] = floatToGoString

Samples = Sequence[tuple[str, float]]  # (further labels, value)


def page(model: EngineModel, now_ms: int) -> bytes:
    """The body of /metrics of a running process."""
    return "\n".join((*_process(model, now_ms), *_engine(model), *_http(model), "")).encode()


def _family(name: str, kind: str, text: str, samples: Samples, labels: str = "") -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for further, value in samples:
        both = labels + further
        yield f"{name}{{{both}}} {_number(value)}" if both else f"{name} {_number(value)}"


class _Page:
    """Families that carry the labels of one engine and were created with its process."""

    def __init__(self, model: EngineModel) -> None:
        self._labels = f'engine="0",model_name="{model.deployment.model_name}"'
        self._created = model.epoch_ms / 1000

    def gauge(self, name: str, text: str, samples: Samples) -> Iterable[str]:
        return _family(name, "gauge", text, samples, self._labels)

    def counter(self, name: str, text: str, samples: Samples) -> Iterable[str]:
        yield from _family(f"{name}_total", "counter", text, samples, self._labels)
        yield from self._created_beside(name, text, [further for further, _ in samples])

    def histogram(self, name: str, text: str, seen: Histogram) -> Iterable[str]:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} histogram"
        count = 0
        for bound, times in zip((*seen.bounds, float("inf")), seen.counts, strict=True):
            count += times
            yield f'{name}_bucket{{{self._labels},le="{_number(bound)}"}} {_number(count)}'
        yield f"{name}_count{{{self._labels}}} {_number(count)}"
        yield f"{name}_sum{{{self._labels}}} {_number(seen.total)}"
        yield from self._created_beside(name, text, [""])

    def _created_beside(self, name: str, text: str, further: Iterable[str]) -> Iterable[str]:
        samples = [(labels, self._created) for labels in further]
        return _family(f"{name}_created", "gauge", text, samples, self._labels)


def _process(model: EngineModel, now_ms: int) -> Iterable[str]:
    age_s = (now_ms - model.epoch_ms) / 1000
    collected = [(f'generation="{generation}"', age_s // 10**generation) for generation in range(3)]
    yield from _family("python_gc_collections_total", "counter", "Collections of each generation.", collected)
    info = [('implementation="CPython",major="3",minor="12",patchlevel="11",version="3.12.11"', 1.0)]
    yield from _family("python_info", "gauge", "The Python that runs the server.", info)
    for name, kind, text, value in (
        ("process_virtual_memory_bytes", "gauge", "Virtual memory, bytes.", 41e9),
        ("process_resident_memory_bytes", "gauge", "Resident memory, bytes.", 5.2e9),
        ("process_start_time_seconds", "gauge", "Start of the process, Unix seconds.", model.epoch_ms / 1000),
        ("process_cpu_seconds_total", "counter", "CPU time, seconds.", age_s * 1.5),
        ("process_open_fds", "gauge", "Open file descriptors.", 122.0),
        ("process_max_fds", "gauge", "Most file descriptors allowed.", 1048576.0),
    ):
        yield from _family(name, kind, text, [("", value)])


def _engine(model: EngineModel) -> Iterable[str]:
    this, counters = _Page(model), model.counters
    computed, cached = counters.input_tokens, counters.cached_input_tokens
    running, waiting = model.running, model.waiting
    yield from this.gauge("vllm:num_requests_running", "Requests in execution.", [("", running)])
    yield from this.gauge("vllm:num_requests_waiting", "Requests in the queue.", [("", waiting)])
    why = [(',reason="capacity"', waiting), (',reason="deferred"', 0.0)]
    yield from this.gauge("vllm:num_requests_waiting_by_reason", "Requests in the queue, by reason.", why)
    sleep = [
        (f',sleep_state="{s}"', float(s == "awake")) for s in ("awake", "weights_offloaded", "discard_all")
    ]
    yield from this.gauge("vllm:engine_sleep_state", "1 for the state the engine is in.", sleep)
    use = round(0.9 * running / MAX_RUNNING + 0.1 * waiting / MAX_WAITING, 4)
    yield from this.gauge("vllm:kv_cache_usage_perc", "KV cache in use, 0 to 1.", [("", use)])
    config = ',block_size="16",cache_dtype="auto",enable_prefix_caching="True",gpu_memory_utilization="0.9"'
    yield from this.gauge("vllm:cache_config_info", "Configuration of the KV cache.", [(config, 1.0)])
    for name, text, value in (
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", computed + cached),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", cached),
        ("vllm:num_preemptions", "Requests put back into the queue.", 0),
        ("vllm:prompt_tokens", "Prompt tokens, cached ones included.", computed + cached),
        ("vllm:prompt_tokens_cached", "Prompt tokens from a cache.", cached),
        ("vllm:generation_tokens", "Tokens generated.", counters.output_tokens),
    ):
        yield from this.counter(name, text, [("", value)])
    sources = (("local_compute", computed), ("local_cache_hit", cached), ("external_kv_transfer", 0))
    by_source = [(f',source="{source}"', value) for source, value in sources]
    yield from this.counter("vllm:prompt_tokens_by_source", "Prompt tokens by source.", by_source)
    finished = (("stop", counters.stopped), ("length", counters.cut_at_length), ("abort", 0), ("error", 0))
    by_reason = [(f',finished_reason="{reason}"', value) for reason, value in finished]
    yield from this.counter("vllm:request_success", "Requests that ended, by reason.", by_reason)
    for name, text, seen in (
        ("vllm:iteration_tokens_total", "Tokens of each engine step.", counters.step_tokens),
        ("vllm:time_to_first_token_seconds", "Time to the first token, seconds.", counters.first_token_s),
        ("vllm:inter_token_latency_seconds", "Time between tokens, seconds.", counters.inter_token_s),
        ("vllm:e2e_request_latency_seconds", "Time of whole requests, seconds.", counters.request_s),
    ):
        yield from this.histogram(name, text, seen)


def _http(model: EngineModel) -> Iterable[str]:
    ended = model.counters.stopped + model.counters.cut_at_length
    samples = [('handler="/v1/chat/completions",method="POST",status="2xx"', ended)]
    yield from _family("http_requests_total", "counter", "Requests by handler, method and status.", samples)
