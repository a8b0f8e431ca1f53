"""Dashboards: the JSON Grafana gets, the figures its queries give, and the same queries on a real Prometheus."""

import copy
import itertools
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from grafanalib._gen import DashboardEncoder
from grafanalib.core import Dashboard, Graph, GridPos, Stat, Target, Template, Templating, Threshold
from panel_queries import PanelQuery, dashboards, page_queries, panel_queries, panels

from idlewatt.dashboards import queries as q
from idlewatt.dashboards.grafana_json import dashboard_text, modernised
from idlewatt.dashboards.overview import UID, overview
from idlewatt.dashboards.panels import Place, Query, bargauge, table
from idlewatt.stream import metric_names as names
from idlewatt.stream.metric_names import METRICS

DASHBOARDS: Final = dashboards()
PANELS: Final = [
    pytest.param(panel, id=f"{uid}-{panel['title']}")
    for uid, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
]
# what fresh() adds keeps no label
CLOCK: Final = re.compile(
    r" unless on \([a-z, ]*\) \(time\(\) - max by \([a-z, ]*\) \(last_over_time\(\w+\[1h\]\)\) >= \d+\)"
)
QUERIES: Final = [pytest.param(query, id=str(query)) for query in panel_queries()]


def small(**changes: Any) -> dict[str, Any]:
    """The modernised JSON of a dashboard with one panel and both kinds of variable."""
    board = Dashboard(
        title="t",
        uid="u-1",
        panels=[
            Stat(
                title="p",
                targets=[Target(expr="a"), Target(expr="b", legendFormat="{{x}}", instant=True)],
                thresholds=[Threshold("green", 0, 0.0), Threshold("red", 1, 0.5)],
                gridPos=GridPos(1, 1, 0, 0),
            )
        ],
        templating=Templating(
            list=[
                Template(name="datasource", type="datasource", query="prometheus"),
                Template(name="site", query="label_values(a, site)", multi=True, includeAll=True),
            ]
        ),
    )
    for name, value in changes.items():
        setattr(board, name, value)
    parsed: dict[str, Any] = json.loads(dashboard_text(board))
    return parsed


def nulls(value: Any, path: str = "") -> Iterator[str]:
    if value is None:
        yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from nulls(inner, f"{path}/{key}")


def test_obsolete_and_null_keys_are_gone() -> None:
    """Nothing of before Grafana 9 is left; null stands only where Grafana means something by it."""
    board = small()
    obsolete = {"rows", "sharedCrosshair", "hideControls", "style", "gnetId", "__inputs", "version"}
    assert not obsolete & set(board)
    panel = board["panels"][0]
    assert not {"span", "minSpan", "height", "error", "editable", "pluginVersion", "repeat"} & set(panel)
    assert not {"metric", "target", "step", "intervalFactor", "query"} & set(panel["targets"][0])
    assert board["schemaVersion"] == 41
    assert set(nulls(board)) == {"/id", "/panels/0/fieldConfig/defaults/thresholds/steps/0/value"}
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"] == [
        {"color": "green", "value": None},
        {"color": "red", "value": 0.5},
    ]


def test_targets_have_letters_and_the_data_source_as_an_object() -> None:
    """Queries are told apart by refId and use the data source the reader chooses."""
    panel = small()["panels"][0]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert [(t["refId"], t["datasource"], t["editorMode"]) for t in panel["targets"]] == [
        ("A", source, "code"),
        ("B", source, "code"),
    ]
    assert [(t["instant"], t["range"]) for t in panel["targets"]] == [(False, True), (True, False)]


