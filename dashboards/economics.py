"""The dashboard "Idlewatt / Economics of the token": what tokens bring and cost, and what idle costs in three moneys."""

from typing import Final

from grafanalib.core import Dashboard, Templating, Time

from idlewatt.dashboards import queries as q
from idlewatt.dashboards.panels import (
    CURRENCY,
    Place,
    Query,
    bargauge,
    currency_units,
    stat,
    table,
    timeseries,
    variables,
)
from idlewatt.stream import metric_names as names

UID: Final = "idlewatt-economics"
_HERE: Final = q.SELECTED
# consumers and models are a site's, not a pool's
_SITE: Final = {"site": q.SELECTED["site"]}
_TOP: Final = 20
_BY_POOL: Final = "{{site}} / {{pool}} {{currency}}"
_POOL: Final = (*q.POOL, "currency")


def economics() -> Dashboard:
    """The dashboard, not yet modernised (grafana_json.py)."""
    return Dashboard(
        title="Idlewatt / Economics of the token",
        description="Revenue, cost and yield by the book. Rolling figures are withheld while anything they need is unknown.",
        uid=UID,
        tags=["idlewatt"],
        timezone="browser",
        refresh="30s",
        time=Time("now-6h", "now"),
        graphTooltip=1,
        editable=False,
        templating=Templating(list=variables()),
        panels=[*_now(), *_yields(), *_idle(), *_consumers(), *_envelopes()],
    )


def _now() -> list[object]:
    return [
        stat(
            "Revenue per hour",
            Query(q.money_per_hour(names.REVENUE, _HERE), "{{currency}}"),
            no_value="no price, or old",
            description="Tokens made at the book's prices. Tokens without a price bring nothing here and are counted apart.",
            place=Place(0, 0, 4, 4),
            unit=CURRENCY,
            decimals=2,
            overrides=currency_units(),
        ),
        stat(
            "All-in cost per hour",
            Query(q.all_in_cost_per_hour(_HERE), "{{currency}}"),
            no_value="no tariff or GPU-hour, or old",
            description="Electricity and GPU-hours of all states, idle and dark included: what the bills come to.",
            place=Place(4, 0, 4, 4),
            unit=CURRENCY,
            decimals=2,
            overrides=currency_units(),
        ),
        stat(
            "Margin per hour",
            Query(
                q.level(names.MARGIN_PER_HOUR, {**_HERE, "window": "1h"}, ("currency",)),
                "{{currency}}",
            ),
            no_value="withheld",
            description="Revenue less all-in cost over the trailing hour, of the pools for which both are known.",
            place=Place(8, 0, 4, 4),
            unit=CURRENCY,
            decimals=2,
            overrides=currency_units(),
        ),
        stat(
            "Recoverable GPUs",
            Query(q.level(names.RECOVERABLE_GPUS, _HERE)),
            unit="short",
            no_value="an hour is not known",
            description=(
                "GPUs that held a model for all of the last hour and that not even its busiest window needed, at the "
                "batches as they were: what packing could free, of the pools for which an hour is known."
            ),
            place=Place(12, 0, 4, 4),
        ),
        stat(
            "CO2 per hour",
            Query(f"3600 * {q.rate(names.CARBON, _HERE)}"),
            unit="massg",
            no_value="no intensity in the book, or old",
            description="Grams of CO2 of all energy drawn, PUE included, at the intensity of the book.",
            place=Place(16, 0, 4, 4),
        ),
        stat(
            "Age of the money",
            Query(q.money_age(_HERE)),
            unit="s",
            decimals=0,
            description=(
                "Since the end of the last window that was priced, of the chosen site that is furthest behind. Half a minute or "
                f"so is normal. A pool whose figures are older than {q.CLOCK_LIMIT_S} s is in no figure of the present on this "
                "page, and in no rate while it catches up: what is shown is of the others."
            ),
            place=Place(20, 0, 4, 4),
        ),
    ]


def _yields() -> list[object]:
    all_in = {**_HERE, "basis": "all_in", "kind": "output"}
    in_dollars = {**_HERE, "scope": "it", "currency": "USD"}
    benchmark = q.trailing_hour(names.REVENUE_PER_GIGAWATT_YEAR, in_dollars, ("currency",))
    return [
        timeseries(
            "All-in cost per million output tokens",
            [
                Query(
                    q.trailing_hour(
                        names.COST_PER_MILLION_TOKENS,
                        {**all_in, "cost_basis": basis},
                        (*q.POOL, "origin", "currency"),
                    ),
                    f"{basis} {{{{site}}}} / {{{{pool}}}} {{{{origin}}}} {{{{currency}}}}",
                )
                for basis in ("usage", "allocation")
            ],
            unit=CURRENCY,
            overrides=currency_units(),
            description=(
                "Over the trailing hour. usage: only what serving cost. allocation: idle, dark and other work included; "
                "compare this one with the price of an API. origin says whose price of GPU-hours it stands on."
            ),
            place=Place(0, 4, 12, 9),
        ),
        timeseries(
            "Revenue of a gigawatt-year, beside the benchmark",
            [
                Query(
                    q.trailing_hour(names.REVENUE_PER_GIGAWATT_YEAR, {**_HERE, "scope": "it"}, _POOL),
                    _BY_POOL,
                ),
                # a line wherever there is something to compare, which is in dollars
                Query(f"0 * {benchmark} + 150e9", "benchmark: 150 bn {{currency}}"),
            ],
            unit=CURRENCY,
            overrides=currency_units(),
            description=(
                "What the pool's tokens of the trailing hour would bring in a year on one gigawatt of available power "
                "(board limits). The mission's benchmark is 150 bn USD."
            ),
            place=Place(12, 4, 12, 9),
        ),
    ]


