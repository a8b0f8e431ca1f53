"""LiteLLM proxy. Names are those of litellm/integrations/prometheus.py (read in 1.109)."""

from idlewatt.collectors.engines import Series
from idlewatt.collectors.gateways import GatewayMapping, SeriesLimit

MAPPING = GatewayMapping(
    # Counted when a request ends, from the usage the server told: completion_tokens (reasoning is in) and
    # prompt_tokens (what a cache answered is in). An answer from LiteLLM's own response cache counts here too, though
    # no engine made it.
    output_tokens=(Series("litellm_output_tokens_metric_total"),),
    input_tokens=(Series("litellm_input_tokens_metric_total"),),
    # prompt_tokens_details.cached_tokens: sparse, its labels are there from the first hit on. Not
    # litellm_cached_tokens_metric_total, which is all tokens of answers from LiteLLM's own cache.
    cached_input_tokens=(Series("litellm_input_cached_tokens_metric_total"),),
    # The cached tokens lack them: a key belongs to one organisation.
    sum_over=frozenset({"org_id", "org_alias"}),
    epoch=(
        # Per set of labels. LiteLLM can forget a set that was idle (prometheus_metrics_ttl_seconds), and counts it anew.
        Series("litellm_output_tokens_metric_created"),
        # Both are absent with several workers (prometheus_client's multiprocess mode).
        Series("process_start_time_seconds"),
    ),
    cached_epoch=(Series("litellm_input_cached_tokens_metric_created"),),
    # of 1.110; PROMETHEUS_OVERFLOW_SERIES_LABEL_VALUE
    limit=SeriesLimit("prometheus_metrics_max_series_per_metric", lumps="other"),
    # Python's None as text, and who has the master key
    unset=frozenset({"", "None", "default_user_id"}),
    names=(
        ("team_alias", "team"),
        ("team", "team"),
        ("user_email", "engineer"),
        ("user", "engineer"),
        ("model", "model"),
    ),
    if_absent="LiteLLM shows it with callbacks: [prometheus] after its first request; its page may ask for a key "
    "(token_file)",
)
