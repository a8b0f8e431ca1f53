"""Recording and alert rules under promtool: each alert against series that fire it, that must not, and that are missing."""

import itertools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from idlewatt.dashboards import alerts, recording, rules
from idlewatt.stream import metric_names

pytestmark = pytest.mark.prometheus

POOL: Final = 'site="north",pool="a"'
OF_POOL: Final = {"site": "north", "pool": "a"}


@dataclass(frozen=True)
class Fires:
    """An alert as it must fire: its labels without alertname and severity, and its whole text."""

    labels: Mapping[str, str]
    summary: str
    description: str


@dataclass(frozen=True)
class Case:
    """Series by selector in promtool's notation, one value a minute from time 0; what fires at a moment."""

    alert: str
    kind: str  # fires | quiet | missing
    what: str
    series: Mapping[str, str]
    at: str
    fires: tuple[Fires, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.alert}: {self.what}"


def energy(serving: int, loaded: int, free: int, minutes: int = 40, pool: str = POOL) -> dict[str, str]:
    """Energy counters of a pool that draws so many watts in each state."""
    return {
        f'idlewatt_energy_joules_total{{{pool},state="{state}",scope="it"}}': f"1000000+{60 * watts}x{minutes}"
        for state, watts in (("serving", serving), ("idle_loaded", loaded), ("idle_free", free))
        if watts
    }


def sixteen_gpus(*idle: tuple[int, int | None], unread: tuple[int, ...] = ()) -> dict[str, str]:
    """Counters of 16 GPUs with a limit of 700 W: so many minutes with so many idle at 70 W, the others serve at 520 W.

    None: nobody reads them. `unread`: so many of the idle in each of these times.
    """
    joules = dict.fromkeys(
        ("energy serving", "energy idle_free", "headroom serving", "headroom idle_free", ""), 0
    )
    values = dict.fromkeys(joules, "")
    for (minutes, free), dark in itertools.zip_longest(idle, unread, fillvalue=0):
        idle_seen, busy = (0, 0) if free is None else (free - dark, 16 - free)
        seen = (busy * 520, idle_seen * 70, busy * 180, idle_seen * 630)
        watts = dict(zip(joules, (*seen, 16 * 700), strict=True))
        for name, before in joules.items():
            values[name] += f" {before}+{60 * watts[name]}x{minutes - 1}"
            joules[name] += 60 * watts[name] * minutes
    return {
        f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': values["energy serving"],
        f'idlewatt_energy_joules_total{{{POOL},state="idle_free",scope="it"}}': values["energy idle_free"],
        f'idlewatt_headroom_joules_total{{{POOL},state="serving"}}': values["headroom serving"],
        f'idlewatt_headroom_joules_total{{{POOL},state="idle_free"}}': values["headroom idle_free"],
        AVAILABLE: values[""],
    }


def covered(watts: str = "1x2000", tokens: str = "1x2000") -> dict[str, str]:
    """How much of the pool's GPUs and engines was measured."""
    values = {"watts": watts, "tokens": tokens}
    return {f'idlewatt_coverage_ratio{{{POOL},window="5m",of="{of}"}}': values[of] for of in values}


def falling_yield(tokens: str, tokens_per_joule: str) -> dict[str, str]:
    """A pool of 1000 W that made 2000 tokens/s for eight hours; then the given minutes."""
    return covered() | {
        f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "1000000+60000x540",
        f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': tokens,
        f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': tokens_per_joule,
    }


REJECTED: Final = 'idlewatt_rejected_messages_total{topic="idlewatt.gpu",reason="not_arrow",instance="p:1"}'
REFUSED: Final = 'idlewatt_rejected_rows_total{topic="idlewatt.gpu",reason="clock_ahead",instance="p:1"}'
DROPPED: Final = 'idlewatt_spool_dropped_rows_total{topic="idlewatt.gpu",instance="c:1"}'
SPOOLED: Final = 'idlewatt_spool_bytes{instance="c:1",job="idlewatt"}'
SPOOL_LIMIT: Final = 'idlewatt_spool_limit_bytes{instance="c:1",job="idlewatt"}'
BEHIND: Final = 'idlewatt_behind_messages{topic="idlewatt.gpu",partition="3",instance="p:1"}'
READ: Final = 'idlewatt_messages_total{topic="idlewatt.gpu",partition="3",instance="p:1"}'
SCRAPE: Final = 'idlewatt_scrape_success{source="http://e:8000",instance="c:1",job="idlewatt"}'
LEFT_OUT: Final = 'idlewatt_sample_errors_total{source="http://e:8000",reason="ambiguous_series",instance="c:1",job="idlewatt"}'
UNPRICED: Final = f'idlewatt_unpriced_tokens_total{{{POOL},model_name="new",tier="standard",kind="output"}}'
UP: Final = 'up{job="idlewatt",instance="process-1:9477"}'
COLLECTOR_UP: Final = 'up{job="idlewatt",instance="10.0.0.3:9477"}'
WINDOW_END: Final = f"idlewatt_window_end_timestamp_seconds{{{POOL}}}"
MONEY_END: Final = f"idlewatt_money_window_end_timestamp_seconds{{{POOL}}}"
AVAILABLE: Final = f"idlewatt_available_joules_total{{{POOL}}}"
GOING_ON: Final = {
    WINDOW_END.replace('"a"', '"b"'): "0+60x4400",
    AVAILABLE.replace('"a"', '"b"'): "0+60000x4400",
}
WATTS_READ: Final = f'idlewatt_coverage_ratio{{{POOL},window="1m",of="watts"}}'
TOKENS_READ: Final = f'idlewatt_coverage_ratio{{{POOL},window="5m",of="tokens"}}'
SERVING: Final = f'idlewatt_gpus{{{POOL},state="serving",product="H100"}}'
REWINDS: Final = 'idlewatt_rewinds_total{stage="economy",instance="p:1"}'
BOOK_PRICES: Final = 'idlewatt_book_prices{instance="p:1"}'
BOOK_VALID: Final = 'idlewatt_book_valid{instance="p:1"}'
UNACCOUNTED: Final = f"idlewatt_unaccounted_joules_total{{{POOL}}}"
WASTED_TEXT: Final = "Pool a of site north draws 1kW, of which 400W go into GPUs with nothing to do; more than 30% for 15 minutes."

OF_ENVELOPE: Final = {
    "site": "north",
    "envelope": "engineers",
    "consumer_kind": "engineer",
    "consumer": "kim",
    "unit": "USD",
}
ENVELOPE_TEXT: Final = "Envelope engineers of engineer kim at site north"


def envelope(
    used: str = "10x60", exhaustion: str = "", consumer: str = "kim", **burns: str
) -> dict[str, str]:
    """An envelope of 100 and what was used of it; burn rates by w5m, w1h, w6h, w3d."""
    labels = ",".join(f'{name}="{value}"' for name, value in (OF_ENVELOPE | {"consumer": consumer}).items())
    series = {f"idlewatt_envelope_limit{{{labels}}}": "100x60", f"idlewatt_envelope_used{{{labels}}}": used}
    if exhaustion:
        series[f"idlewatt_envelope_exhaustion_timestamp_seconds{{{labels}}}"] = exhaustion
    return series | {
        f'idlewatt_envelope_burn_rate{{{labels},window="{window[1:]}"}}': values
        for window, values in burns.items()
    }


def burns_fast(multiple: str, forecast: str = "") -> Fires:
    return Fires(
        OF_ENVELOPE,
        f"{ENVELOPE_TEXT} burns {multiple} times as fast as it lasts",
        f"{ENVELOPE_TEXT} is used {multiple} times as fast as it would last until its period ends, and still "
        f"now.{forecast}",
    )


def commits_fail(about: str) -> Fires:
    return Fires(
        {"stage": "economy", "instance": "p:1"},
        "p:1 cannot commit its economy",
        f"About {about} commits of stage economy on p:1 did not happen in the last 3 minutes, and it has been so for 5: it "
        "does the same work again and again. What its page shows is as of its last commit. Its log says why (rewound).",
    )


def windows_stand_still(since: str) -> Fires:
    return Fires(
        OF_POOL,
        "No new figures for pool a of site north",
        f"The last closed window of pool a of site north ended {since} ago. Panels do not show it, and its other alerts cannot "
        "fire.",
    )