def _idle() -> list[object]:
    idle = {**_HERE, "state": q.WASTED}
    lost = q.money_per_hour(names.LOST_REVENUE, _HERE)
    return [
        timeseries(
            "Idle in three moneys, per hour",
            [
                Query(q.money_per_hour(names.ENERGY_COST, idle), "electricity burnt {{currency}}"),
                Query(q.money_per_hour(names.CAPITAL_COST, idle), "GPU-hours paid {{currency}}"),
                Query(lost, "tokens not sold {{currency}}"),
            ],
            unit=CURRENCY,
            overrides=currency_units(),
            description=(
                "The same idle watts three times: never add them. Tokens not sold are those of the watts that have a price "
                "and a yardstick, and unsold capacity where nobody waited (see the panel beside it)."
            ),
            place=Place(0, 13, 12, 9),
        ),
        timeseries(
            "Tokens not sold, by whether anybody waited",
            [
                Query(
                    q.money_per_hour(names.LOST_REVENUE, _HERE, ("demand", "currency")),
                    "{{demand}} {{currency}}",
                )
            ],
            unit=CURRENCY,
            stacked=True,
            overrides=currency_units(),
            description=(
                "Lost revenue per hour of the idle watts that have a price and a yardstick. waiting: some engine of the pool "
                "had a queue, the loss was avoidable. none: unsold capacity. unknown: no engine was read."
            ),
            place=Place(12, 13, 12, 9),
        ),
        timeseries(
            "Revenue per hour, by tier",
            [
                Query(
                    q.money_per_hour(names.REVENUE, _HERE, ("model_name", "tier", "currency")),
                    "{{model_name}} {{tier}} {{currency}}",
                )
            ],
            unit=CURRENCY,
            stacked=True,
            overrides=currency_units(),
            description="Tiers by the site's usage of the trailing hour; what no usage covers is sold on the default tier.",
            place=Place(0, 22, 12, 8),
        ),
        bargauge(
            "Years to pay 100 bn USD per gigawatt back",
            Query(
                q.trailing_hour(names.PAYBACK_YEARS, {**_HERE, "capital": "benchmark"}, q.POOL),
                "{{site}} / {{pool}}",
            ),
            unit="suffix: years",
            description="At the trailing hour's revenue less energy cost. A pool that pays nothing back has no bar.",
            place=Place(12, 22, 12, 8),
        ),
    ]


def _consumers() -> list[object]:
    return [
        table(
            "What teams owe",
            Query(q.top_spenders(_SITE, "team", _TOP)),
            value="Spend",
            columns={"consumer": "Team", "currency": "Currency"},
            unit=CURRENCY,
            description=(
                "The teams that owe the most for the chosen time, volume steps included, as Prometheus estimates it: it "
                "misses the first amount of each of a team's models, tiers and sites, new ones of a known team too, which "
                "is all that one owes who posts once. `idlewatt report` has all."
            ),
            place=Place(0, 30, 12, 9),
        ),
        timeseries(
            "Output tokens that no usage covers",
            [Query(q.unattributed_share(_SITE), "{{model_name}}")],
            unit="percentunit",
            maximum=1,
            description="Share of the engines' output tokens for which no gateway or agent told who asked for them.",
            place=Place(12, 30, 12, 9),
        ),
    ]


def _envelopes() -> list[object]:
    columns = {
        "site": "Site",
        "envelope": "Envelope",
        "consumer_kind": "Kind",
        "consumer": "Consumer",
        "unit": "Unit",
    }
    legend = "{{envelope}}: {{consumer}}"
    return [
        table(
            "Envelopes most used",
            Query(f"topk({_TOP}, {q.envelope_used_share(_SITE)})"),
            value="Used",
            columns=columns,
            unit="percentunit",
            description=(
                "What of its limit each envelope has used in the day, week or month that is running. One with tokens that "
                "have no price is not shown: its use is not known."
            ),
            place=Place(0, 39, 12, 9),
        ),
        table(
            "Envelopes that will not last",
            Query(f"1000 * bottomk({_TOP}, {q.envelope_exhaustion(_SITE)})"),
            value="Used up",
            columns=columns,
            unit="dateTimeFromNow",
            description=(
                "When envelopes will be used up at the rate of the last hour (a week's: 6 hours, a month's: 3 days), if that "
                "is before their period ends."
            ),
            place=Place(12, 39, 12, 9),
        ),
        timeseries(
            "Burn rate of envelopes, last hour",
            [Query(f"topk({_TOP}, {q.envelope_burn('1h', _SITE)})", legend)],
            unit="suffix: x",
            description="Use over the last hour as a multiple of the even rate, at which the limit lasts just until the period ends.",
            place=Place(0, 48, 12, 8),
        ),
        timeseries(
            "Burn rate of envelopes, last three days",
            [Query(f"topk({_TOP}, {q.envelope_burn('3d', _SITE)})", legend)],
            unit="suffix: x",
            description="The same over three days; absent until usage has been read for so long.",
            place=Place(12, 48, 12, 8),
        ),
    ]
