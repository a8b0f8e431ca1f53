"""vLLM (V1 engine). Names are those of vllm/v1/metrics/loggers.py."""

from idlewatt.collectors.engines import EngineMapping, Series

MAPPING = EngineMapping(
    model_label="model_name",
    # Data-parallel rank. One HTTP server may stand before several; about 0.8 there was no such label yet.
    sum_over=frozenset({"engine"}),
    # Aborted requests' tokens are in. vllm:request_generation_tokens_sum moves only when a request ends.
    advance="step",
    output_tokens=(Series("vllm:generation_tokens_total"),),
    input_tokens=(
        # Since vLLM pull request 33290 (February 2026). With prefill and decode on separate instances the
        # decoding one counts the prompt too, as external_kv_transfer: the instance that computed it has it.
        Series("vllm:prompt_tokens_by_source_total", only={"source": "local_compute"}),
        # Everything in the prompt. Servers before that change do not say which part came from a cache:
        # vllm:prefix_cache_hits_total counts at admission, again for a request that is admitted twice, and
        # about 0.8 its predecessor counted blocks.
        Series("vllm:prompt_tokens_total", less="vllm:prompt_tokens_cached_total"),
    ),
    cached_input_tokens=(
        Series("vllm:prompt_tokens_by_source_total", only={"source": "local_cache_hit"}),
        # local and transferred together, so that with input_tokens they still add up to the prompt
        Series("vllm:prompt_tokens_cached_total"),
    ),
    requests_running=(Series("vllm:num_requests_running"),),
    requests_waiting=(Series("vllm:num_requests_waiting"),),
    kv_cache_ratio=(
        Series("vllm:kv_cache_usage_perc"),
        # its name before 0.9; 1 means full there too
        Series("vllm:gpu_cache_usage_perc"),
    ),
    epoch=(
        # It is the counter's own: scaling up (scale_elastic_ep) begins all counters anew within the process.
        Series("vllm:generation_tokens_created"),
        # without PROMETHEUS_DISABLE_CREATED_SERIES; both are absent with several API servers (multiprocess mode)
        Series("process_start_time_seconds"),
    ),
    if_absent="vLLM shows it unless it was started with --disable-log-stats",
)