def money_stands_still(behind: str) -> Fires:
    return Fires(
        OF_POOL,
        "No new money figures for pool a of site north",
        f"Windows of pool a of site north go on closing, and the last one that was priced ended {behind} before the last one "
        "that closed (+Inf: none was in three days). Its money is old or not shown; watts and tokens are right.",
    )


def rows_wait(at_least: str, how_full: str = "") -> Fires:
    return Fires(
        {"instance": "c:1", "job": "idlewatt"},
        "Rows of c:1 wait for Kafka",
        "c:1 cannot send its rows to Kafka, or not as fast as it reads them: for a quarter of an hour some have waited, and "
        f"{at_least} or more do.{how_full} Its pools are dark or late. When there is no room for more the oldest rows are "
        "dropped.",
    )


def unpriced(per_second: str) -> Fires:
    return Fires(
        {"site": "north", "model_name": "new"},
        "Tokens of new at site north have no price",
        f"Over the last hour {per_second} tokens/s of model new at site north had no price in the book. They are in no revenue, and "
        "what stands on them is withheld.",
    )


def left_out(source: str, reason: str, times: str) -> Fires:
    return Fires(
        {"source": source, "reason": reason, "instance": "c:1"},
        f"c:1 leaves out a part of {source} all the time: {reason}",
        f"About {times} times in the last 3 minutes, and for a quarter of an hour, c:1 has left out something of {source} "
        f"({reason}): a GPU or a figure of one, a model, a consumer, or rows. What it would have told is in no figure. The rest "
        "of the source is read.",
    )


def engines_dark(share: str) -> Fires:
    return Fires(
        OF_POOL,
        f"Pool a of site north shows no ratios: {share} of its engine time, or tokens of a kind, is not measured",
        f"{share} of the engine time of pool a of site north, or of its tokens of a kind, is of engines that nobody reads, or that "
        "make tokens on GPUs that nobody reads, for 30 minutes, or in part of each hour. What tokens take there is not known, and the pool's ratios are "
        "withheld. The watts of GPUs that are read are right.",
    )


def leaves_idle(share: str, money: str = "") -> Fires:
    return Fires(
        OF_POOL,
        f"Pool a of site north leaves {share} of its available watts idle",
        f"In the last hour {share} of what is available to pool a of site north, as far as it was seen, was that of GPUs with nothing "
        f"to do, drawn or not, and in no hour of the last day were others seen to need 50%.{money}",
    )


IS_GONE: Final = Fires(
    {"job": "idlewatt", "instance": "10.0.0.3:9477"},
    "10.0.0.3:9477 is gone",
    "10.0.0.3:9477 was a target of Prometheus within the last hour and is none any more, and no other has taken its place: a "
    "container that stops loses its name. If it was a collector, its node goes dark; if a processor, the others have its "
    "pools.",
)
STANDS_STILL: Final = Fires(
    {"topic": "idlewatt.gpu", "partition": "3", "instance": "p:1"},
    "Processors are behind on partition 3 of idlewatt.gpu",
    "What is still to be read of partition 3 of idlewatt.gpu takes +Inf at the speed of the last 5 "
    "minutes (+Inf: it does not move). Figures and alerts of its pools are that late; nothing is lost.",
)
FORECAST: Final = " By the forecast it is used up at 1970-01-01 03:00:00 +0000 UTC."

