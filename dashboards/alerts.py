"""Alert rules as data.

Each alert says in numbers what is the matter and links to its section in docs/runbooks.md. Thresholds
stand here as constants; the tests hold each alert against series that must fire it, that must not, and
that are not there.
"""

from dataclasses import dataclass
from typing import Final, Literal

from idlewatt.dashboards import queries as q
from idlewatt.dashboards.recording import (
    BUSY_SHARE_HOUR,
    COVERED_TOKENS_RATE,
    ENERGY_RATE,
    IDLE_SHARE_HOUR,
    OUTPUT_TOKENS_RATE,
    RECORDED_CLOCKS,
    TOKENS_PER_JOULE,
    TOKENS_PER_JOULE_DAY,
    UNREAD_SHARE_HOUR,
    WASTED_ENERGY_RATE,
    WASTED_SHARE,
)
from idlewatt.stream import metric_names as names
from idlewatt.stream.metric_names import Metric

RUNBOOKS: Final = "https://github.com/idlewatt/idlewatt/blob/main/docs/runbooks.md"

WASTED_SHARE_LIMIT: Final = 0.3
# of what is available, in each hour of a day: what is idle by night is needed by day
IDLE_SHARE_LIMIT: Final = 0.5
# of the 24 that a day has: Prometheus may have been away for a while
IDLE_HOURS_SEEN: Final = 20
# of the day's own yield; load alone moves it by less in a pool that is used around the clock
YIELD_FALL: Final = 0.5
# under this a yield says more about the load than about the machines, tokens/s
YIELD_MIN_TOKENS_PER_SECOND: Final = 10
# of the 24 hours of a day: its mean is no yardstick before it was measured under load for a good part of it
YIELD_HOURS_SEEN: Final = 6
DARK_SHARE_LIMIT: Final = round(1 - q.COVERAGE_FLOOR, 6)
BEHIND_LIMIT_S: Final = 60
# A pool whose figures vanish is looked for this long: over a weekend, and as long as raw rows wait for it in Kafka.
CLOCK_LOOKBACK: Final = "3d"
# A broker that hangs holds each commit up for half a minute. Shorter than the alert lasts, so that a rebalance's few
# are forgotten before it fires.
REWINDS_WINDOW: Final = "3m"
REWINDS_LIMIT: Final = 2
# a page that is read once a minute leaves something out in each of them
LEFT_OUT_WINDOW: Final = "3m"
# for ever, and nothing to be mended: what the hardware does not tell, and tokens of a gateway that nobody has named
LEFT_OUT_FOR_GOOD: Final = "module_shared|no_power_reading|no_model"
# a model that is asked once in a while has no price all the while
UNPRICED_WINDOW: Final = "1h"
# a target that vanishes is looked for this long
TARGET_LOOKBACK: Final = "1h"
# A quarter of an hour with the time that the alert lasts. Only what Kafka has not taken at each scrape of these waits: in
# between, rows are sent each second.
SPOOL_WINDOW: Final = "10m"
# Multiples of the even rate, as the SRE workbook sets them for 30 days: 2 % of a month in an hour, 5 % in six
BURN_FASTEST: Final = 14.4
BURN_FAST: Final = 6
BURN_EVEN: Final = 1


@dataclass(frozen=True, slots=True)
class AlertRule:
    """An alert. `description` may use Prometheus' template language."""

    name: str
    expr: str
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str

    @property
    def runbook_url(self) -> str:
        return f"{RUNBOOKS}#{self.name.lower()}"


_POOL_IN_WORDS: Final = "Pool {{ $labels.pool }} of site {{ $labels.site }}"
_SCRAPED: Final = q.series(names.SCRAPE_SUCCESS)


def _lost_per_hour_in_words() -> str:
    """What the pool loses now, in every currency it is told in; nothing where no price is known."""
    loss = f'{names.LOST_REVENUE_PER_HOUR.name}{{window="{q.ROLLING}",site=%q,pool=%q}}'
    loss = q.fresh(names.LOST_REVENUE_PER_HOUR, loss)
    query = f"printf `sum by (currency) ({loss})` $labels.site $labels.pool | query"
    return (
        f"{{{{ range {query} }}}}"
        ' With the headroom of its idle GPUs it loses {{ .Value | printf "%.2f" }} {{ .Labels.currency }} an hour.'
        "{{ end }}"
    )


