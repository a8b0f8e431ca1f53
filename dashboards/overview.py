"""The dashboard "Idlewatt / AI factory": what the watts make, what they cost, and whether to believe it."""

from typing import Final

from grafanalib.core import Dashboard, RowPanel, Templating, Time

from idlewatt.dashboards import queries as q
from idlewatt.dashboards.alerts import WASTED_SHARE_LIMIT
from idlewatt.dashboards.panels import (
    CURRENCY,
    Place,
    Query,
    bargauge,
    colours,
    currency_units,
    stat,
    table,
    timeseries,
    variables,
)
from idlewatt.stream import metric_names as names

UID: Final = "idlewatt-overview"
_WORST_OFFENDERS: Final = 50
_HERE: Final = q.SELECTED

# green makes tokens, red burns for nothing, grey is unknown; the lighter shade is the headroom
_STATE_COLOURS: Final = {
    "serving": ("green", "light-green"),
    "idle_loaded": ("red", "light-red"),
    "idle_free": ("orange", "light-orange"),
    "other": ("blue", "light-blue"),
    "dark": ("#6e7079", "#a9abb3"),
}
_AVAILABLE_LINE: Final = {
    "matcher": {"id": "byName", "options": "available"},
    "properties": [
        {"id": "custom.stacking", "value": {"mode": "none"}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
        {"id": "color", "value": {"mode": "fixed", "fixedColor": "text"}},
    ],
}


def overview() -> Dashboard:
    """The dashboard, not yet modernised (grafana_json.py)."""
    return Dashboard(
        title="Idlewatt / AI factory",
        description="Tokens per watt and the revenue lost to idle watts. Figures of boards (IT watts) unless said otherwise.",
        uid=UID,
        tags=["idlewatt"],
        # the panel that counts from midnight uses the reader's midnight, so the axes do too
        timezone="browser",
        refresh="10s",
        time=Time("now-1h", "now"),
        graphTooltip=1,
        editable=False,
        templating=Templating(list=variables()),
        panels=[*_now(), *_watts(), *_yield_and_loss(), *_gpus(), *_pipeline()],
    )


def _now() -> list[object]:
    return [
        stat(
            "Tokens/s",
            Query(q.output_tokens_rate(_HERE)),
            unit="si:tok/s",
            description="Output tokens per second of the chosen pools.",
            place=Place(0, 0, 3, 4),
        ),
        stat(
            "Power drawn",
            Query(q.drawn_watts(_HERE)),
            unit="watt",
            decimals=2,
            description="Watts the GPU boards drew in the last closed window (IT watts, without cooling and conversion).",
            place=Place(3, 0, 3, 4),
        ),
        stat(
            "Tokens/s per MW (IT)",
            Query(q.tokens_per_second_per_megawatt(_HERE)),
            unit="si:tok/s/MW",
            no_value="withheld",
            description=(
                "Output tokens per second for each megawatt the boards draw, over the last 5 minutes, of the pools that were "
                f"measured. Withheld while those of coverage under {q.COVERAGE_FLOOR:.0%}, or whose figures are too old, have more "
                f"than {1 - q.COVERAGE_FLOOR:.0%} of the available watts, or there are too few tokens to mean anything."
            ),
            place=Place(6, 0, 3, 4),
        ),
        stat(
            "Tokens per joule (IT)",
            Query(q.tokens_per_joule(_HERE)),
            unit="suffix: tok/J",
            decimals=3,
            no_value="withheld",
            description=(
                "Output tokens per joule of board energy, which is tokens/s per watt; idle GPUs count with what "
                "they draw. Withheld under the same conditions."
            ),
            place=Place(9, 0, 3, 4),
        ),
        stat(
            "Lost per hour",
            Query(q.lost_revenue_per_hour(_HERE), "{{currency}}"),
            unit=CURRENCY,
            decimals=2,
            no_value="no price or yardstick, or old",
            overrides=currency_units(),
            description=(
                "Revenue that idle watts would have brought, per hour: lost tokens at the realised blended "
                "price, over the last 5 minutes, of the pools for which it is known: a pool is left out while some of its "
                "idle watts have no price or yardstick."
            ),
            place=Place(12, 0, 3, 4),
        ),
        stat(
            "Lost today",
            Query(
                q.increase(names.LOST_REVENUE, _HERE, ("currency",), q.RANGE),
                "{{currency}}",
            ),
            unit=CURRENCY,
            decimals=2,
            no_value="no price or yardstick",
            overrides=currency_units(),
            time_from="now/d",
            description=(
                "The same since midnight, of all idle watts that have a price and a yardstick and as far as windows are "
                "priced (see the age of the figures), as Prometheus estimates it; the ledger has the exact sum."
            ),
            place=Place(15, 0, 3, 4),
        ),
        stat(
            "Benchmark loss per hour",
            Query(q.benchmark_lost_revenue_per_hour(_HERE), "{{currency}}"),
            unit=CURRENCY,
            decimals=2,
            overrides=currency_units(),
            description=(
                "BENCHMARK, not your revenue: idle kWh at 17.12 USD, the yield of 150 bn USD a year from one "
                "gigawatt. Needs no price book. Never add it to the loss beside it."
            ),
            place=Place(18, 0, 3, 4),
        ),
        stat(
            "Age of the figures",
            Query(q.meter_age(_HERE), "watts"),
            beside=(Query(q.money_age(_HERE), "money"),),
            unit="s",
            decimals=0,
            description=(
                "Since the end of the last closed window (watts, tokens), and of the last one that was priced (money), of the "
                "chosen site that is furthest behind. Half a minute or so is normal. A pool whose figures are older than "
                f"{q.CLOCK_LIMIT_S} s is in no figure of the present on this page, and in no rate while it catches up: what is "
                "shown is of the others."
            ),
            place=Place(21, 0, 3, 4),
        ),
    ]


def _watts() -> list[object]:
    parts = {
        f"{state} {part}": colour
        for state, pair in _STATE_COLOURS.items()
        for part, colour in zip(("draw", "headroom"), pair, strict=True)
    }
    return [
        timeseries(
            "Where the available watts go",
            [
                Query(q.level(names.POWER, _HERE, ("state", "part")), "{{state}} {{part}}"),
                Query(q.level(names.POWER, _HERE), "available"),
            ],
            unit="watt",
            stacked=True,
            overrides=[*colours(parts), _AVAILABLE_LINE],
            description=(
                "Every available watt by what its GPU did (state) and whether it was drawn or left over "
                "(headroom). The parts add up to the available watts, the dashed line. Green makes tokens, red "
                "and orange are idle, grey told nothing."
            ),
            place=Place(0, 4, 16, 10),
        ),
        bargauge(
            "Drawn watts wasted, by pool",
            Query(q.wasted_watts_share(_HERE), "{{site}} / {{pool}}"),
            unit="percentunit",
            maximum=1,
            steps={"green": 0, "orange": WASTED_SHARE_LIMIT / 2, "red": WASTED_SHARE_LIMIT},
            description="Share of the drawn watts that went into GPUs with nothing to do, in the last closed window.",
            place=Place(16, 4, 8, 10),
        ),
    ]


def _yield_and_loss() -> list[object]:
    return [
        timeseries(
            "Tokens per joule, by pool",
            [Query(q.pool_tokens_per_joule(_HERE), "{{site}} / {{pool}}")],
            unit="suffix: tok/J",
            description=(
                "Output tokens per joule of board energy over 5 minutes, idle GPUs included. A gap means "
                "withheld: too little coverage or too few tokens."
            ),
            place=Place(0, 14, 12, 8),
        ),
        timeseries(
            "Lost revenue per hour, by pool",
            [
                Query(
                    q.lost_revenue_per_hour(_HERE, (*q.POOL, "currency")),
                    "{{site}} / {{pool}} {{currency}}",
                )
            ],
            unit=CURRENCY,
            overrides=currency_units(),
            description="Revenue that the pool's idle watts would have brought, per hour, over 5 minutes, at your prices.",
            place=Place(12, 14, 12, 8),
        ),
    ]


def _gpus() -> list[object]:
    columns = {
        "site": "Site",
        "pool": "Pool",
        "node": "Node",
        "gpu_uuid": "GPU",
        "product": "Product",
        "state": "State",
    }
    return [
        timeseries(
            "GPUs by state",
            [Query(q.level(names.GPUS, _HERE, ("state",)), "{{state}}")],
            unit="short",
            stacked=True,
            overrides=colours({state: pair[0] for state, pair in _STATE_COLOURS.items()}),
            description=(
                "What the GPUs did: serving, idle with a model loaded, idle and free, other work (training, "
                "batch), or dark (no telemetry)."
            ),
            place=Place(0, 22, 12, 8),
        ),
        timeseries(
            "Coverage",
            [
                Query(q.coverage(_HERE, "watts"), "watts"),
                Query(q.coverage(_HERE, "tokens"), "tokens"),
            ],
            unit="percentunit",
            maximum=1,
            description=(
                "Share of the last 5 minutes for which the GPUs and engines known to be there were really "
                f"measured. Ratios that stand on less than {q.COVERAGE_FLOOR:.0%} are withheld."
            ),
            place=Place(12, 22, 12, 8),
        ),
        table(
            "Worst offenders",
            Query(q.worst_offenders(_HERE, _WORST_OFFENDERS)),
            value="Wasted",
            columns=columns,
            unit="watt",
            description=(
                "The GPUs that burnt the most watts with nothing to do in the last closed window. Only the worst "
                "of each processor are exported; the ledger has every GPU."
            ),
            place=Place(0, 30, 24, 9),
        ),
    ]


def _pipeline() -> list[object]:
    alive = q.rate(names.MESSAGES, by=("topic",))
    return [
        RowPanel(title="Pipeline", gridPos=Place(0, 39, 24, 1).grid),
        timeseries(
            "Messages behind",
            [Query(q.behind_messages(), "{{topic}}")],
            unit="short",
            description="Messages in the log that the processors have still to read, by topic; of several boxes with a log of "
            "their own, those of the one that is furthest behind. Figures are this late.",
            place=Place(0, 40, 6, 7),
        ),
        timeseries(
            "Time to catch up",
            [Query(q.highest(names.CATCH_UP, by=("stage", "partition")), "{{stage}} {{partition}}")],
            unit="s",
            description=(
                "How long until a partition is read to its end, at the speed of the last half minute. No line while "
                "it gets no nearer: then more processors are needed, or faster ones."
            ),
            place=Place(0, 47, 6, 7),
        ),
        timeseries(
            "Messages rejected",
            [
                Query(
                    q.zero_while(q.rate(names.REJECTED_MESSAGES, by=("topic", "reason")), alive),
                    "{{topic}} {{reason}}",
                )
            ],
            unit="cps",
            description="Messages that could not be read, per second, by reason. The topic idlewatt.rejected holds them.",
            place=Place(6, 40, 6, 7),
        ),
        timeseries(
            "Sources that answer",
            [Query(q.scrape_success_share(), "{{instance}}")],
            unit="percentunit",
            maximum=1,
            description="Share of each collector's sources (GPU driver, engines) whose last scrape brought rows.",
            place=Place(12, 40, 6, 7),
        ),
        timeseries(
            "Event time lag",
            [Query(q.highest(names.EVENT_TIME_LAG, by=("stage", "partition")), "{{stage}} {{partition}}")],
            unit="s",
            minimum=None,
            description=(
                "Now less the newest event time read, by partition. A partition with a steadily growing lag and "
                "nothing behind holds only silent pools."
            ),
            place=Place(18, 40, 6, 7),
        ),
        stat(
            "Unaccounted energy",
            Query(q.unaccounted_joules(_HERE)),
            unit="joule",
            description="Joules measured less joules accounted for, without sign. Anything but 0 is a bug in Idlewatt.",
            place=Place(6, 47, 4, 7),
        ),
        timeseries(
            "Tokens without a price",
            [
                Query(q.unpriced_tokens_rate(_HERE, ("model_name", "kind")), "{{model_name}} {{kind}}"),
            ],
            unit="si:tok/s",
            description="Tokens of models the price book does not name: they bring no revenue in these figures.",
            place=Place(10, 47, 7, 7),
        ),
        timeseries(
            "Spool",
            [Query(q.level(names.SPOOL_BYTES, by=("instance",)), "{{instance}}")],
            unit="bytes",
            description="Bytes that collectors hold until the log takes them again. What does not fit is dropped and counted.",
            place=Place(17, 47, 7, 7),
        ),
    ]