CASES: Final = (
    Case(
        "IdlewattWastedWatts",
        "fires",
        "400 of 1000 W wasted for 15 minutes, with the money where a price is known",
        energy(600, 300, 100)
        | {f'idlewatt_lost_revenue_per_hour{{{POOL},window="5m",currency="USD"}}': "12.5x40"},
        "30m",
        (
            Fires(
                OF_POOL,
                "Pool a of site north burns 40% of its watts for nothing",
                f"{WASTED_TEXT} With the headroom of its idle GPUs it loses 12.50 USD an hour.",
            ),
        ),
    ),
    Case(
        "IdlewattWastedWatts",
        "fires",
        "no price is known: no word of money; each pool speaks for itself",
        energy(600, 300, 100) | energy(900, 100, 0, pool='site="north",pool="b"'),
        "30m",
        (Fires(OF_POOL, "Pool a of site north burns 40% of its watts for nothing", WASTED_TEXT),),
    ),
    Case(
        "IdlewattWastedWatts",
        "fires",
        "the economy stands still: no word of money that is old",
        energy(600, 300, 100)
        | {
            f'idlewatt_lost_revenue_per_hour{{{POOL},window="5m",currency="USD"}}': "12.5x40",
            MONEY_END: "0x40",
        },
        "30m",
        (Fires(OF_POOL, "Pool a of site north burns 40% of its watts for nothing", WASTED_TEXT),),
    ),
    Case("IdlewattWastedWatts", "quiet", "a quarter is wasted", energy(750, 150, 100), "40m"),
    Case("IdlewattWastedWatts", "quiet", "not for 15 minutes yet", energy(600, 300, 100), "14m"),
    Case("IdlewattWastedWatts", "quiet", "no idle state was ever seen", energy(1000, 0, 0), "40m"),
    Case("IdlewattWastedWatts", "missing", "the pool vanished", energy(600, 300, 100, minutes=16), "40m"),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "11 of 16 GPUs are empty all day, which is less than a quarter of the drawn watts",
        sixteen_gpus((1700, 11))
        | {f'idlewatt_lost_revenue_per_hour{{{POOL},window="5m",currency="USD"}}': "120x1700"},
        "1620m",
        (leaves_idle("68.75%", " With the headroom of its idle GPUs it loses 120.00 USD an hour."),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "9 are; Prometheus was away for half an hour a day ago",
        {
            name: f"{values.split()[0]} _x30 {values.split()[1]}"
            for name, values in sixteen_gpus((120, 9), (1700, 9)).items()
        },
        "1560m",
        (leaves_idle("56.25%"),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "11 are; for 20 minutes, ten hours ago, none of the 16 was read",
        sixteen_gpus((1000, 11), (20, None), (700, 11)),
        "1620m",
        (leaves_idle("68.75%"),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "none of the 16 ever served",
        {name: values for name, values in sixteen_gpus((1700, 16)).items() if "serving" not in name},
        "1620m",
        (leaves_idle("100%"),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "11 are; for 50 minutes, ten hours ago, eight of these were not read, and the others no busier",
        sixteen_gpus((1000, 11), (50, 11), (700, 11), unread=(0, 8, 0)),
        "1620m",
        (leaves_idle("68.75%"),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "11 are; for two hours, a day and a half ago, none of the 16 was read",
        sixteen_gpus((1500, 11), (120, None), (1500, 11)),
        "3000m",
        (leaves_idle("68.75%"),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "fires",
        "11 are; what the others did in two hours came from a spool at once, as if in one",
        sixteen_gpus((1800, 11))
        | {
            series: f"0+{watts * 60}x1440 {watts * 60 * 1440}x119 {watts * 60 * 1561}+{watts * 60}x239"
            for series, watts in (
                (f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}', 5 * 520),
                (f'idlewatt_headroom_joules_total{{{POOL},state="serving"}}', 5 * 180),
            )
        },
        "1740m",
        (leaves_idle("68.75%"),),
    ),
    Case(
        "IdlewattIdleCapacity",
        "quiet",
        "11 are, as far as was seen, and for seven hours none of the 16 was read",
        sixteen_gpus((800, 11), (420, None), (500, 11)),
        "1620m",
    ),
    Case(
        "IdlewattIdleCapacity",
        "quiet",
        "the one that is read is, and of the other 15 nobody knows",
        {
            f'idlewatt_energy_joules_total{{{POOL},state="idle_free",scope="it"}}': "0+4200x1700",
            f'idlewatt_headroom_joules_total{{{POOL},state="idle_free"}}': "0+37800x1700",
            AVAILABLE: "0+672000x1700",
        },
        "1620m",
    ),
    Case(
        "IdlewattIdleCapacity",
        "quiet",
        "11 are, in an hour a day ago and since Prometheus is back now",
        {
            name: f"{values.split()[0]} _x1300 {values.split()[1]}"
            for name, values in sixteen_gpus((60, 11), (120, 11)).items()
        },
        "1440m",
    ),
    Case(
        "IdlewattIdleCapacity",
        "quiet",
        "by night 14 are empty, by day 7",
        sixteen_gpus((600, 7), (840, 14), (600, 7), (840, 14)),
        "2400m",
    ),
    Case(
        "IdlewattIdleCapacity",
        "quiet",
        "it was needed for an hour and a half in the day",
        sixteen_gpus((1200, 11), (90, 2), (1200, 11)),
        "2400m",
    ),
    Case("IdlewattIdleCapacity", "quiet", "known for less than a day", sixteen_gpus((1200, 11)), "1140m"),
    Case(
        "IdlewattIdleCapacity",
        "quiet",
        "its figures are old (IdlewattWindowClockStalled fires then)",
        sixteen_gpus((1700, 11)) | {WINDOW_END: "0+60x1590 95400x100"},
        "1620m",
    ),
    Case("IdlewattIdleCapacity", "missing", "no GPU", {}, "40m"),
    Case(
        "IdlewattTokensPerJouleFell",
        "fires",
        "0.5 tokens per joule for 40 minutes after a morning at 2",
        falling_yield("1000000+120000x480 58630000+30000x60", "2x480 0.5x60"),
        "525m",
        (
            Fires(
                OF_POOL,
                "Pool a of site north makes less than half the tokens per joule of its own day",
                "Pool a of site north makes 500m output tokens per joule, against 1.877 over the last day, at "
                "500 tokens/s.",
            ),
        ),
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "it fell by less than half",
        falling_yield("1000000+120000x480 58684000+84000x60", "2x480 1.4x60"),
        "525m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "too few tokens to say anything",
        falling_yield("1000000+120000x480 58600300+300x60", "2x480 0.005x60"),
        "525m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "half a day of history is not there yet",
        covered()
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "0+60000x200",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+120000x120 14400000+30000x80",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "2x120 0.5x80",
        },
        "190m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "as ever since its first engine, which came after 18 hours of idle watts",
        covered(tokens="_x1080 1x480")
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "0+6000x1080 6486000+60000x480",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "_x1080 0+60000x480",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "_x1080 1x480",
        },
        "1530m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "half a day of engines is there, two hours of their GPUs",
        covered(watts="_x480 1x160")
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "_x480 0+60000x160",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+120000x600 72000000+30000x40",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "_x480 2x120 0.5x40",
        },
        "635m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "as ever; GPUs of one node of ten were read for six hours, and the others are since",
        covered(watts="0.1x360 0.28 0.46 0.64 0.82 1x300")
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "0+6000x360 2220000+60000x300",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+120000x660",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "_x364 2x300",
        },
        "540m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "as ever after a load test six hours ago, and of the time between no GPU was read",
        covered(watts="1x60 0x300 1x120")
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "0+60000x60 3600000x299 3600000+60000x120",
            f'idlewatt_energy_joules_total{{{POOL},state="dark",scope="it"}}': "0x361 18000000x120",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+360000x60 21600000+90000x420",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "6x60 _x302 1.5x120",
        },
        "420m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "quiet",
        "as ever after a load test six hours ago, and it was idle in between",
        covered()
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "0+60000x60 3600000+6000x300 5400000+60000x120",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+360000x60 21600000x300 21600000+90000x120",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "6x60 _x301 1.5x120",
        },
        "410m",
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "fires",
        "0.75 after 2, and six hours ago its GPUs were not read: their joules came to the counters at once",
        covered(watts="1x480 0x360 0.2 0.4 0.6 0.8 1x480")
        | {
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': "0+30000x480 14400000x360 14430000+30000x240 21680000+80000x240",
            f'idlewatt_energy_joules_total{{{POOL},state="dark",scope="it"}}': "0x840 10800000x480",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+60000x1320",
            f'idlewatt_tokens_per_joule{{{POOL},window="5m",kind="output"}}': "2x480 _x364 2x236 0.75x240",
        },
        "1175m",
        (
            Fires(
                OF_POOL,
                "Pool a of site north makes less than half the tokens per joule of its own day",
                "Pool a of site north makes 750m output tokens per joule, against 1.679 over the last day, at 1k tokens/s.",
            ),
        ),
    ),
    Case(
        "IdlewattTokensPerJouleFell",
        "missing",
        "the meter withholds the figure",
        falling_yield("1000000+120000x480 58630000+30000x60", "2x480"),
        "525m",
    ),
    Case(
        "IdlewattPoolDark",
        "fires",
        "a quarter of the GPU time was not read",
        {WATTS_READ: "0.75x20"},
        "10m",
        (
            Fires(
                OF_POOL,
                "Pool a of site north is dark: nobody knows what 25% of its GPUs do",
                "25% of the GPUs of pool a of site north tell nothing, or the engines that hold them do not. Their "
                "watts, measured or set aside, are booked as dark, not as zero (those of GPUs that were never read are "
                "not known), and the pool's ratios are withheld.",
            ),
        ),
    ),
    Case("IdlewattPoolDark", "quiet", "a twelfth was not", {WATTS_READ: "0.917x20"}, "10m"),
    Case("IdlewattPoolDark", "quiet", "dark for a moment", {WATTS_READ: "0.2 0.2 0.6 1x20"}, "10m"),
    Case(
        "IdlewattPoolDark",
        "quiet",
        "the figures are old (IdlewattWindowClockStalled fires then)",
        {WATTS_READ: "0.75x20", WINDOW_END: "0x20"},
        "10m",
    ),
    Case("IdlewattPoolDark", "missing", "a pool has no GPUs", {}, "10m"),
    Case(
        "IdlewattEnginesDark",
        "fires",
        "GPUs that no engine names were never read on a quarter of the nodes: all that are known are",
        {WATTS_READ: "1x40", TOKENS_READ: "0.75x40"},
        "35m",
        (engines_dark("25%"),),
    ),
    Case(
        "IdlewattEnginesDark",
        "fires",
        "one of two engines loads for 140 s, serves for 160 and is killed, again and again; some minutes are read well",
        {
            TOKENS_READ: "1x5 0.9 0.8 0.77x40",
            TOKENS_READ.replace("5m", "1m"): "1x5 " + "0.5 0.5 0.75 1 1 " * 9,
        },
        "40m",
        (engines_dark("23%"),),
    ),
    Case(
        "IdlewattEnginesDark",
        "fires",
        "one of two engines loads for 240 s, serves for 600 and is killed, again and again: in each hour a seventh is not read",
        {
            TOKENS_READ: "1x5 " + "0.9 0.75 0.6 0.6 0.6 0.7 0.9 1x6 " * 9,
            TOKENS_READ.replace("5m", "1h"): "1x25 0.95x5 0.857x95",
        },
        "125m",
        (engines_dark("14.3%"),),
    ),
    Case(
        "IdlewattEnginesDark",
        "quiet",
        "for 25 minutes nothing was read, more than an hour ago",
        {
            TOKENS_READ: "1x5 0.5 0x23 0.5 1x95",
            TOKENS_READ.replace("5m", "1h"): "1x5 0.95 0.85 0.75x58 0.8x15 0.85x5 0.95 1x40",
        },
        "88m",
    ),
    Case(
        "IdlewattEnginesDark",
        "quiet",
        "for an hour nothing was read, which ended 40 minutes ago",
        {
            TOKENS_READ: "1x5 0.5 0x58 0.5 1x95",
            TOKENS_READ.replace("5m", "1h"): "1x5 1-0.0167x59 0+0.0167x59 1x40",
        },
        "105m",
    ),
    Case(
        "IdlewattEnginesDark",
        "quiet",
        "an engine is restarted now and then, and the hour's figures are there for 40 minutes",
        {
            TOKENS_READ: "1x5 " + "0.9 0.75 0.6 0.6 0.6 0.7 0.9 1x6 " * 9,
            TOKENS_READ.replace("5m", "1h"): "_x85 0.857x40",
        },
        "125m",
    ),
    Case("IdlewattEnginesDark", "quiet", "a twelfth is not read", {TOKENS_READ: "0.917x40"}, "35m"),
    Case(
        "IdlewattEnginesDark",
        "quiet",
        "five engines that are restarted one after the other load for four minutes each",
        {TOKENS_READ: "1x5 0.96 0.92 0.88 0.84 0.8x16 0.84 0.88 0.92 0.96 1x20"},
        "40m",
    ),
    Case(
        "IdlewattEnginesDark",
        "quiet",
        "the figures are old (IdlewattWindowClockStalled fires then)",
        {TOKENS_READ: "0.75x40", WINDOW_END: "0x40"},
        "35m",
    ),
    Case("IdlewattEnginesDark", "missing", "a pool has no engine", {WATTS_READ: "0.75x40"}, "35m"),
    Case(
        "IdlewattPipelineBehind",
        "fires",
        "6000 messages at 20 a second",
        {BEHIND: "6000x20", READ: "0+1200x20"},
        "15m",
        (
            Fires(
                {"topic": "idlewatt.gpu", "partition": "3", "instance": "p:1"},
                "Processors are behind on partition 3 of idlewatt.gpu",
                "What is still to be read of partition 3 of idlewatt.gpu takes 5m 0s at the speed of the last 5 "
                "minutes (+Inf: it does not move). Figures and alerts of its pools are that late; nothing is lost.",
            ),
        ),
    ),
    Case(
        "IdlewattPipelineBehind",
        "fires",
        "a partition that nobody ever moved",
        {BEHIND: "1x20"},
        "15m",
        (STANDS_STILL,),
    ),
    Case(
        "IdlewattPipelineBehind",
        "quiet",
        "600 messages at 20 a second",
        {BEHIND: "600x20", READ: "0+1200x20"},
        "15m",
    ),
    Case("IdlewattPipelineBehind", "quiet", "caught up and silent", {BEHIND: "0x20", READ: "500x20"}, "15m"),
    Case(
        "IdlewattPipelineBehind",
        "quiet",
        "told twice while it changes hands",
        {
            BEHIND: "1000x4 stale",
            BEHIND.replace("p:1", "p:2"): "_x3 1000x20",
            READ: "0+1200x4 stale",
            READ.replace("p:1", "p:2"): "_x3 0+1200x20",
        },
        "15m",
    ),
    Case(
        "IdlewattPipelineBehind",
        "fires",
        "a box that reads nothing, beside another that is busy with a partition of the same number",
        {BEHIND: "60+60x20", READ: "0x20", READ.replace("p:1", "p:2"): "0+6000x20"},
        "15m",
        (STANDS_STILL,),
    ),
    Case("IdlewattPipelineBehind", "missing", "no processor", {}, "15m"),
    Case(
        "IdlewattWindowClockStalled",
        "fires",
        "windows stopped closing at 10 minutes",
        {WINDOW_END: "0+60x10 600x20"},
        "20m",
        (windows_stand_still("10m 0s"),),
    ),
    Case("IdlewattWindowClockStalled", "quiet", "windows close", {WINDOW_END: "-40+60x30"}, "25m"),
    Case(
        "IdlewattWindowClockStalled",
        "missing",
        "the pool's series vanished: the last known window counts",
        {WINDOW_END: "0+60x10 stale"},
        "20m",
        (windows_stand_still("10m 0s"),),
    ),
    Case(
        "IdlewattWindowClockStalled",
        "fires",
        "nobody serves the pool over a weekend; another pool goes on",
        GOING_ON | {WINDOW_END: "0+60x10 stale", AVAILABLE: "0+60000x10 stale"},
        "3780m",
        (windows_stand_still("2d 14h 50m 0s"),),
    ),
    Case(
        "IdlewattWindowClockStalled",
        "fires",
        "a processor serves it and cannot commit",
        {WINDOW_END: "0+60x10 600x4320", AVAILABLE: "0+60000x10 600000x4320"},
        "4320m",
        (windows_stand_still("2d 23h 50m 0s"),),
    ),
    Case(
        "IdlewattWindowClockStalled",
        "quiet",
        "its processor has forgotten the GPUs of a pool that was removed",
        GOING_ON | {WINDOW_END: "0+60x10 stale", AVAILABLE: "0+60000x10 600000x1000"},
        "30m",
    ),
    Case(
        "IdlewattWindowClockStalled",
        "quiet",
        "a pool of engines alone was removed",
        GOING_ON
        | {
            WINDOW_END: "0+60x10 stale",
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "0+60000x10 600000x1000",
        },
        "600m",
    ),
    Case(
        "IdlewattWindowClockStalled",
        "quiet",
        "gone for longer than it is looked for",
        GOING_ON | {WINDOW_END: "0+60x10 stale", AVAILABLE: "0+60000x10 stale"},
        "4335m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "fires",
        "nothing was priced after 10 minutes; another pool's money goes on",
        {
            WINDOW_END: "0+60x30",
            MONEY_END: "0+60x10 600x20",
            SERVING: "8x30",
            WINDOW_END.replace('"a"', '"b"'): "0+60x30",
            MONEY_END.replace('"a"', '"b"'): "-60+60x30",
            SERVING.replace('"a"', '"b"'): "8x30",
        },
        "20m",
        (money_stands_still("10m 0s"),),
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "fires",
        "no processor serves the pool's money any more: the last known window counts",
        {WINDOW_END: "0+60x30", MONEY_END: "0+60x10 stale", SERVING: "8x30"},
        "20m",
        (money_stands_still("10m 0s"),),
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "fires",
        "still after a weekend",
        {WINDOW_END: "0+60x4400", MONEY_END: "0+60x10 stale", SERVING: "8x4400"},
        "3780m",
        (money_stands_still("2d 14h 50m 0s"),),
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "fires",
        "still after longer than the last window is looked for",
        {WINDOW_END: "0+60x4400", MONEY_END: "0+60x10 stale", SERVING: "8x4400"},
        "4360m",
        (money_stands_still("+Inf"),),
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "fires",
        "the economy never ran",
        {WINDOW_END: "0+60x30", SERVING: "8x30"},
        "25m",
        (money_stands_still("+Inf"),),
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "it was started at last",
        {WINDOW_END: "0+60x30", MONEY_END: "_x20 1140+60x10", SERVING: "8x30"},
        "21m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "a new pool, whose first windows are priced in a while",
        {WINDOW_END: "_x10 600+60x30", MONEY_END: "_x13 690+60x30", SERVING: "_x10 8x30"},
        "25m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "engines alone: their money has no clock",
        {WINDOW_END: "0+60x30"},
        "25m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "money follows in a while",
        {WINDOW_END: "0+60x30", MONEY_END: "-90+60x30", SERVING: "8x30"},
        "25m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "it catches up within minutes",
        {WINDOW_END: "0+60x30", MONEY_END: "0+60x10 600x5 960+60x20", SERVING: "8x30"},
        "25m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "the meter stands still (IdlewattWindowClockStalled fires then)",
        {WINDOW_END: "0+60x10 600x20", MONEY_END: "-60+60x11 600x20", SERVING: "8x30"},
        "25m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "the pool's last GPU is gone: its windows end, and its clock does not yet",
        {WINDOW_END: "0+60x30", MONEY_END: "0+60x10 600x20", SERVING: "8x10 stale"},
        "25m",
    ),
    Case(
        "IdlewattMoneyClockStalled",
        "quiet",
        "the pool is gone",
        {WINDOW_END: "0+60x10 stale", MONEY_END: "0+60x10 stale", SERVING: "8x10 stale"},
        "25m",
    ),
    Case("IdlewattMoneyClockStalled", "missing", "no processor", {}, "25m"),
    Case(
        "IdlewattCommitsFail",
        "fires",
        "each commit of the economy is refused; the meter's of the same process are not",
        {REWINDS: "13x10 13+26x20", REWINDS.replace("economy", "meter"): "2x30"},
        "20m",
        (commits_fail("78"),),
    ),
    Case(
        "IdlewattCommitsFail",
        "fires",
        "a broker that hangs holds each commit up for a minute; the series is born with the first",
        {REWINDS: "_x5 1+1x30"},
        "20m",
        (commits_fail("3"),),
    ),
    Case(
        "IdlewattCommitsFail",
        "quiet",
        "a rebalance or two",
        {REWINDS: "0x5 1x4 2x4 8x30"},
        "19m",
    ),
    Case("IdlewattCommitsFail", "quiet", "not for five minutes", {REWINDS: "0x10 20+20x4 100x30"}, "18m"),
    Case(
        "IdlewattCommitsFail",
        "quiet",
        "now and then, for hours",
        {REWINDS: "0x3 1x3 2x3 3x3 4x3 5x3 6x3"},
        "20m",
    ),
    Case("IdlewattCommitsFail", "missing", "each commit happened", {}, "20m"),
    Case(
        "IdlewattNoFigures",
        "fires",
        "processors answer and tell of no pool",
        {UP: "1x20"},
        "10m",
        (
            Fires(
                {},
                "Prometheus has no figures from any Idlewatt processor",
                "Not one series of idlewatt_window_end_timestamp_seconds is there. No other alert on watts, tokens "
                "or money can fire in this state.",
            ),
        ),
    ),
    Case("IdlewattNoFigures", "quiet", "one pool is enough", {WINDOW_END: "0+60x20"}, "10m"),
    Case(
        "IdlewattNoFigures",
        "missing",
        "nothing at all",
        {},
        "10m",
        (
            Fires(
                {},
                "Prometheus has no figures from any Idlewatt processor",
                "Not one series of idlewatt_window_end_timestamp_seconds is there. No other alert on watts, tokens "
                "or money can fire in this state.",
            ),
        ),
    ),
    Case(
        "IdlewattTargetDown",
        "fires",
        "one of two processors does not answer",
        {UP: "1 0x20", UP.replace("process-1", "process-2"): "1x20"},
        "5m",
        (
            Fires(
                {"job": "idlewatt", "instance": "process-1:9477"},
                "process-1:9477 does not answer",
                "Prometheus has not been able to read /metrics of process-1:9477 for 2 minutes. If it is a "
                "processor, the others take over its pools within a minute; if a collector, its node goes dark.",
            ),
        ),
    ),
    Case("IdlewattTargetDown", "quiet", "one lost scrape", {UP: "1 1 0 1x20"}, "5m"),
    Case("IdlewattTargetDown", "quiet", "another job", {'up{job="node",instance="n:1"}': "0x20"}, "5m"),
    Case("IdlewattTargetDown", "missing", "no target (IdlewattNoFigures fires then)", {}, "10m"),
    Case(
        "IdlewattTargetGone",
        "fires",
        "a collector's container stops; the others stay",
        {UP: "1x90", COLLECTOR_UP: "1x20 0 stale", COLLECTOR_UP.replace(".3", ".4"): "1x90"},
        "30m",
        (IS_GONE,),
    ),
    Case(
        "IdlewattTargetGone",
        "fires",
        "still after three quarters of an hour",
        {UP: "1x120", COLLECTOR_UP: "1x60 0 stale"},
        "105m",
        (IS_GONE,),
    ),
    Case(
        "IdlewattTargetGone",
        "fires",
        "a new one came ten minutes before another stopped",
        {UP: "1x90", COLLECTOR_UP: "1x40 0 stale", COLLECTOR_UP.replace(".3", ".4"): "_x30 1x60"},
        "50m",
        (IS_GONE,),
    ),
    Case("IdlewattTargetGone", "fires", "the only one", {COLLECTOR_UP: "1x20 0 stale"}, "30m", (IS_GONE,)),
    Case(
        "IdlewattTargetGone",
        "quiet",
        "all collectors are replaced, and for a moment old and new are there",
        {
            UP: "1x90",
            COLLECTOR_UP: "1x40 0 stale",
            COLLECTOR_UP.replace(".3", ".4"): "1x41 0 stale",
            COLLECTOR_UP.replace(".3", ".5"): "_x41 1x50",
            COLLECTOR_UP.replace(".3", ".6"): "_x42 1x50",
        },
        "60m",
    ),
    Case(
        "IdlewattTargetGone",
        "quiet",
        "back within five minutes",
        {UP: "1x90", COLLECTOR_UP: "1x20 _x4 1x60"},
        "25m",
    ),
    Case(
        "IdlewattTargetGone",
        "quiet",
        "gone for more than an hour",
        {UP: "1x150", COLLECTOR_UP: "1x20 stale"},
        "85m",
    ),
    Case("IdlewattTargetGone", "quiet", "it is there and down", {UP: "1x20 0x40"}, "40m"),
    Case(
        "IdlewattTargetGone",
        "quiet",
        "another job's",
        {UP: "1x90", 'up{job="node",instance="n:1"}': "1x20 stale"},
        "30m",
    ),
    Case("IdlewattTargetGone", "missing", "no target was ever there", {}, "30m"),
    Case(
        "IdlewattCollectorFailing",
        "fires",
        "an engine answers one time in five",
        {SCRAPE: "0 0 0 0 1 0 0 0 0 1 0 0 0 0 1 0 0 0"},
        "13m",
        (
            Fires(
                {"source": "http://e:8000", "instance": "c:1", "job": "idlewatt"},
                "c:1 cannot read http://e:8000",
                "Only 16.67% of the readings of http://e:8000 by c:1 brought anything lately. Its GPUs "
                "or tokens are booked as not measured. idlewatt_scrape_errors_total has the reason, or "
                "idlewatt_sample_errors_total.",
            ),
        ),
    ),
    Case(
        "IdlewattCollectorFailing",
        "fires",
        "an engine that loads for three minutes, serves for two and is killed, again and again; it is read just now",
        {SCRAPE: "1x15 " + "0 0 0 1 1 " * 8},
        "50m",
        (
            Fires(
                {"source": "http://e:8000", "instance": "c:1", "job": "idlewatt"},
                "c:1 cannot read http://e:8000",
                "Only 41.94% of the readings of http://e:8000 by c:1 brought anything lately. Its GPUs or tokens are booked as "
                "not measured. idlewatt_scrape_errors_total has the reason, or idlewatt_sample_errors_total.",
            ),
        ),
    ),
    Case(
        "IdlewattCollectorFailing",
        "quiet",
        "an engine that was away for twenty minutes is back for six",
        {SCRAPE: "1x40 0x19 1x5"},
        "66m",
    ),
    Case(
        "IdlewattCollectorFailing",
        "quiet",
        "a new engine, which loaded for four minutes, is back",
        {SCRAPE: "0x3 1x20"},
        "6m",
    ),
    Case("IdlewattCollectorFailing", "quiet", "one failure", {SCRAPE: "1 1 1 0 1x20"}, "5m"),
    Case(
        "IdlewattCollectorFailing",
        "quiet",
        "an engine that was restarted, and loaded for four minutes, is back",
        {SCRAPE: "1x5 0x3 1x20"},
        "11m",
    ),
    Case("IdlewattCollectorFailing", "missing", "no collector (its target is down then)", {}, "12m"),
    Case(
        "IdlewattReadingsLeftOut",
        "fires",
        "one model of an engine and one GPU of a node at each reading, since their first; all else is read",
        {
            UP.replace("process-1:9477", "c:1"): "1x100",
            SCRAPE: "1x100",
            LEFT_OUT: "_x60 60+60x40",
            LEFT_OUT.replace("http://e:8000", "nvml").replace(
                "ambiguous_series", "gpu_lost"
            ): "0x60 60+60x40",
        },
        "80m",
        (left_out("http://e:8000", "ambiguous_series", "180"), left_out("nvml", "gpu_lost", "180")),
    ),
    Case("IdlewattReadingsLeftOut", "quiet", "for ten minutes", {LEFT_OUT: "0x10 60+60x10 600x40"}, "24m"),
    Case("IdlewattReadingsLeftOut", "quiet", "now and then", {LEFT_OUT: "0x8 1x8 2x8 3x8 4x8 5x8"}, "45m"),
    *(
        Case(
            "IdlewattReadingsLeftOut",
            "quiet",
            f"{reason}: it is so for good",
            {LEFT_OUT.replace("ambiguous_series", reason): "0+60x60"},
            "50m",
        )
        for reason in ("module_shared", "no_power_reading", "no_model")
    ),
    Case("IdlewattReadingsLeftOut", "missing", "nothing was ever left out", {SCRAPE: "1x60"}, "40m"),
    Case(
        "IdlewattMessagesRejected",
        "fires",
        "the first rejection gives birth to its series",
        {REJECTED: "_x90 2x30", UP: "1x150"},
        "92m",
        (
            Fires(
                {"topic": "idlewatt.gpu", "reason": "not_arrow"},
                "Messages of idlewatt.gpu cannot be read: not_arrow",
                "About 2 messages of idlewatt.gpu were rejected in the last 15 minutes (not_arrow). What they held "
                "is not in the figures; the topic idlewatt.rejected says which they were.",
            ),
        ),
    ),
    Case(
        "IdlewattMessagesRejected",
        "fires",
        "more are rejected by two processors",
        {REJECTED: "0+1x60", REJECTED.replace("p:1", "p:2"): "100+1x60"},
        "40m",
        (
            Fires(
                {"topic": "idlewatt.gpu", "reason": "not_arrow"},
                "Messages of idlewatt.gpu cannot be read: not_arrow",
                "About 30 messages of idlewatt.gpu were rejected in the last 15 minutes (not_arrow). What they held "
                "is not in the figures; the topic idlewatt.rejected says which they were.",
            ),
        ),
    ),
    Case("IdlewattMessagesRejected", "quiet", "old rejections", {REJECTED: "7x60"}, "40m"),
    Case("IdlewattMessagesRejected", "missing", "nothing was ever rejected", {}, "40m"),
    Case(
        "IdlewattRowsRefused",
        "fires",
        "a node's clock is ahead, for two processors",
        {REFUSED: "0+10x60", REFUSED.replace("p:1", "p:2"): "5+10x60"},
        "40m",
        (
            Fires(
                {"topic": "idlewatt.gpu", "reason": "clock_ahead"},
                "Rows of idlewatt.gpu are refused all the time: clock_ahead",
                "About 100 rows of idlewatt.gpu were refused in the last 5 minutes (clock_ahead), and some for a quarter of an "
                "hour. What they say cannot be true, and is in no figure.",
            ),
        ),
    ),
    Case("IdlewattRowsRefused", "quiet", "a few, once", {REFUSED: "0x10 7x50"}, "30m"),
    Case(
        "IdlewattRowsRefused",
        "quiet",
        "repeats",
        {REFUSED.replace("clock_ahead", "repeat"): "0+10x60"},
        "40m",
    ),
    Case("IdlewattRowsRefused", "missing", "nothing was ever refused", {}, "40m"),
    Case(
        "IdlewattMessagesRejected",
        "quiet",
        "a counter that could not be scraped for a while",
        {REJECTED: "7x20 _x12 7x30"},
        "34m",
    ),
    Case(
        "IdlewattSpoolFills",
        "fires",
        "a node is cut off from Kafka, long before its spool is half full or its GPUs are forgotten; another is not",
        {
            SPOOLED: "0x3 0+1024x90",
            SPOOL_LIMIT: "1024000x90",
            SPOOLED.replace("c:1", "c:2"): "0x90",
            SPOOL_LIMIT.replace("c:1", "c:2"): "1024000x90",
        },
        "20m",
        (rows_wait("6kiB", " Its spool is 1.6% full."),),
    ),
    Case(
        "IdlewattSpoolFills",
        "fires",
        "still after a day, and some readings of its page failed",
        {SPOOLED: "0x3 0+1024x700 _x7 718848+1024x800", SPOOL_LIMIT: "2048000x1600"},
        "1445m",
        (rows_wait("1.392MiB", " Its spool is 71.75% full."),),
    ),
    Case(
        "IdlewattSpoolFills",
        "fires",
        "without a spool they wait in memory",
        {SPOOLED: "0x3 0+1024x90"},
        "20m",
        (rows_wait("6kiB"),),
    ),
    Case(
        "IdlewattSpoolFills",
        "quiet",
        "an outage of a quarter of an hour less a minute",
        {SPOOLED: "0x5 1000+1000x13 0x40", SPOOL_LIMIT: "100000x60"},
        "19m",
    ),
    Case(
        "IdlewattSpoolFills",
        "quiet",
        "what is sent at the very moment",
        {SPOOLED: "3000x8 0 3000x8 0 3000x8"},
        "26m",
    ),
    Case(
        "IdlewattSpoolFills",
        "quiet",
        "Kafka took all of it",
        {SPOOLED: "0x3 1000+1000x60 0x40", SPOOL_LIMIT: "100000x100"},
        "66m",
    ),
    Case("IdlewattSpoolFills", "missing", "no collector", {}, "20m"),
    Case(
        "IdlewattRowsDropped",
        "fires",
        "a spool overflows",
        {DROPPED: "_x90 400x30", UP: "1x150"},
        "92m",
        (
            Fires(
                {"topic": "idlewatt.gpu", "instance": "c:1"},
                "c:1 drops rows for idlewatt.gpu",
                "c:1 dropped about 400 rows for idlewatt.gpu in the last 15 minutes: the log was away for longer than "
                "the spool holds, or refuses them (append_failed in its log). They are lost.",
            ),
        ),
    ),
    Case("IdlewattRowsDropped", "quiet", "dropped long ago", {DROPPED: "400x60"}, "40m"),
    Case(
        "IdlewattRowsDropped",
        "quiet",
        "dropped long ago, and Prometheus was away",
        {DROPPED: "400x60 _x80 400x60", UP: "1x60 _x80 1x60"},
        "142m",
    ),
    Case(
        "IdlewattRowsDropped",
        "quiet",
        "dropped long ago, and the collector could not be scraped",
        {DROPPED: "400x60 _x80 400x60", UP: "1x200", UP.replace("process-1:9477", "c:1"): "1x60 0x80 1x60"},
        "142m",
    ),
    Case("IdlewattRowsDropped", "missing", "nothing was ever dropped", {}, "40m"),
    Case(
        "IdlewattUnaccountedJoules",
        "fires",
        "a joule is booked twice in one pool, although another's is not booked",
        {UNACCOUNTED: "0x5 -1x20", UNACCOUNTED.replace('"a"', '"b"'): "0x5 1x20"},
        "10m",
        tuple(
            Fires(
                {"site": "north", "pool": pool},
                f"The books of pool {pool} of site north do not balance",
                f"{joules} J were measured in pool {pool} of site north and are in no state of the waterfall "
                "(negative: booked and never measured). This is a bug in Idlewatt; do not bill by this pool's "
                "figures until it is found.",
            )
            for pool, joules in (("a", "-1"), ("b", "1"))
        ),
    ),
    Case("IdlewattUnaccountedJoules", "quiet", "the books balance", {UNACCOUNTED: "0x20"}, "10m"),
    Case("IdlewattUnaccountedJoules", "missing", "no pool", {}, "10m"),
    Case(
        "IdlewattBookRefused",
        "fires",
        "one processor of two has read a bad book",
        {BOOK_VALID: "1x5 0x20", BOOK_VALID.replace("p:1", "p:2"): "1x25"},
        "10m",
        (
            Fires(
                {"instance": "p:1"},
                "p:1 refused the book as it stands",
                "The book changed and has a fault, so p:1 still reckons with the one before. Its log says which line "
                "to mend (book_refused).",
            ),
        ),
    ),
    Case("IdlewattBookRefused", "quiet", "mended at once", {BOOK_VALID: "1x5 0 1x20"}, "10m"),
    Case("IdlewattBookRefused", "missing", "no book", {}, "10m"),
    Case(
        "IdlewattTokensUnpriced",
        "fires",
        "a new model serves in two pools, and the book does not know it; of another the price was added hours ago",
        {
            BOOK_PRICES: "3x120",
            UNPRICED: "_x10 600+600x80",
            UNPRICED.replace("output", "input"): "_x10 1200+1200x80",
            UNPRICED.replace('"a"', '"b"'): "_x10 600+600x80",
            UNPRICED.replace("new", "old"): "600x80",
        },
        "75m",
        (unpriced("40"),),
    ),
    Case(
        "IdlewattTokensUnpriced",
        "fires",
        "a model that is asked every half hour",
        {BOOK_PRICES: "3x120", UNPRICED: "0x20 3600x30 7200x30 10800x30"},
        "100m",
        (unpriced("2"),),
    ),
    Case(
        "IdlewattTokensUnpriced",
        "quiet",
        "for a few minutes",
        {BOOK_PRICES: "3x130", UNPRICED: "0x5 600+600x9 6000x1"},
        "14m",
    ),
    Case(
        "IdlewattTokensUnpriced",
        "quiet",
        "the price was added",
        {BOOK_PRICES: "3x130", UNPRICED: "0+600x60 36000x80"},
        "125m",
    ),
    Case(
        "IdlewattTokensUnpriced",
        "quiet",
        "the economy stands still (IdlewattMoneyClockStalled fires then)",
        {BOOK_PRICES: "3x130", UNPRICED: "0+600x60 36000x80", MONEY_END: "0+60x60 3600x80"},
        "80m",
    ),
    Case("IdlewattTokensUnpriced", "quiet", "there is no book", {UNPRICED: "0+600x80"}, "75m"),
    Case(
        "IdlewattTokensUnpriced",
        "quiet",
        "a book of costs alone",
        {BOOK_PRICES: "0x80", UNPRICED: "0+600x80"},
        "75m",
    ),
    Case(
        "IdlewattTokensUnpriced",
        "missing",
        "all tokens have a price",
        {BOOK_PRICES: "3x80", MONEY_END: "0+60x80"},
        "75m",
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "fires",
        "15 times the even rate for an hour and still; somebody else's is quiet",
        envelope(w5m="16x60", w1h="15x60", w6h="3x60")
        | envelope(consumer="ann", w5m="1x60", w1h="1x60", w6h="1x60", w3d="1x60"),
        "10m",
        (burns_fast("15"),),
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "fires",
        "7 times for six hours and still",
        envelope(w5m="2x60", w1h="6.5x60", w6h="7x60"),
        "10m",
        (burns_fast("7"),),
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "fires",
        "7 times for an hour, and the day's envelope will not last",
        envelope(exhaustion="10800x60", w5m="8x60", w1h="7x60", w6h="2x60"),
        "10m",
        (burns_fast("7", FORECAST),),
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "quiet",
        "a burst that is over",
        envelope(w5m="0x60", w1h="15x60", w6h="3x60"),
        "10m",
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "quiet",
        "8 times for an hour of an envelope that lasts",
        envelope(w5m="8x60", w1h="8x60", w6h="2x60", w3d="0.5x60"),
        "10m",
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "quiet",
        "it is used up already: the other alert says so",
        envelope(used="100x60", w5m="20x60", w1h="20x60", w6h="20x60"),
        "10m",
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "fires",
        "tokens without a price days ago: what is used is not known, how fast is",
        {
            name: values
            for name, values in envelope(w5m="16x60", w1h="15x60", w6h="3x60").items()
            if "envelope_used" not in name
        },
        "10m",
        (burns_fast("15"),),
    ),
    Case(
        "IdlewattEnvelopeBurnsFast",
        "missing",
        "tokens without a price: only the limit is told",
        {name: values for name, values in envelope().items() if "limit" in name},
        "10m",
    ),
    Case(
        "IdlewattEnvelopeBurnsSlowly",
        "fires",
        "1.4 times the even rate for three days, and it will not last",
        envelope(exhaustion="10800x60", w5m="0x60", w1h="0.5x60", w6h="1.1x60", w3d="1.4x60"),
        "30m",
        (
            Fires(
                OF_ENVELOPE,
                f"{ENVELOPE_TEXT} will not last until its period ends",
                f"{ENVELOPE_TEXT} has been used 1.4 times as fast as it lasts for three days, and too fast for the last "
                f"six hours.{FORECAST}",
            ),
        ),
    ),
    Case(
        "IdlewattEnvelopeBurnsSlowly",
        "quiet",
        "it will last, for little was used before",
        envelope(w6h="1.1x60", w3d="1.4x60"),
        "30m",
    ),
    Case(
        "IdlewattEnvelopeBurnsSlowly",
        "quiet",
        "it has slowed down",
        envelope(exhaustion="10800x60", w6h="0.9x60", w3d="1.4x60"),
        "30m",
    ),
    Case(
        "IdlewattEnvelopeBurnsSlowly",
        "missing",
        "not known for three days yet",
        envelope(exhaustion="10800x60", w6h="3x60"),
        "30m",
    ),
    Case(
        "IdlewattEnvelopeExhausted",
        "fires",
        "the limit is reached; somebody else has a cent left",
        envelope(used="99x5 100x20") | envelope(consumer="ann", used="99.99x60"),
        "10m",
        (
            Fires(
                OF_ENVELOPE,
                f"{ENVELOPE_TEXT} is used up",
                f"{ENVELOPE_TEXT} is 100% used. Idlewatt stops nobody: gateways that ask GET /v1/envelopes are told so.",
            ),
        ),
    ),
    Case(
        "IdlewattEnvelopeExhausted",
        "fires",
        "and still is while the economy stands still",
        envelope(used="100x20") | {MONEY_END: "0x20"},
        "10m",
        (
            Fires(
                OF_ENVELOPE,
                f"{ENVELOPE_TEXT} is used up",
                f"{ENVELOPE_TEXT} is 100% used. Idlewatt stops nobody: gateways that ask GET /v1/envelopes are told so.",
            ),
        ),
    ),
    Case("IdlewattEnvelopeExhausted", "quiet", "a new period began", envelope(used="120x5 0x60"), "10m"),
    Case(
        "IdlewattEnvelopeExhausted",
        "missing",
        "tokens without a price: only the limit is told",
        {name: values for name, values in envelope().items() if "limit" in name},
        "10m",
    ),
    Case(
        "IdlewattEnvelopeUnknown",
        "fires",
        "tokens without a price: only the limit is told, of two of three",
        envelope(consumer="ann")
        | {
            name: values
            for consumer in ("kim", "bo")
            for name, values in envelope(consumer=consumer).items()
            if "limit" in name
        },
        "20m",
        (
            Fires(
                {"site": "north", "envelope": "engineers"},
                "What is used of envelope engineers at site north is not known",
                "Of 2 consumers in envelope engineers of site north nobody knows what they have used: tokens without a price, "
                "in another currency, or of more names than are kept apart. None of its other alerts can fire for them.",
            ),
        ),
    ),
    Case("IdlewattEnvelopeUnknown", "quiet", "all is known", envelope(), "20m"),
    Case("IdlewattEnvelopeUnknown", "missing", "there are no envelopes", {}, "20m"),
)