def _value_in_words(record: str, unit: str) -> str:
    query = f"printf `{record}{{site=%q,pool=%q}}` $labels.site $labels.pool | query"
    return f"{{{{ range {query} }}}}{{{{ .Value | humanize }}}}{unit}{{{{ end }}}}"


_ENVELOPE_IN_WORDS: Final = "Envelope {{ $labels.envelope }} of {{ $labels.consumer_kind }} {{ $labels.consumer }} at site {{ $labels.site }}"


def _exhaustion_in_words() -> str:
    query = f"{names.ENVELOPE_EXHAUSTION.name}{{site=%q,envelope=%q,consumer=%q}}"
    query = f"printf `{query}` $labels.site $labels.envelope $labels.consumer | query"
    return f"{{{{ range {query} }}}} By the forecast it is used up at {{{{ .Value | humanizeTimestamp }}}}.{{{{ end }}}}"


def _spool_in_words() -> str:
    """How full the collector's spool is; nothing where it has none."""
    query = f"{names.SPOOL_BYTES.name}{{instance=%q}} / {names.SPOOL_LIMIT.name}{{instance=%q}}"
    query = f"printf `{query}` $labels.instance $labels.instance | query"
    return f"{{{{ range {query} }}}} Its spool is {{{{ .Value | humanizePercentage }}}} full.{{{{ end }}}}"


def _gone_targets() -> str:
    """Targets that were there within the hour, unless there are as many as there mostly were: others have taken their place.

    Not as there were at most: while a container is replaced its old and its new address may both be targets.
    """
    up = f'up{{job="{q.JOB}"}}'
    targets = f"count by (job) ({up})"
    return (
        f"last_over_time({up}[{TARGET_LOOKBACK}]) unless {up} "
        f"unless on (job) ({targets} >= quantile_over_time(0.9, {targets}[{TARGET_LOOKBACK}:30s]))"
    )


def _burns(multiple: float, *windows: str) -> str:
    """The multiple of the first window, where it is more than this in all of them."""
    return " and ".join(f"{q.envelope_burn(window)} > {multiple}" for window in windows)


def _clock(clock: Metric) -> str:
    """What a pool's clock last told, if that is no longer ago than CLOCK_LOOKBACK."""
    recorded = f"last_over_time({RECORDED_CLOCKS[clock]}[{CLOCK_LOOKBACK}])"
    return f"(max by (site, pool) ({q.last_seen(clock)}) or {recorded})"


def _unread_each_hour() -> str:
    """The least that was not measured of any hour that ended within the last: what ended an hour ago is in none of the newest."""
    hours = f"{UNREAD_SHARE_HOUR}[1h]"
    # recorded every two minutes; without a time of late that was not measured, what was is over
    return (
        f"(min_over_time({hours}) > {DARK_SHARE_LIMIT} and count_over_time({hours}) > 27"
        f" and {q.least_covered('tokens', '20m')} < {q.COVERAGE_FLOOR})"
    )