def test_variables_are_objects() -> None:
    """Variables ask the chosen data source again when the time range changes."""
    source, site = small()["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert site["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert site["query"]["query"] == site["definition"] == "label_values(a, site)"
    assert site["query"]["refId"]
    assert site["refresh"] == 2


def test_the_same_dashboard_gives_the_same_text() -> None:
    """Text is reproducible and sorted, so that a change shows as a small difference."""
    assert dashboard_text(overview()) == dashboard_text(overview())
    board = small()
    assert list(board) == sorted(board)


def test_panels_that_grafana_12_cannot_draw_are_refused() -> None:
    """An Angular panel is an error when it is written, not an empty box on the wall."""
    with pytest.raises(ValueError, match=r"'old' has type 'graph'.*timeseries"):
        small(panels=[Graph(title="old", targets=[])])


@pytest.mark.parametrize("uid", [None, "", "a" * 41, "has space"])
def test_a_bad_uid_is_refused(uid: str | None) -> None:
    """Links to a dashboard stand on its uid, so it must be given and be one Grafana takes."""
    with pytest.raises(ValueError, match="uid"):
        small(uid=uid)


def test_other_variables_are_refused() -> None:
    """A kind of variable nobody has put right yet is an error."""
    with pytest.raises(ValueError, match="'v' has type 'interval'"):
        small(templating=Templating(list=[Template(name="v", type="interval", query="1m")]))


def test_modernised_leaves_its_input_alone() -> None:
    """It is a pure function: what it was given is the same afterwards."""
    raw = json.loads(json.dumps(overview().auto_panel_ids().to_json_data(), cls=DashboardEncoder))
    before = copy.deepcopy(raw)
    assert modernised(raw) == modernised(raw)
    assert raw == before


def test_bar_gauge_and_table_take_today_s_shape() -> None:
    """Their units, limits and cell options stand where Grafana looks for them now."""
    place = Place(0, 0, 4, 4)
    bar = bargauge("b", Query("x"), unit="watt", description="d", place=place, maximum=7)
    rows = table(
        "t", Query("x"), value="W", columns={"pool": "Pool"}, unit="watt", description="d", place=place
    )
    bar_json, rows_json = small(panels=[bar, rows])["panels"]
    assert "fieldOptions" not in bar_json["options"]
    assert bar_json["options"]["reduceOptions"]["calcs"] == ["lastNotNull"]
    assert bar_json["fieldConfig"]["defaults"]["unit"] == "watt"
    assert bar_json["fieldConfig"]["defaults"]["max"] == 7
    assert not {"columns", "fontSize", "styles", "color", "mappings"} & set(rows_json)
    assert rows_json["fieldConfig"]["defaults"]["custom"]["cellOptions"] == {"type": "auto"}
    assert rows_json["targets"][0]["format"] == "table"


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Title, description and unit: a figure without them is misread."""
    assert panel["title"]
    assert len(panel["description"]) > 20
    units = {panel["fieldConfig"]["defaults"].get("unit")} | {
        p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"
    }
    assert units - {None, "", "none"}
    assert panel["targets"]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_lie_side_by_side(uid: str) -> None:
    """No two panels cover the same place, none leaves the 24 columns, ids and titles are unique."""
    board = DASHBOARDS[uid]
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] >= 0
        assert grid["x"] + grid["w"] <= 24
        for cell in itertools.product(
            range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"])
        ):
            assert cell not in taken, f"{panel['title']} covers {taken[cell]}"
            taken[cell] = panel["title"]
    for key in ("id", "title"):
        values = [panel[key] for panel in board["panels"]]
        assert len(values) == len(set(values))


def test_the_overview_keeps_its_address_and_its_variables() -> None:
    """Links and bookmarks hold: the uid is stable, and readers can choose data source, sites and pools."""
    assert UID == "idlewatt-overview"
    board = DASHBOARDS[UID]
    assert board["title"] == "Idlewatt / AI factory"
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables) == ["datasource", "site", "pool"]
    for name in ("site", "pool"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
        assert variables[name]["current"]["value"] == ["$__all"]


def test_the_benchmark_is_labelled_as_such() -> None:
    """Nobody can take the benchmark loss for their own, and it is added to nothing."""
    showing = [
        panel
        for panel in panels(DASHBOARDS[UID])
        if any("benchmark" in target["expr"] for target in panel["targets"])
    ]
    assert showing
    for panel in showing:
        assert panel["title"].startswith("Benchmark")
        for target in panel["targets"]:
            assert not re.search(r"idlewatt_lost_revenue", target["expr"])


def test_sums_over_what_pools_withhold_say_so() -> None:
    """A sum of pools of which one withholds its part is not shown as that of all."""
    withheld = (names.LOST_REVENUE_PER_HOUR, names.MARGIN_PER_HOUR, names.RECOVERABLE_GPUS)
    said = {metric.name: "of the pools for which" for metric in withheld}
    # of an idle watt without a price the counter has nothing
    said[names.LOST_REVENUE.name] = "that have a price and a yardstick"
    summed = [
        (name, panel)
        for dashboard in DASHBOARDS.values()
        for panel in panels(dashboard)
        for target in panel["targets"]
        for name in said
        if re.search(rf"^(3600 \* )?sum(?! by \(site, pool\b).*\b{name}\b", target["expr"])
    ]
    assert {name for name, _ in summed} == said.keys()
    for name, panel in summed:
        assert said[name] in panel["description"], panel["title"]


def test_an_unknown_label_is_refused_where_the_query_is_made() -> None:
    """A label that the metric does not carry would match nothing, silently."""
    with pytest.raises(ValueError, match="idlewatt_gpus carries no label part"):
        q.series(names.GPUS, {"part": "draw"})
    with pytest.raises(ValueError, match="idlewatt_gpus carries no label instance"):
        q.level(names.GPUS, by=("instance",))


@pytest.mark.parametrize("query", QUERIES)
def test_queries_use_exported_metrics_and_their_labels(query: PanelQuery) -> None:
    """Every selector names a metric of metric_names and only labels it carries."""
    exported = {metric.name: metric for metric in METRICS}
    selectors = re.findall(r"(idlewatt_\w+)(?:\{([^}]*)\})?", query.expr)
    assert selectors
    carried: set[str] = set()
    for name, matchers in selectors:
        metric = exported[name]
        labels = {*metric.labels, *(("instance",) if metric.stage in ("pipeline", "collector") else ())}
        assert set(re.findall(r'(\w+)=~?"', matchers)) <= labels
        carried |= labels
    for group in re.findall(r"\bby \(([^)]*)\)", query.expr):
        assert set(group.split(", ")) <= carried


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_legends_name_labels_that_the_query_keeps(uid: str) -> None:
    """A legend never shows an empty name because the sum dropped its label."""
    for panel in panels(DASHBOARDS[uid]):
        for target in panel["targets"]:
            kept = {
                label
                for group in re.findall(r"\bby \(([^)]*)\)", CLOCK.sub("", target["expr"]))
                for label in group.split(", ")
            }
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_rates_follow_the_zoom() -> None:
    """Rates of panels use $__rate_interval, never a fixed window that skips samples on a wide range."""
    for dashboard in DASHBOARDS.values():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                # clocks are no rates, nor is what gauges were at steps of their own
                expr = re.sub(r"last_over_time\([^\]]*\]|\[\w+:\w+\]", "", target["expr"])
                assert set(re.findall(r"\[([^\]]+)\]", expr)) <= {"$__rate_interval", "$__range"}


def promtool(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_every_query_is_promql(prometheus_tools: None, tmp_path: Path) -> None:
    """Prometheus' own parser takes every query of every panel."""
    rules = [{"record": f"panel:query:{i}", "expr": query.expr} for i, query in enumerate(panel_queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool(tmp_path, "check", "rules", "rules.yaml")


ANYWHERE: Final[Mapping[str, str]] = {"site": "~.+", "pool": "~.+"}
# two pools of one site: a serves with 1000 W and 2000 tokens/s of 1400 W, b idles with 600 of 5600 W
FACTORY: Final = {
    'idlewatt_tokens_total{site="n",pool="a",model_name="m",kind="output"}': "1000000+20000x60",
    'idlewatt_tokens_total{site="n",pool="a",model_name="m",kind="input"}': "1000000+90000x60",
    'idlewatt_energy_joules_total{site="n",pool="a",state="serving",scope="it"}': "1000000+10000x60",
    'idlewatt_energy_joules_total{site="n",pool="a",state="serving",scope="facility"}': "1000000+13000x60",
    'idlewatt_energy_joules_total{site="n",pool="b",state="idle_free",scope="it"}': "1000000+6000x60",
    'idlewatt_power_watts{site="n",pool="a",state="serving",part="draw"}': "1000x60",
    'idlewatt_power_watts{site="n",pool="a",state="serving",part="headroom"}': "400x60",
    'idlewatt_power_watts{site="n",pool="b",state="idle_free",part="draw"}': "600x60",
    'idlewatt_power_watts{site="n",pool="b",state="idle_free",part="headroom"}': "5000x60",
    'idlewatt_tokens_per_joule{site="n",pool="a",window="5m",kind="output"}': "2x60",
    'idlewatt_gpus{site="n",pool="a",state="serving",product="H100"}': "2x60",
    'idlewatt_gpus{site="n",pool="b",state="idle_free",product="H100"}': "8x60",
    'idlewatt_unaccounted_joules_total{site="n",pool="a"}': "3x60",
    'idlewatt_unaccounted_joules_total{site="n",pool="b"}': "-3x60",
}


# of 10 s, at 0.05 and 0.1 USD
BILLS: Final = {
    'idlewatt_energy_cost_total{site="n",pool="a",state="serving",model_name="m",currency="USD"}': "0+0.05x60",
    'idlewatt_capital_cost_total{site="n",pool="a",state="serving",currency="USD"}': "0+0.1x60",
    'idlewatt_uncosted_gpu_seconds_total{site="n",pool="a",product="old"}': "7x60",
}


def covered(watts_a: float, watts_b: float, tokens_a: float) -> dict[str, str]:
    """Coverage of the two pools; b has no engine, so nothing is known of its tokens."""
    at = {("a", "watts"): watts_a, ("b", "watts"): watts_b, ("a", "tokens"): tokens_a}
    return {
        f'idlewatt_coverage_ratio{{site="n",pool="{pool}",window="5m",of="{of}"}}': f"{share}x60"
        for (pool, of), share in at.items()
    }


# a third pool, whose engine is back after hours
BACK: Final = {
    'idlewatt_coverage_ratio{site="n",pool="c",window="5m",of="watts"}': "1x60",
    'idlewatt_coverage_ratio{site="n",pool="c",window="5m",of="tokens"}': "0.8x60",
    'idlewatt_power_watts{site="n",pool="c",state="serving",part="draw"}': "500x60",
}


# b serves as well, with 5 tokens per joule
BOTH: Final = {
    'idlewatt_tokens_per_joule{site="n",pool="b",window="5m",kind="output"}': "5x60",
    'idlewatt_tokens_total{site="n",pool="b",model_name="m",kind="output"}': "0+30000x60",
}


# engines whose GPUs nobody reads: tokens over no joules
BLIND: Final = {
    'idlewatt_coverage_ratio{site="n",pool="blind",window="5m",of="tokens"}': "1x60",
    'idlewatt_tokens_total{site="n",pool="blind",model_name="m",kind="output"}': "1000000+2320x60",
}


def clocks(meter: Mapping[str, int], money: Mapping[str, int]) -> dict[str, str]:
    """The last windows of pools, as old as given in seconds after 9 minutes, when figures are asked for."""
    return {
        f'idlewatt_{clock}_end_timestamp_seconds{{site="n",pool="{pool}"}}': f"{540 - age_s}x60"
        for clock, ages in (("window", meter), ("money_window", money))
        for pool, age_s in ages.items()
    }


FRESH: Final = {"a": 30, "b": 45}
# a's watts are those of two minutes ago, and of then
OLD: Final = {"a": 120, "b": 45}
# per hour: a brings 36 USD, b 18 USD and 72 EUR
SALES: Final = {
    'idlewatt_revenue_total{site="n",pool="a",model_name="m",tier="standard",currency="USD"}': "0+0.1x60",
    'idlewatt_revenue_total{site="n",pool="b",model_name="m",tier="standard",currency="USD"}': "0+0.05x60",
    'idlewatt_revenue_total{site="n",pool="b",model_name="m",tier="standard",currency="EUR"}': "0+0.2x60",
}


def caught_up(until: int) -> dict[str, str]:
    """Pool a of FACTORY and SALES by a processor that stood still from 200 s on and caught up at 10 x `until` s."""
    gains = {
        'idlewatt_window_end_timestamp_seconds{site="n",pool="a"}': 10,
        'idlewatt_money_window_end_timestamp_seconds{site="n",pool="a"}': 10,
        'idlewatt_tokens_total{site="n",pool="a",model_name="m",kind="output"}': 20_000,
        'idlewatt_energy_joules_total{site="n",pool="a",state="serving",scope="it"}': 10_000,
        'idlewatt_revenue_total{site="n",pool="a",model_name="m",tier="standard",currency="USD"}': 0.1,
    }
    return {
        series: f"0+{gain}x20 {20 * gain}x{until - 22} {until * gain}+{gain}x{60 - until}"
        for series, gain in gains.items()
    }


LOSSES: Final = {
    f'idlewatt_lost_revenue_per_hour{{site="n",pool="{pool}",window="5m",currency="USD"}}': f"{loss}x60"
    for pool, loss in (("a", 300), ("b", 18))
}
UNATTRIBUTED: Final = 'idlewatt_unattributed_tokens_total{site="n",model_name="m",kind="output"}'
HALF_USED: Final = {
    f'idlewatt_envelope_{of}{{site="{site}",envelope="e",consumer_kind="team",consumer="t",unit="USD"}}': f"{amount}x60"
    for of, amount in (("limit", 100), ("used", 50))
    for site in ("n", "usage-only")
}

# ten cents every 10 s for one model, and 7 USD at once for another
OWED: Final = {
    f'idlewatt_consumer_spend_total{{site="n",consumer_kind="team",consumer="search",model_name="{model}",currency="USD"}}': values
    for model, values in {"known": "500+0.1x60", "new": "_x40 7x20"}.items()
}
# half a cent and 20,000 tokens, two models and two states
SPENT: Final = {
    'idlewatt_energy_cost_total{site="n",pool="a",state="serving",model_name="m",currency="USD"}': "500+0.004x60",
    'idlewatt_energy_cost_total{site="n",pool="a",state="idle_free",model_name="",currency="USD"}': "500+0.001x60",
    'idlewatt_tokens_total{site="n",pool="a",model_name="m",kind="output"}': "1000000000+15000x60",
    'idlewatt_tokens_total{site="n",pool="a",model_name="o",kind="output"}': "1000000000+5000x60",
    'idlewatt_tokens_total{site="n",pool="a",model_name="o",kind="input"}': "1000000000+5000x60",
    # and a pool that makes none
    'idlewatt_energy_cost_total{site="n",pool="idle",state="idle_loaded",model_name="m",currency="USD"}': "500+0.002x60",
    'idlewatt_tokens_total{site="n",pool="idle",model_name="m",kind="output"}': "1000000000x60",
}
(ENERGY_PER_MTOK,) = (query for query in page_queries() if "idlewatt_energy_cost_total" in query)

FIGURES: Final = (
    (
        "what teams owe misses the first amount of a known team's new model, as its panel says",
        OWED,
        q.top_spenders({"site": "~.+"}, "team", 10).replace(q.RANGE, "5m"),
        {'{consumer="search",currency="USD"}': 3},
    ),
    (
        "the page's energy cost per million output tokens is of all states and models, and of nobody who makes none",
        SPENT,
        ENERGY_PER_MTOK,
        {'{site="n",pool="a",currency="USD"}': 0.25},
    ),
    ("tokens per second", FACTORY, q.output_tokens_rate(ANYWHERE, window="1m"), {"{}": 2000}),
    ("watts drawn", FACTORY, q.drawn_watts(ANYWHERE), {"{}": 1600}),
    ("available watts are the sum of all parts", FACTORY, q.level(names.POWER, ANYWHERE), {"{}": 7000}),
    (
        "tokens per joule: sum by sum, with the idle pool's joules",
        FACTORY | covered(1, 1, 1),
        q.tokens_per_joule(ANYWHERE),
        {"{}": 1.25},
    ),
    (
        "and with those of the five minutes that the tokens are of, not by what is drawn now",
        FACTORY
        | covered(1, 1, 1)
        | {'idlewatt_power_watts{site="n",pool="b",state="idle_free",part="draw"}': "600x24 400x17 900x17"},
        q.tokens_per_joule(ANYWHERE),
        {"{}": 1.25},
    ),
    (
        "of pools with different yields it is all tokens over all joules: 1000 W at 2 and 600 W at 5",
        FACTORY | covered(1, 1, 1) | BOTH,
        q.tokens_per_joule(ANYWHERE),
        {"{}": 3.125},
    ),
    (
        "tokens/s per MW is the same in millions",
        FACTORY | covered(1, 1, 1),
        q.tokens_per_second_per_megawatt(ANYWHERE),
        {"{}": 1_250_000},
    ),
    (
        "withheld when the large pool is dark",
        FACTORY | covered(1, 0.8, 1),
        q.tokens_per_joule(ANYWHERE),
        {},
    ),
    (
        "large is what has the watts, not what has the GPUs: 8 of 1000 W are dark beside 80 of 72 W",
        covered(1, 0, 1)
        | {
            'idlewatt_power_watts{site="n",pool="a",state="serving",part="draw"}': "5760x60",
            'idlewatt_power_watts{site="n",pool="b",state="dark",part="headroom"}': "8000x60",
            'idlewatt_gpus{site="n",pool="a",state="serving",product="L4"}': "80x60",
            'idlewatt_gpus{site="n",pool="b",state="dark",product="B200"}': "8x60",
            'idlewatt_energy_joules_total{site="n",pool="a",state="serving",scope="it"}': "0+57600x60",
            'idlewatt_tokens_total{site="n",pool="a",model_name="m",kind="output"}': "0+32000x60",
            'idlewatt_tokens_per_joule{site="n",pool="a",window="5m",kind="output"}': "0.56x60",
        },
        q.tokens_per_joule(ANYWHERE),
        {},
    ),
    (
        "a small pool that is not measured well enough is left out",
        FACTORY | covered(1, 1, 1) | BACK,
        q.tokens_per_joule(ANYWHERE),
        {"{}": 1.25},
    ),
    *(
        (
            f"what one {who} of sixteen is booked late with, for which coverage is high enough, is not of now",
            FACTORY | covered(1, 1, 1) | {of: f"0+{rate}x51 {51 * rate + late}+{rate}x8"},
            q.tokens_per_joule(ANYWHERE),
            {"{}": 1.25},
        )
        for who, of, rate, late in (
            (
                "GPU",
                'idlewatt_energy_joules_total{site="n",pool="a",state="serving",scope="it"}',
                10_000,
                450_000,
            ),
            (
                "engine",
                'idlewatt_tokens_total{site="n",pool="a",model_name="m",kind="output"}',
                20_000,
                900_000,
            ),
        )
    ),
    (
        "a pool of which no watt is known makes no tokens over the joules of others",
        FACTORY | covered(1, 1, 1) | BLIND,
        q.tokens_per_joule(ANYWHERE),
        {"{}": 1.25},
    ),
    ("withheld when tokens are not measured", FACTORY | covered(1, 1, 0.8), q.tokens_per_joule(ANYWHERE), {}),
    ("withheld when nothing says how much was measured", FACTORY, q.tokens_per_joule(ANYWHERE), {}),
    (
        "withheld when there are too few tokens",
        {series: values for series, values in FACTORY.items() if "_tokens_per_joule" not in series}
        | covered(1, 1, 1),
        q.tokens_per_joule(ANYWHERE),
        {},
    ),
    (
        "coverage weighs by GPUs",
        FACTORY | covered(0.5, 1, 1),
        q.coverage(ANYWHERE, "watts"),
        {"{}": 0.9},
    ),
    (
        "coverage of tokens is that of the pools that have engines",
        FACTORY | covered(1, 1, 0.7),
        q.coverage(ANYWHERE, "tokens"),
        {"{}": 0.7},
    ),
    (
        "wasted share: 0 where a pool wastes nothing, not absent",
        FACTORY,
        q.wasted_watts_share(ANYWHERE),
        {'{site="n",pool="a"}': 0, '{site="n",pool="b"}': 1},
    ),
    ("surplus and want do not cancel out", FACTORY, q.unaccounted_joules(ANYWHERE), {"{}": 6}),
    ("watts of pools that are fresh", FACTORY | clocks(FRESH, {}), q.drawn_watts(ANYWHERE), {"{}": 1600}),
    ("old watts are not of now", FACTORY | clocks(OLD, {}), q.drawn_watts(ANYWHERE), {"{}": 600}),
    (
        "a counter that stands still is no rate of 0",
        {**FACTORY, **dict.fromkeys((s for s in FACTORY if "_tokens_" in s), "1000000x60")} | clocks(OLD, {}),
        q.output_tokens_rate(ANYWHERE, window="1m"),
        {},
    ),
    (
        "and was one as long as it was fresh",
        FACTORY | {'idlewatt_window_end_timestamp_seconds{site="n",pool="a"}': "0+10x30 300x30"},
        f"max_over_time(({q.drawn_watts({'site': 'n', 'pool': 'a'})})[9m:10s])"
        f" unless {q.drawn_watts({'site': 'n', 'pool': 'a'})}",
        {"{}": 1000},
    ),
    *(
        (
            f"withheld while it would be the yield of the other pool: {why}",
            FACTORY | covered(1, 1, 1) | BOTH | gone,
            q.tokens_per_joule(ANYWHERE),
            {},
        )
        for why, gone in (
            ("this one's figures are old", clocks(OLD, {})),
            (
                "its processor restarts",
                {
                    series: values.replace("x60", "x29 stale")
                    for series, values in (FACTORY | covered(1, 1, 1)).items()
                    if 'pool="a"' in series
                },
            ),
        )
    ),
    (
        "yield of the pools that are fresh, while they have nearly all watts",
        FACTORY | covered(1, 1, 1) | BOTH | clocks(FRESH | {"c": 200}, {}) | BACK,
        q.tokens_per_joule(ANYWHERE),
        {"{}": 3.125},
    ),
    (
        "each currency of each pool that is fresh",
        SALES | clocks(FRESH, FRESH),
        q.money_per_hour(names.REVENUE, ANYWHERE),
        {'{currency="USD"}': 54, '{currency="EUR"}': 72},
    ),
    (
        "without the pool whose money is old, although its watts are not",
        SALES | clocks(FRESH, OLD),
        q.money_per_hour(names.REVENUE, ANYWHERE),
        {'{currency="USD"}': 18, '{currency="EUR"}': 72},
    ),
    (
        "a pool without a GPU has no clock of money, and is sold from all the same",
        SALES | clocks(FRESH, {"a": 30}),
        q.money_per_hour(names.REVENUE, ANYWHERE),
        {'{currency="USD"}': 54, '{currency="EUR"}': 72},
    ),
    (
        "what a processor books at once when it catches up was not drawn at once",
        FACTORY | caught_up(51),
        q.energy_rate(ANYWHERE, q.POOL),
        {'{site="n",pool="b"}': 600},
    ),
    (
        "nor made",
        FACTORY | covered(1, 1, 1) | caught_up(51),
        q.output_tokens_rate(ANYWHERE),
        {},
    ),
    (
        "nor sold",
        SALES | caught_up(51),
        q.money_per_hour(names.REVENUE, ANYWHERE),
        {'{currency="USD"}': 18, '{currency="EUR"}': 72},
    ),
    (
        "nor had nothing a price, which nobody knows either",
        FACTORY | caught_up(51),
        q.unpriced_tokens_rate({"site": "n", "pool": "a"}, ("model_name",)),
        {},
    ),
    (
        "everything that is priced has a price",
        FACTORY | caught_up(47),
        q.unpriced_tokens_rate({"site": "n", "pool": "a"}, ("model_name",)),
        {"{}": 0},
    ),
    (
        "a minute later the minute is as any other",
        FACTORY | caught_up(47),
        q.energy_rate(ANYWHERE, q.POOL),
        {'{site="n",pool="a"}': 1000, '{site="n",pool="b"}': 600},
    ),
    ("old bills are none", BILLS | clocks(FRESH, OLD), q.all_in_cost_per_hour(ANYWHERE), {}),
    (
        "a loss that is frozen to the cent",
        LOSSES | clocks(FRESH, OLD),
        q.lost_revenue_per_hour(ANYWHERE),
        {'{currency="USD"}': 18},
    ),
    (
        "of a site's money some is fresh",
        FACTORY | {UNATTRIBUTED: "0+5000x60"} | clocks(FRESH, OLD),
        q.unattributed_share({"site": "~.+"}),
        {'{model_name="m"}': 0.25},
    ),
    (
        "none of it is",
        FACTORY | {UNATTRIBUTED: "5000x60"} | clocks(FRESH, {"a": 130, "b": 130}),
        q.unattributed_share({"site": "~.+"}),
        {},
    ),
    (
        "envelopes go by usage, which has another clock than the ledger",
        HALF_USED | clocks(FRESH, {"a": 130}),
        f"sum by (site) ({q.envelope_used_share()})",
        {'{site="n"}': 0.5, '{site="usage-only"}': 0.5},
    ),
    (
        "a stage that fails to commit shows its last state and nothing by turns",
        {
            **FACTORY,
            **dict.fromkeys((s for s in FACTORY if "_tokens_" in s), "1000000x53 stale"),
            'idlewatt_window_end_timestamp_seconds{site="n",pool="a"}': "300x53 stale",
        },
        q.output_tokens_rate(ANYWHERE, window="1m"),
        {},
    ),
    (
        "the age of the site that is furthest behind, although it shows nothing just now",
        clocks({"a": 30}, {}) | {'idlewatt_window_end_timestamp_seconds{site="s",pool="c"}': "300x53 stale"},
        q.meter_age(ANYWHERE),
        {"{}": 240},
    ),
    (
        "the age of a site's money, not of a pool that is gone",
        FACTORY | clocks(FRESH, {"a": 140, "b": 140, "gone": 300}),
        q.money_age(ANYWHERE),
        {"{}": 140},
    ),
    ("a site without GPUs has no money that is old", clocks({}, {"gone": 300}), q.money_age(ANYWHERE), {}),
    ("what the bills come to", BILLS, q.all_in_cost_per_hour(ANYWHERE), {'{currency="USD"}': 54}),
    (
        "GPU-hours of a product without a price are on no bill",
        BILLS | {'idlewatt_uncosted_gpu_seconds_total{site="n",pool="b",product="new"}': "0+80x60"},
        q.all_in_cost_per_hour(ANYWHERE),
        {},
    ),
    (
        "half of the sources answer",
        {
            'idlewatt_scrape_success{source="gpu",instance="c:1"}': "1x60",
            'idlewatt_scrape_success{source="e",instance="c:1"}': "0x60",
        },
        q.scrape_success_share(),
        {'{instance="c:1"}': 0.5},
    ),
    (
        "nothing was rejected while messages came",
        {'idlewatt_messages_total{topic="t",partition="0",instance="p:1"}': "0+5x60"},
        q.zero_while(
            q.rate(names.REJECTED_MESSAGES, by=("topic", "reason"), window="1m"),
            q.rate(names.MESSAGES, by=("topic",), window="1m"),
        ),
        {'{topic="t"}': 0},
    ),
    (
        "a partition told twice while it changes hands counts once",
        {
            'idlewatt_behind_messages{topic="t",partition="0",instance="p:1"}': "7x60",
            'idlewatt_behind_messages{topic="t",partition="0",instance="p:2"}': "9x60",
            'idlewatt_behind_messages{topic="t",partition="1",instance="p:1"}': "1x60",
        },
        q.behind_messages(),
        {'{topic="t"}': 10},
    ),
)


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("series", "expr", "expected"), [f[1:] for f in FIGURES], ids=[f[0] for f in FIGURES]
)
def test_figures(
    prometheus_tools: None,
    tmp_path: Path,
    series: Mapping[str, str],
    expr: str,
    expected: Mapping[str, float],
) -> None:
    """A figure has the value its definition gives, and is absent where it would lie."""
    # thousandths as whole numbers: the last digits of a float are not promised
    thousandths = f"floor(({expr.replace(q.RATE_INTERVAL, '1m')}) * 1000 + 0.5)"
    samples = [{"labels": labels, "value": round(number * 1000)} for labels, number in expected.items()]
    document = {
        "tests": [
            {
                "interval": "10s",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [{"expr": thousandths, "eval_time": "9m", "exp_samples": samples}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    promtool(tmp_path, "test", "rules", "test.yaml")