@cache
def generated() -> tuple[str, dict[str, Any]]:
    """The recording rules as they are written, and the alerts as they are read."""
    return rules.recording_yaml(), yaml.safe_load(rules.alerts_yaml())


def promtool_test(
    folder: Path, tests: list[dict[str, Any]], every: str = "30s"
) -> subprocess.CompletedProcess[str]:
    """Run promtool's unit tests on the generated rules; of the alerts only those that they ask for, which is faster.

    `every`: how often alerts are looked at.
    """
    recorded, alerting = generated()
    (folder / "recording.yaml").write_text(recorded)
    asked_for = {alert["alertname"] for test in tests for alert in test.get("alert_rule_test", ())}
    groups = [
        {
            **group,
            "rules": [rule for rule in group["rules"] if rule["alert"] in asked_for],
            "interval": every,
        }
        for group in alerting["groups"]
    ]
    (folder / "alerts.yaml").write_text(yaml.safe_dump({"groups": groups}))
    document = {
        "rule_files": ["recording.yaml", "alerts.yaml"],
        "evaluation_interval": every,
        "group_eval_order": ["idlewatt.pools", "idlewatt.pools.day", "idlewatt.alerts"],
        "tests": tests,
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    return subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )


def input_series(series: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"series": selector, "values": values} for selector, values in series.items()]