ALERTS: Final = (
    AlertRule(
        name="IdlewattWastedWatts",
        expr=f"{WASTED_SHARE} > {WASTED_SHARE_LIMIT}",
        lasting="15m",
        severity="warning",
        summary=f"{_POOL_IN_WORDS} burns {{{{ $value | humanizePercentage }}}} of its watts for nothing",
        description=(
            f"{_POOL_IN_WORDS} draws {_value_in_words(ENERGY_RATE, 'W')}, of which "
            f"{_value_in_words(WASTED_ENERGY_RATE, 'W')} go into GPUs with nothing to do; more than "
            f"{WASTED_SHARE_LIMIT:.0%} for 15 minutes.{_lost_per_hour_in_words()}"
        ),
    ),
    AlertRule(
        name="IdlewattIdleCapacity",
        # a day's least is no yardstick before there is a day, nor where most of it was not seen
        expr=" and ".join(
            (
                f"{IDLE_SHARE_HOUR} > {IDLE_SHARE_LIMIT}",
                # an hour in which idle GPUs were not seen is no busy one
                f"max_over_time({BUSY_SHARE_HOUR}[1d]) < {1 - IDLE_SHARE_LIMIT}",
                # what is available to a pool is booked in the dark, too
                f"sum by (site, pool) (last_over_time({q.series(names.AVAILABLE)}[1h] offset 23h))",
                f"count_over_time({IDLE_SHARE_HOUR}[1d:1h]) >= {IDLE_HOURS_SEEN}",
            )
        ),
        lasting="0m",
        severity="warning",
        summary=f"{_POOL_IN_WORDS} leaves {{{{ $value | humanizePercentage }}}} of its available watts idle",
        description=(
            "In the last hour {{ $value | humanizePercentage }} of what is available to pool {{ $labels.pool }} of site "
            "{{ $labels.site }}, as far as it was seen, was that of GPUs with nothing to do, drawn or not, and in no hour of the last "
            f"day were others seen to need {1 - IDLE_SHARE_LIMIT:.0%}.{_lost_per_hour_in_words()}"
        ),
    ),
    AlertRule(
        name="IdlewattTokensPerJouleFell",
        expr=" and on (site, pool) ".join(
            (
                f"{TOKENS_PER_JOULE} < {YIELD_FALL} * {TOKENS_PER_JOULE_DAY}",
                f"{OUTPUT_TOKENS_RATE} > {YIELD_MIN_TOKENS_PER_SECOND}",
                # each five minutes, however often rules are evaluated
                f"count_over_time(({COVERED_TOKENS_RATE} > {YIELD_MIN_TOKENS_PER_SECOND})[1d:5m]) >= {12 * YIELD_HOURS_SEEN}",
            )
        ),
        lasting="30m",
        severity="warning",
        summary=f"{_POOL_IN_WORDS} makes less than half the tokens per joule of its own day",
        description=(
            f"{_POOL_IN_WORDS} makes {{{{ $value | humanize }}}} output tokens per joule, against "
            f"{_value_in_words(TOKENS_PER_JOULE_DAY, ' over the last day')}, at "
            f"{_value_in_words(OUTPUT_TOKENS_RATE, ' tokens/s')}.{_lost_per_hour_in_words()}"
        ),
    ),
    AlertRule(
        name="IdlewattPoolDark",
        expr=f"{q.unread_share(q.EVERYWHERE, 'watts', '1m')} > {DARK_SHARE_LIMIT}",
        lasting="5m",
        severity="warning",
        summary=f"{_POOL_IN_WORDS} is dark: nobody knows what {{{{ $value | humanizePercentage }}}} of its GPUs do",
        description=(
            "{{ $value | humanizePercentage }} of the GPUs of pool {{ $labels.pool }} of site {{ $labels.site }} tell "
            "nothing, or the engines that hold them do not. Their watts, measured or set aside, are booked as dark, not as "
            "zero (those of GPUs that were never read are not known), and the pool's ratios are withheld."
        ),
    ),
    AlertRule(
        name="IdlewattEnginesDark",
        # of what the ratios are withheld for: an engine that fails again and again is read well in some minutes
        expr=f"{q.unread_share(q.EVERYWHERE, 'tokens', q.ROLLING)} > {DARK_SHARE_LIMIT} or {_unread_each_hour()}",
        # servers that are restarted one after the other load their models meanwhile
        lasting="30m",
        severity="warning",
        summary=f"{_POOL_IN_WORDS} shows no ratios: {{{{ $value | humanizePercentage }}}} of its engine time, or tokens of a kind, is not measured",
        description=(
            "{{ $value | humanizePercentage }} of the engine time of pool {{ $labels.pool }} of site {{ $labels.site }}, or of its tokens of a kind, is of engines "
            "that nobody reads, or that make tokens on GPUs that nobody reads, for 30 minutes, or in part of each hour. What tokens take "
            "there is not known, and the pool's ratios are withheld. The watts of GPUs that are read are right."
        ),
    ),
    AlertRule(
        name="IdlewattPipelineBehind",
        expr=f"{q.behind_seconds()} > {BEHIND_LIMIT_S}",
        lasting="5m",
        severity="warning",
        summary="Processors are behind on partition {{ $labels.partition }} of {{ $labels.topic }}",
        description=(
            "What is still to be read of partition {{ $labels.partition }} of {{ $labels.topic }} takes "
            "{{ $value | humanizeDuration }} at the speed of the last 5 minutes (+Inf: it does not move). "
            "Figures and alerts of its pools are that late; nothing is lost."
        ),
    ),
    AlertRule(
        name="IdlewattWindowClockStalled",
        expr=(
            f"time() - {_clock(names.WINDOW_END)}"
            f" > {q.CLOCK_LIMIT_S} unless on (site, pool) ({q.counted_without_clock()})"
        ),
        lasting="5m",
        severity="critical",
        summary="No new figures for pool {{ $labels.pool }} of site {{ $labels.site }}",
        description=(
            "The last closed window of pool {{ $labels.pool }} of site {{ $labels.site }} ended "
            "{{ $value | humanizeDuration }} ago. Panels do not show it, and its other alerts cannot fire."
        ),
    ),
    AlertRule(
        name="IdlewattMoneyClockStalled",
        # the meter's clock of a pool goes on for an hour after its last GPU is gone; nothing is left to be priced then
        expr=(
            f"max by (site, pool) ({q.series(names.WINDOW_END)} and on (site, pool) {q.series(names.GPUS)})"
            f" - ({_clock(names.MONEY_END)}"
            f" or max by (site, pool) (-Inf * {q.series(names.WINDOW_END)})) > {q.CLOCK_LIMIT_S}"
        ),
        lasting="5m",
        severity="critical",
        summary="No new money figures for pool {{ $labels.pool }} of site {{ $labels.site }}",
        description=(
            "Windows of pool {{ $labels.pool }} of site {{ $labels.site }} go on closing, and the last one that was "
            "priced ended {{ $value | humanizeDuration }} before the last one that closed (+Inf: none was in three days). Its "
            "money is old or not shown; watts and tokens are right."
        ),
    ),
    AlertRule(
        name="IdlewattCommitsFail",
        expr=f"{q.increase(names.REWINDS, by=('stage', 'instance'), window=REWINDS_WINDOW)} >= {REWINDS_LIMIT}",
        lasting="5m",
        severity="critical",
        summary="{{ $labels.instance }} cannot commit its {{ $labels.stage }}",
        description=(
            "About {{ $value | humanize }} commits of stage {{ $labels.stage }} on {{ $labels.instance }} did not happen in "
            "the last 3 minutes, and it has been so for 5: it does the same work again and again. What its page shows is as "
            "of its last commit. Its log says why (rewound)."
        ),
    ),
    AlertRule(
        name="IdlewattNoFigures",
        expr=f"absent({q.series(names.WINDOW_END)})",
        lasting="5m",
        severity="critical",
        summary="Prometheus has no figures from any Idlewatt processor",
        description=(
            f"Not one series of {names.WINDOW_END.name} is there. No other alert on watts, tokens or money can "
            "fire in this state."
        ),
    ),
    AlertRule(
        name="IdlewattTargetDown",
        expr=f'up{{job="{q.JOB}"}} == 0',
        lasting="2m",
        severity="critical",
        summary="{{ $labels.instance }} does not answer",
        description=(
            "Prometheus has not been able to read /metrics of {{ $labels.instance }} for 2 minutes. If it is a "
            "processor, the others take over its pools within a minute; if a collector, its node goes dark."
        ),
    ),
    AlertRule(
        name="IdlewattTargetGone",
        expr=_gone_targets(),
        lasting="5m",
        severity="warning",
        summary="{{ $labels.instance }} is gone",
        description=(
            "{{ $labels.instance }} was a target of Prometheus within the last hour and is none any more, and no other has "
            "taken its place: a container that stops loses its name. If it was a collector, its node goes dark; if a "
            "processor, the others have its pools."
        ),
    ),
    AlertRule(
        name="IdlewattCollectorFailing",
        # not of one that is back: what restarts takes some minutes; but of one that fails and is back in turn
        expr=(
            f"avg_over_time({_SCRAPED}[5m]) < 0.5 and min_over_time({_SCRAPED}[1m]) == 0"
            f" or avg_over_time({_SCRAPED}[30m]) < 0.5 and min_over_time({_SCRAPED}[5m]) == 0 and {_SCRAPED} offset 30m"
        ),
        lasting="3m",
        severity="warning",
        summary="{{ $labels.instance }} cannot read {{ $labels.source }}",
        description=(
            "Only {{ $value | humanizePercentage }} of the readings of {{ $labels.source }} by "
            "{{ $labels.instance }} brought anything lately. Its GPUs or tokens are booked as "
            f"not measured. {names.SCRAPE_ERRORS.name} has the reason, or {names.SAMPLE_ERRORS.name}."
        ),
    ),
    AlertRule(
        name="IdlewattReadingsLeftOut",
        expr=q.new_events(
            names.SAMPLE_ERRORS,
            ("source", "reason", "instance"),
            LEFT_OUT_WINDOW,
            {"reason": f"!~{LEFT_OUT_FOR_GOOD}"},
        ),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.instance }} leaves out a part of {{ $labels.source }} all the time: {{ $labels.reason }}",
        description=(
            "About {{ $value | humanize }} times in the last 3 minutes, and for a quarter of an hour, {{ $labels.instance }} has "
            "left out something of {{ $labels.source }} ({{ $labels.reason }}): a GPU or a figure of one, a model, a consumer, or "
            "rows. What it would have told is in no figure. The rest of the source is read."
        ),
    ),
    AlertRule(
        name="IdlewattMessagesRejected",
        expr=q.new_events(names.REJECTED_MESSAGES, ("topic", "reason"), "15m"),
        lasting="0m",
        severity="warning",
        summary="Messages of {{ $labels.topic }} cannot be read: {{ $labels.reason }}",
        description=(
            "About {{ $value | humanize }} messages of {{ $labels.topic }} were rejected in the last 15 minutes "
            "({{ $labels.reason }}). What they held is not in the figures; the topic idlewatt.rejected says "
            "which they were."
        ),
    ),
    AlertRule(
        name="IdlewattRowsRefused",
        # what a restart or a retried append brings again is no fault
        expr=q.new_events(names.REJECTED_ROWS, ("topic", "reason"), "5m", {"reason": "!repeat"}),
        lasting="15m",
        severity="warning",
        summary="Rows of {{ $labels.topic }} are refused all the time: {{ $labels.reason }}",
        description=(
            "About {{ $value | humanize }} rows of {{ $labels.topic }} were refused in the last 5 minutes "
            "({{ $labels.reason }}), and some for a quarter of an hour. What they say cannot be true, and is in no figure."
        ),
    ),
    AlertRule(
        name="IdlewattSpoolFills",
        expr=f"min_over_time({q.series(names.SPOOL_BYTES)}[{SPOOL_WINDOW}]) > 0",
        lasting="5m",
        severity="warning",
        summary="Rows of {{ $labels.instance }} wait for Kafka",
        description=(
            "{{ $labels.instance }} cannot send its rows to Kafka, or not as fast as it reads them: for a quarter of an hour "
            f"some have waited, and {{{{ $value | humanize1024 }}}}B or more do.{_spool_in_words()} Its pools are dark or late. "
            "When there is no room for more the oldest rows are dropped."
        ),
    ),
    AlertRule(
        name="IdlewattRowsDropped",
        expr=q.new_events(names.DROPPED_ROWS, ("topic", "instance"), "15m"),
        lasting="0m",
        severity="critical",
        summary="{{ $labels.instance }} drops rows for {{ $labels.topic }}",
        description=(
            "{{ $labels.instance }} dropped about {{ $value | humanize }} rows for {{ $labels.topic }} in the "
            "last 15 minutes: the log was away for longer than the spool holds, or refuses them (append_failed in "
            "its log). They are lost."
        ),
    ),
    AlertRule(
        name="IdlewattUnaccountedJoules",
        expr=f"{q.level(names.UNACCOUNTED, by=q.POOL)} != 0",
        lasting="0m",
        severity="critical",
        summary="The books of pool {{ $labels.pool }} of site {{ $labels.site }} do not balance",
        description=(
            "{{ $value | humanize }} J were measured in pool {{ $labels.pool }} of site {{ $labels.site }} and are in "
            "no state of the waterfall (negative: booked and never measured). This is a bug in Idlewatt; do not "
            "bill by this pool's figures until it is found."
        ),
    ),
    AlertRule(
        name="IdlewattBookRefused",
        expr=f"{q.highest(names.BOOK_VALID, by=('instance',))} == 0",
        lasting="1m",
        severity="warning",
        summary="{{ $labels.instance }} refused the book as it stands",
        description=(
            "The book changed and has a fault, so {{ $labels.instance }} still reckons with the one before. Its log "
            "says which line to mend (book_refused)."
        ),
    ),
    AlertRule(
        name="IdlewattTokensUnpriced",
        # who has no prices wants no money for tokens
        expr=(
            f"{q.rate(names.UNPRICED_TOKENS, by=('site', 'model_name'), window=UNPRICED_WINDOW)} > 0 "
            f"and on () {q.series(names.BOOK_PRICES)} > 0"
        ),
        lasting="15m",
        severity="warning",
        summary="Tokens of {{ $labels.model_name }} at site {{ $labels.site }} have no price",
        description=(
            "Over the last hour {{ $value | humanize }} tokens/s of model {{ $labels.model_name }} at site {{ $labels.site }} had "
            "no price in the book. They are in no revenue, and what stands on them is withheld."
        ),
    ),
    AlertRule(
        name="IdlewattEnvelopeBurnsFast",
        expr=(
            f"({_burns(BURN_FASTEST, '1h', '5m')} or {_burns(BURN_FAST, '6h', '1h')} or "
            f"{_burns(BURN_FAST, '1h', '5m')} and {q.envelope_exhaustion()}) unless {q.envelope_used_share()} >= 1"
        ),
        lasting="2m",
        severity="warning",
        summary=f"{_ENVELOPE_IN_WORDS} burns {{{{ $value | humanize }}}} times as fast as it lasts",
        description=(
            f"{_ENVELOPE_IN_WORDS} is used {{{{ $value | humanize }}}} times as fast as it would last until its period "
            f"ends, and still now.{_exhaustion_in_words()}"
        ),
    ),
    AlertRule(
        name="IdlewattEnvelopeBurnsSlowly",
        expr=f"{_burns(BURN_EVEN, '3d', '6h')} and {q.envelope_exhaustion()}",
        lasting="15m",
        severity="warning",
        summary=f"{_ENVELOPE_IN_WORDS} will not last until its period ends",
        description=(
            f"{_ENVELOPE_IN_WORDS} has been used {{{{ $value | humanize }}}} times as fast as it lasts for three days, and "
            f"too fast for the last six hours.{_exhaustion_in_words()}"
        ),
    ),
    AlertRule(
        name="IdlewattEnvelopeExhausted",
        expr=f"{q.envelope_used_share()} >= 1",
        lasting="0m",
        severity="warning",
        summary=f"{_ENVELOPE_IN_WORDS} is used up",
        description=(
            f"{_ENVELOPE_IN_WORDS} is {{{{ $value | humanizePercentage }}}} used. Idlewatt stops nobody: gateways that ask "
            "GET /v1/envelopes are told so."
        ),
    ),
    AlertRule(
        name="IdlewattEnvelopeUnknown",
        expr=q.envelopes_unknown(),
        lasting="15m",
        severity="warning",
        summary="What is used of envelope {{ $labels.envelope }} at site {{ $labels.site }} is not known",
        description=(
            "Of {{ $value }} consumers in envelope {{ $labels.envelope }} of site {{ $labels.site }} nobody knows what they "
            "have used: tokens without a price, in another currency, or of more names than are kept apart. None of its other "
            "alerts can fire for them."
        ),
    ),
)