def promtool_case(case: Case) -> dict[str, Any]:
    rule = next(rule for rule in alerts.ALERTS if rule.name == case.alert)
    return {
        "interval": "1m",
        "name": str(case),
        "input_series": input_series(case.series),
        "alert_rule_test": [
            {
                "eval_time": case.at,
                "alertname": case.alert,
                "exp_alerts": [
                    {
                        "exp_labels": {**fires.labels, "severity": rule.severity},
                        "exp_annotations": {
                            "summary": fires.summary,
                            "description": fires.description,
                            "runbook_url": rule.runbook_url,
                        },
                    }
                    for fires in case.fires
                ],
            }
        ],
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_alert_fires_when_it_must_and_only_then(prometheus_tools: None, tmp_path: Path, case: Case) -> None:
    """The alert fires with its whole text on the series that call for it, and on no others."""
    lasts_long = int(case.at.removesuffix("m")) > 525
    # series have a value a minute
    done = promtool_test(tmp_path, [promtool_case(case)], "5m" if lasts_long else "1m")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_held_against_all_three_kinds_of_series() -> None:
    """No alert is without a case that fires it, one that must not, and one where its series are missing."""
    kinds = {rule.name: {case.kind for case in CASES if case.alert == rule.name} for rule in alerts.ALERTS}
    assert kinds == {rule.name: {"fires", "quiet", "missing"} for rule in alerts.ALERTS}
    assert {case.alert for case in CASES} == set(kinds)


def test_a_wrong_expectation_fails(prometheus_tools: None, tmp_path: Path) -> None:
    """The test bench itself can fail: an alert that fires unexpectedly is noticed."""
    firing = next(case for case in CASES if case.kind == "fires")
    wrong = promtool_case(firing)
    wrong["alert_rule_test"][0]["exp_alerts"] = []
    assert promtool_test(tmp_path, [wrong]).returncode != 0


def test_recorded_ratios_are_ratios_of_sums(prometheus_tools: None, tmp_path: Path) -> None:
    """Two models and two states of one pool make one yield of the day, which weighs by joules."""
    series = (
        energy(400, 100, 0)
        | covered()
        | {
            f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': "1000000+30000x40",
            f'idlewatt_tokens_total{{{POOL},model_name="n",kind="output"}}': "1000000+6000x40",
            f'idlewatt_tokens_total{{{POOL},model_name="n",kind="input"}}': "1000000+90000x40",
            f'idlewatt_headroom_joules_total{{{POOL},state="serving"}}': "1000000+24000x40",
            f'idlewatt_headroom_joules_total{{{POOL},state="idle_loaded"}}': "1000000+30000x40",
            AVAILABLE: "1000000+90000x40",
            TOKENS_READ.replace("5m", "1h"): "0.75x40",
            # facility joules are the same joules once more
            f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="facility"}}': "1000000+48000x40",
        }
    )
    expected = {
        recording.OUTPUT_TOKENS_RATE: 600.0,
        recording.ENERGY_RATE: 500.0,
        recording.COVERED_TOKENS_RATE: 600.0,
        recording.COVERED_ENERGY_RATE: 500.0,
        recording.WASTED_ENERGY_RATE: 100.0,
        recording.WASTED_SHARE: 0.2,
        recording.TOKENS_PER_JOULE_DAY: 1.2,
        # of 1500 W that are available 100 are dark
        recording.IDLE_SHARE_HOUR: 600 / 1400,
        recording.BUSY_SHARE_HOUR: 800 / 1500,
        recording.UNREAD_SHARE_HOUR: 0.25,
    }
    done = promtool_test(
        tmp_path,
        [
            {
                "interval": "1m",
                "input_series": input_series(series),
                "promql_expr_test": [
                    {
                        # floats: the last digits are not promised
                        "expr": f"abs({record} - {value}) < bool 1e-9",
                        "eval_time": "30m",
                        "exp_samples": [{"labels": f"{{{POOL}}}", "value": 1}],
                    }
                    for record, value in expected.items()
                ],
            }
        ],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = {rule.record for rule in (*recording.RECORDING, *recording.RECORDING_DAY)}
    assert recorded == {*expected, recording.TOKENS_PER_JOULE, *recording.RECORDED_CLOCKS.values()}


# two tokens a joule for four hours
MADE: Final = "0+60000x240"
DRAWN: Final = "0+30000x240"


@pytest.mark.parametrize(
    ("made", "serving", "dark", "coverage", "day"),
    [
        pytest.param(
            MADE, "_x120 0+30000x120", "0x240", covered("_x120 1x120"), 2, id="no GPU read at first"
        ),
        pytest.param(
            MADE,
            "0+3000x120 390000+30000x120",
            "0x240",
            covered("0.1x120 0.28 0.46 0.64 0.82 1x120"),
            2,
            id="GPUs of one node of ten read at first",
        ),
        pytest.param(
            MADE,
            "0+30000x60 1800000x60 1830000+30000x120",
            "0x119 1800000x120",
            covered("1x60 0x60 0.2 0.4 0.6 0.8 1x120"),
            2,
            id="no GPU read for an hour, whose joules come at once",
        ),
        pytest.param(
            MADE,
            "0+30000x30 925500+25500x179 5520000+30000x30",
            "0x210 810000x30",
            covered("1x30 0.85x180 0.88 0.91 0.94 0.97 1x30"),
            2,
            id="so few not read that coverage is well before their leap has left the rate",
        ),
        pytest.param(
            "0+60000x60 3600000x59 7200000+60000x120",
            DRAWN,
            "0x240",
            covered(tokens="1x60 0x60 0.2 0.4 0.6 0.8 1x120"),
            2,
            id="no engine read for an hour, whose tokens come at once",
        ),
        pytest.param(
            "_x120 0+60000x120",
            DRAWN,
            "0x240",
            covered(tokens="_x120 1x120"),
            1,
            id="no engine there at first",
        ),
    ],
)
def test_a_recorded_yield_is_of_times_that_were_measured(
    prometheus_tools: None,
    tmp_path: Path,
    made: str,
    serving: str,
    dark: str,
    coverage: dict[str, str],
    day: int,
) -> None:
    """What was not measured well enough is in neither sum of the day, nor what of it comes to the counters at once."""
    series = coverage | {
        f'idlewatt_tokens_total{{{POOL},model_name="m",kind="output"}}': made,
        f'idlewatt_energy_joules_total{{{POOL},state="serving",scope="it"}}': serving,
        f'idlewatt_energy_joules_total{{{POOL},state="dark",scope="it"}}': dark,
    }
    check = {
        "expr": f"abs({recording.TOKENS_PER_JOULE_DAY} - {day}) < bool 0.06",
        "eval_time": "4h",
        "exp_samples": [{"labels": f"{{{POOL}}}", "value": 1}],
    }
    test = {"interval": "1m", "input_series": input_series(series), "promql_expr_test": [check]}
    done = promtool_test(tmp_path, [test])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_recorded_yield_is_withheld_as_the_meter_withholds_it(
    prometheus_tools: None, tmp_path: Path
) -> None:
    """The recorded yield is the panel's: none while the meter shows none, whatever the counters have gained."""
    series = falling_yield("1000000+120000x540", "2x20 _x10 1.5x10")
    values = {"20m": 2, "29m": None, "35m": 1.5}
    done = promtool_test(
        tmp_path,
        [
            {
                "interval": "1m",
                "input_series": input_series(series),
                "promql_expr_test": [
                    {
                        "expr": recording.TOKENS_PER_JOULE,
                        "eval_time": at,
                        "exp_samples": [{"labels": f"{recording.TOKENS_PER_JOULE}{{{POOL}}}", "value": value}]
                        if value
                        else [],
                    }
                    for at, value in values.items()
                ],
            }
        ],
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [rules.recording_yaml(), rules.alerts_yaml()], ids=["recording", "alerts"])
def test_promtool_accepts_the_rules(prometheus_tools: None, tmp_path: Path, text: str) -> None:
    """Prometheus' own checker finds nothing in the rule files."""
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    """docs/runbooks.md has one section for each alert, with what it means, costs, needs, and how to silence it."""
    text = (Path(__file__).parent.parent / "docs" / "runbooks.md").read_text()
    sections = {section.splitlines()[0].strip(): section for section in text.split("\n## ")[1:]}
    for rule in alerts.ALERTS:
        assert rule.runbook_url == f"{alerts.RUNBOOKS}#{rule.name.lower()}"
        for heading in ("What it means", "What it costs", "What to do", "How to silence it"):
            assert f"**{heading}.**" in sections[rule.name], f"{rule.name} lacks {heading}"
    assert {name for name in sections if name.startswith("Idlewatt")} == {rule.name for rule in alerts.ALERTS}


def test_recorded_names_are_of_level_metric_operation() -> None:
    """Recorded series say over what they are summed and how they were made, and hide no metric of ours."""
    exported = {metric.name for metric in metric_names.METRICS}
    for rule in (*recording.RECORDING, *recording.RECORDING_DAY):
        level, metric, operation = rule.record.split(":")
        assert level == "pool"
        assert operation in {"max", "rate5m", "ratio_rate5m", "ratio_rate1h", "ratio_rate1d"}
        assert metric.startswith("idlewatt_")
        assert rule.record not in exported
