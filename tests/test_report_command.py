"""`idlewatt report` as people run it: over the embedded log and over Kafka."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from idlewatt_command import COMMAND, environment, idlewatt
from kafka_broker import KafkaBroker
from report_ledgers import BOOK as TIERED
from report_ledgers import CONFIG, HOUR_MS, MINUTE_MS, START_MS, Booked, frame, power, tokens, write_ledger
from small_disk import SmallDisk

from idlewatt.cli.report_formats import Heading
from idlewatt.cli.writing_out import write_bytes
from idlewatt.processors.booking import messages
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.figures import COUNTS, MONEY
from idlewatt.processors.reports.ledger import Interval, Ledger
from idlewatt.processors.reports.report import grouped
from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.log import Record
from idlewatt.stream.opening import open_appender, prepare
from idlewatt.stream.records import POWER
from idlewatt.stream.settings import Settings

BOOK = """
currency = "EUR"
time_zone = "Europe/Berlin"
[[price]]
model = "llama"
input = 0.10
output = 0.50
[tariff]
per_kwh = 0.12
pue = 1.25
[[capital]]
product = "NVIDIA H100*"
per_gpu_hour = 1.80
"""
ROWS = (
    [power(pool=pool, window_start_ms=START_MS + n * 10_000) for n in range(12) for pool in ("chat", "code")],
    [
        tokens(pool=pool, window_start_ms=START_MS + n * 10_000)
        for n in range(12)
        for pool in ("chat", "code")
    ],
    [{"team": "search", "output_tokens": 40_000}, {"team": "<b>&", "output_tokens": 10_000}],
)


def write_all(settings: Settings) -> None:
    """The rows, and a message that cannot be read."""
    write_ledger(settings, Booked(*ROWS))
    appender = open_appender(settings, "test")
    appender.append([Record(topics.LEDGER, b"hall", b"garbage")])
    appender.close()


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An embedded log with a ledger, and a book."""
    path = tmp_path / "log.db"
    settings = Settings.model_validate({"log": {"path": str(path)}})
    prepare(settings)
    write_all(settings)
    (tmp_path / "book.toml").write_text(BOOK)
    return {"IDLEWATT_LOG__PATH": str(path), "IDLEWATT_ECONOMY__BOOK": str(tmp_path / "book.toml")}


# in Berlin: the day after the clocks went back
FROM, TO = "2020-11-01T02:00", "2020-11-01T02:03"


def report(env: dict[str, str], *arguments: str) -> Any:
    result = idlewatt("report", "--from", FROM, "--to", TO, *arguments, env=env)
    assert result.returncode == 0, result.stderr
    return result


def test_json_and_csv_and_parquet_tell_the_same(env: dict[str, str], tmp_path: Path) -> None:
    """What is parsed back is equal, to the last micro-unit, and adds up to the total."""
    result = report(env, "--by", "pool,model", "--format", "json")
    told = json.loads(result.stdout)
    assert told["from"] == "2020-11-01T02:00+01:00"
    assert told["currency"] == "EUR"
    assert told["unreadable_messages"] == 1
    assert "offset" in result.stderr
    assert [row["pool"] for row in told["rows"]] == ["chat", "code"]
    parquet = tmp_path / "report.parquet"
    report(env, "--by", "pool,model", "--format", "parquet", "--out", str(parquet))
    stored = pl.read_parquet(parquet)
    piped = subprocess.run(
        [*COMMAND, "report", "--from", FROM, "--to", TO, "--by", "pool,model", "--format", "parquet"],
        env=environment(env),
        capture_output=True,
        check=True,
    )
    assert pl.read_parquet(io.BytesIO(piped.stdout)).equals(stored)
    text = report(env, "--by", "pool,model", "--format", "csv").stdout
    parsed = pl.read_csv(io.StringIO(text), schema=stored.schema)
    for name in stored.columns:
        assert parsed.get_column(name).to_list() == stored.get_column(name).to_list(), name
        if name not in ("from", "to", "currency"):
            told_there = [row[name] for row in told["rows"]]
            decimal = isinstance(stored.schema[name], pl.Decimal)
            told_there = [Decimal(v) if decimal and v is not None else v for v in told_there]
            assert told_there == stored.get_column(name).to_list(), name
    for name in (*COUNTS, *MONEY):
        column = stored.get_column(name)
        if told["total"][name] is not None:
            assert Decimal(told["total"][name]) == sum(Decimal(v) for v in column.to_list())
    # 12 windows of 20,000 output and 50,000 input tokens in each of two pools
    revenue = Decimal(told["total"]["revenue"])
    # each row is rounded to a millionth by itself
    assert abs(revenue - 24 * (Decimal("0.01") + Decimal("0.005"))) <= 24 * Decimal("0.000001")
    cost = {name: Decimal(value) for name, value in told["reconciliation"]["cost"].items()}
    assert cost["available"] == sum(value for name, value in cost.items() if name != "available") > 0


def test_the_table_reconciles(env: dict[str, str]) -> None:
    """A table ends with its total and the lines that reconcile it, and names what no usage claims."""
    lines = report(env, "--by", "team").stdout.splitlines()
    assert lines[0] == "2020-11-01T02:00+01:00 to 2020-11-01T02:03+01:00 (Europe/Berlin), money in EUR"
    assert [line.split()[0] for line in lines if line.startswith(("(none)", "<b>&", "search", "total"))] == [
        "(none)",
        "<b>&",
        "search",
        "total",
    ] * 2
    assert [line.split()[:2] for line in lines if "=" in line] == [
        ["kwh", "available"],
        ["cost", "available"],
    ]


def test_a_book_that_changes_back_in_time_changes_the_report(env: dict[str, str]) -> None:
    """The same ledger, another price: another revenue."""
    before = json.loads(report(env, "--format", "json").stdout)
    book = Path(env["IDLEWATT_ECONOMY__BOOK"])
    book.write_text(BOOK.replace("output = 0.50", "output = 1.50\neffective_from = 2020-01-01"))
    after = json.loads(report(env, "--format", "json").stdout)
    more = Decimal(after["total"]["revenue"]) - Decimal(before["total"]["revenue"])
    assert more == 24 * 20_000 * Decimal(1) / 10**6
    assert after["total"]["energy_cost"] == before["total"]["energy_cost"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "yesterday"), "--from: 'yesterday' is no time; write 2026-11-01"),
        (("--from", "2020-11-02", "--to", "2020-11-01"), "is not before --to"),
        (("--from", "2020-11-01T00:00:30"), "is not on a whole minute"),
        (("--from", "2020-03-29T02:30"), "never was in Europe/Berlin"),
        (("--from", "2020-03-29 02:30"), "never was in Europe/Berlin"),
        (("--from", "0001-01-01"), "--from: there is no ledger of 1"),
        (("--statement", "a", "--month", "9999-12"), "--month: there is no ledger of 9999"),
        (("--from", "2020-11-01", "--by", "team,engineer"), "the same tokens told twice"),
        (("--from", "2020-11-01", "--out", "/no/such/folder/x"), "cannot write"),
    ],
)
def test_wrong_arguments_exit_2(env: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    """One line says what is wrong and how it is written."""
    result = idlewatt("report", *arguments, env=env)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_log_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report makes no log; who runs it without the configuration is told where it looked, and to name it."""
    path = tmp_path / "none.db"
    monkeypatch.chdir(tmp_path)
    result = idlewatt("report", "--from", "2020-11-01", env={"IDLEWATT_LOG__PATH": path.name})
    assert (result.returncode, path.exists()) == (2, False)
    assert f"{path}; if the log is elsewhere, name its configuration with --config" in result.stderr


def test_an_interval_without_rows_says_so(env: dict[str, str]) -> None:
    """An empty report is no error, and no silence."""
    result = idlewatt("report", "--from", "2025-01-01", "--to", "2025-02-01", env=env)
    assert result.returncode == 0
    assert "the ledger has nothing of this interval" in result.stderr


def test_parts_of_a_day_are_what_was_booked_though_usage_came_late(
    env: dict[str, str], tmp_path: Path
) -> None:
    """What was read first is below the step, though the report ends before the minute that it is dated in."""
    settings = Settings.model_validate({"log": {"path": str(tmp_path / "late.db")}})
    prepare(settings)
    late = [
        {"ts_ms": START_MS + hour * HOUR_MS, "output_tokens": tokens}
        for hour, tokens in ((5, 4_000), (1, 100))
    ]
    write_ledger(settings, Booked([], [], late))
    book = tmp_path / "steps.toml"
    book.write_text(
        'time_zone = "Europe/Berlin"\n[[price]]\nmodel = "llama"\ninput = 0\noutput = 1000\nsteps = [{ above_mtok = 0.004, output = 10 }]\n'
    )
    env = {"IDLEWATT_LOG__PATH": settings.log.path, "IDLEWATT_ECONOMY__BOOK": str(book)}
    for begin, end, owed in (("02", "05", "0.001000"), ("05", "08", "4.000000"), ("02", "08", "4.001000")):
        interval = ("--from", f"2020-11-01T{begin}:00", "--to", f"2020-11-01T{end}:00")
        told = json.loads(idlewatt("report", *interval, "--by", "team", "--format", "json", env=env).stdout)
        assert next(row["revenue"] for row in told["rows"] if row["team"] == "search") == owed
        # what is read for its order alone is nothing of the interval
        (note,) = (note for note in told["notes"] if "nothing of this interval but usage up to " in note)
        assert note.split()[-1] < f"2020-11-01T{end}"


def test_what_are_too_few_tokens_is_a_setting(env: dict[str, str]) -> None:
    """The one of /metrics, for reports and for what would be."""
    whole = ("--from", FROM, "--to", TO, "--format", "json")
    for floor, is_known in ((480_000, True), (480_001, False)):
        env = env | {"IDLEWATT_PROCESS__MIN_TOKENS": str(floor)}
        told = json.loads(idlewatt("report", *whole, env=env).stdout)["total"]
        would = json.loads(idlewatt("whatif", *whole, "--pue", "1.1", env=env).stdout)["as_it_was"]
        assert told["output_tokens"] == 480_000
        assert [each["tokens_per_joule"] is not None for each in (told, would)] == [is_known] * 2


def test_few_tokens_are_told_where_ratios_are_withheld_for_them(env: dict[str, str]) -> None:
    """In a note of the table, which has no column for it, and of what would be, where that is too few or what was."""
    whole, note = ("--from", FROM, "--to", TO), "too few tokens: ratios of what made fewer output tokens"
    made = ("--tokens-per-joule", "+10%")
    for floor, is_few in ((480_000, False), (480_001, True)):
        env = env | {"IDLEWATT_PROCESS__MIN_TOKENS": str(floor)}
        assert (note in idlewatt("report", *whole, "--by", "site", env=env).stdout) is is_few
        for form in ("table", "json"):
            told = idlewatt("whatif", *whole, *made, "--format", form, env=env).stdout
            fewer = idlewatt("whatif", *whole, "--tokens-per-joule", "-10%", "--format", form, env=env).stdout
            assert (told.count(note), fewer.count(note)) == (is_few, 1)
    # of no tokens everybody sees why there is no ratio
    write_ledger(
        Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}}),
        Booked([power(site="idle")], [], []),
    )
    by_site = idlewatt(
        "report", *whole, "--by", "site", env=env | {"IDLEWATT_PROCESS__MIN_TOKENS": "1"}
    ).stdout
    assert "idle " in by_site
    assert note not in by_site


def test_a_report_without_a_book_says_so(env: dict[str, str]) -> None:
    """Who forgot --config learns why nothing has a price, and that days are those of UTC."""
    said = "book: there is none, or it says nothing: tokens and electricity have no price, times are in UTC"
    whole = ("--from", "2020-10-31", "--to", "2020-11-02")
    none = {"IDLEWATT_LOG__PATH": env["IDLEWATT_LOG__PATH"]}
    for command in (("report", *whole), ("whatif", *whole, "--pue", "1.1")):
        assert said in idlewatt(*command, env=none).stdout.splitlines()
        assert said not in idlewatt(*command, env=env).stdout.splitlines()
    page = idlewatt("report", "--statement", "search", "--month", "2020-11", env=none).stdout
    assert said in page


NOTHING = "ledger: it has nothing of this interval"


def test_nothing_metered_is_not_nothing_made(env: dict[str, str]) -> None:
    """Of an interval without watts and tokens no figure is 0: a collector that stood still is no idle factory."""
    empty = ("--from", "2020-11-02", "--to", "2020-11-03")
    told = json.loads(idlewatt("report", *empty, "--format", "json", env=env).stdout)
    known = {name for name, value in told["total"].items() if value is not None}
    assert (known, told["total"]["withheld"]) == ({"withheld"}, "nothing in the ledger")
    assert {value for parts in told["reconciliation"].values() for value in parts.values()} == {None}
    assert told["notes"][0] == NOTHING
    table = idlewatt("report", *empty, env=env).stdout
    assert NOTHING in table
    assert "0.00" not in table
    change = ("whatif", *empty, "--price", "+10%")
    told = json.loads(idlewatt(*change, "--format", "json", env=env).stdout)
    assert {*told["as_it_was"].values(), *told["what_if"].values()} == {None}
    assert told["notes"][0] == NOTHING
    table = idlewatt(*change, env=env).stdout
    assert NOTHING in table
    assert "0.00" not in table


def test_a_site_that_ended_before_the_interval_is_named(env: dict[str, str]) -> None:
    """Its last rows are of the day before: it is missing in every figure, as is one that ends within the interval."""
    settings = Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}})
    going_on = [power(site="annex", window_start_ms=START_MS + n * HOUR_MS) for n in range(48)]
    write_ledger(settings, Booked(going_on, [], []))
    day = ("--from", "2020-11-02", "--to", "2020-11-03", "--format", "json")
    told = json.loads(idlewatt("report", *day, env=env).stdout)
    assert [site["site"] for site in told["ledger"]] == ["annex"]
    assert [note for note in told["notes"] if "hall" in note] == [
        "ledger: that of hall ends at 2020-11-01T02:02+01:00"
    ]
    assert NOTHING not in told["notes"]
    # a site that is known by usage of the month alone
    used = {"ts_ms": START_MS, "site": "attic", "team": "search", "output_tokens": 1}
    write_ledger(settings, Booked([], [], [used]))
    told = json.loads(
        idlewatt("report", "--from", "2020-11-20", "--to", "2020-11-21", "--format", "json", env=env).stdout
    )
    assert "ledger: that of attic ends at 2020-11-01T02:01+01:00" in told["notes"]


def test_a_site_that_is_known_by_its_usage_alone_is_named(env: dict[str, str], tmp_path: Path) -> None:
    """Its metering stopped, its gateway goes on: what its tokens took is not known, and the report says of whom."""
    settings = Settings.model_validate({"log": {"path": str(tmp_path / "stopped.db")}})
    prepare(settings)
    ends_ms = {"annex": START_MS + 5 * MINUTE_MS, "hall": START_MS + 90 * MINUTE_MS}
    at = [START_MS + minute * MINUTE_MS for minute in range(90)]
    made = [(site, ms) for site, end_ms in ends_ms.items() for ms in at if ms < end_ms]
    booked = Booked(
        [power(site=site, window_start_ms=ms) for site, ms in made],
        [tokens(site=site, window_start_ms=ms) for site, ms in made],
        [
            {"site": site, "ts_ms": ms, "team": f"of-{site}", "output_tokens": 100}
            for site in ends_ms
            for ms in at
        ],
    )
    write_ledger(settings, booked)
    env |= {"IDLEWATT_LOG__PATH": settings.log.path}
    hour = ("--from", "2020-11-01T02:10", "--to", "2020-11-01T03:10", "--format", "json")
    for by in ("site", "site,team", "team", "site,tier"):
        told = json.loads(idlewatt("report", *hour, "--by", by, env=env).stdout)
        assert [site["site"] for site in told["ledger"]] == ["hall"]
        assert [note for note in told["notes"] if "annex" in note] == [
            "ledger: that of annex has nothing of this interval but usage up to 2020-11-01T03:10+01:00"
        ]
        for row in (*told["rows"], told["total"]):
            is_read = row.get("site", "hall") == "hall" and row.get("team") != "of-annex"
            known = {
                row[name] is not None for name in ("available_kwh", "gpu_hours", "energy_cost", "margin")
            }
            assert known == {is_read}
            assert ("no GPUs in the ledger" in row["withheld"]) is not is_read
        assert told["total"]["available_kwh"] == str(
            sum(Decimal(row["available_kwh"]) for row in told["rows"] if row["available_kwh"])
        )


def test_what_the_ledger_lacks_in_between_is_told(env: dict[str, str], tmp_path: Path) -> None:
    """GPUs that are silent for too long are not even dark: a week without collectors is no cheap week."""
    settings = Settings.model_validate({"log": {"path": str(tmp_path / "gaps.db")}})
    prepare(settings)
    # ten minutes after the end of the first is no gap; tokens are of the ledger as watts are
    watts = [power(window_start_ms=START_MS + s * 1000) for s in (0, 610, 5 * 3600)]
    rows = [tokens(window_start_ms=START_MS + 2 * HOUR_MS), tokens(window_start_ms=START_MS + 9 * HOUR_MS)]
    elsewhere = [power(site="annex", window_start_ms=START_MS + n * 600_000) for n in range(60)]
    used = [{"ts_ms": START_MS, "team": "search", "output_tokens": 100}]
    write_ledger(settings, Booked([*watts, *elsewhere], rows, used))
    env |= {"IDLEWATT_LOG__PATH": settings.log.path}
    one = "that of hall has nothing from 2020-11-01T02:10+01:00 to 2020-11-01T04:00+01:00"
    longest = "has nothing from 2020-11-01T07:00+01:00 to 2020-11-01T11:00+01:00, the longest of 3 gaps of over ten minutes"
    for end, said in (("04:01", one), ("11:01", f"that of hall {longest}")):
        interval = ("--from", "2020-11-01T02:00", "--to", f"2020-11-01T{end}")
        told = json.loads(idlewatt("report", *interval, "--format", "json", env=env).stdout)
        assert [note for note in told["notes"] if "has nothing from" in note] == [f"ledger: {said}"]
        assert f"ledger: {said}" in idlewatt("report", *interval, env=env).stdout.splitlines()
        assert f"ledger: {said}" in idlewatt("whatif", *interval, "--pue", "1.1", env=env).stdout.splitlines()
    page = idlewatt("report", "--statement", "search", "--month", "2020-11", env=env).stdout
    assert f"and ends at 2020-11-01T11:00+01:00 and {longest}" in page


def test_help_has_examples() -> None:
    """--help is enough to begin with."""
    assert "idlewatt report --from 2026-11-01 --to 2026-12-01" in idlewatt("report", "--help").stdout
    assert "--follow" in idlewatt("tail", "--help").stdout


def test_tail_shows_rows_of_a_topic(env: dict[str, str]) -> None:
    """The newest rows, decoded; what cannot be read is told apart."""
    result = idlewatt("tail", "ledger", "--format", "json", "--rows", "3", env=env)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 3
    assert {row["window_start_ms"] for row in rows} <= {START_MS + 100_000, START_MS + 110_000}
    assert "begin like an Arrow IPC stream" in result.stderr
    shown = idlewatt("tail", "idlewatt.money", env=env).stdout
    assert shown.startswith("consumer\n")
    assert "2020-11-01T01:00:00.000+00:00" in shown
    assert idlewatt("tail", "state", env=env).returncode == 2
    assert "there is no topic 'ledgre'" in idlewatt("tail", "ledgre", env=env).stderr


def test_tail_shows_what_a_wild_clock_says(env: dict[str, str]) -> None:
    """A moment of no year is the number that it is, and hides no other row."""
    appender = open_appender(Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}}), "test")
    wild = frame(POWER, [power(window_start_ms=10**18), power()])
    appender.append(list(messages(topics.LEDGER, POWER, wild)))
    appender.close()
    shown = idlewatt("tail", "ledger", "--rows", "2", env=env).stdout
    assert "1000000000000000000" in shown
    assert "2020-11-01T01:00:00.000+00:00" in shown


def test_tail_follows(env: dict[str, str]) -> None:
    """Rows that come are shown as they come, and Ctrl-C is a good end."""
    with subprocess.Popen(
        [*COMMAND, "tail", "ledger", "--rows", "0", "--follow", "--format", "json"],
        env=environment(env | {"PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            appender = open_appender(
                Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}}), "test"
            )
            assert process.stdout is not None
            seen = threading.Event()

            def append() -> None:
                number = 0
                while not seen.wait(0.2):
                    number += 1
                    late = frame(POWER, [power(window_start_ms=START_MS + HOUR_MS, draw_mj=number)])
                    appender.append(list(messages(topics.LEDGER, POWER, late)))

            writer = threading.Thread(target=append)
            writer.start()
            line = process.stdout.readline()
            seen.set()
            writer.join()
            appender.close()
            assert json.loads(line)["window_start_ms"] == START_MS + HOUR_MS
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.kafka
def test_a_report_over_kafka_is_that_of_the_embedded_log(
    kafka_broker: KafkaBroker, env: dict[str, str]
) -> None:
    """Both homes of the log give the same report, and the same rows to tail."""
    settings = kafka_broker.fresh_topics(kafka_broker.settings())
    write_all(settings)
    on_kafka = env | {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": settings.log.bootstrap_servers,
    }
    told = [report(e, "--by", "site,team,model", "--format", "json").stdout for e in (env, on_kafka)]
    assert told[0] == told[1]
    rows = [idlewatt("tail", "money", "--format", "json", env=e).stdout for e in (env, on_kafka)]
    assert rows[0] == rows[1] != ""


def test_figures_say_what_the_ledger_has_of_their_interval(env: dict[str, str]) -> None:
    """Two minutes of a month that is over: neither a report nor a statement passes for the whole of it."""
    begins, ends = "begins at 2020-11-01T02:00+01:00", "ends at 2020-11-01T02:02+01:00"
    month = ("--from", "2020-11-01", "--to", "2020-12-01")
    table = idlewatt("report", *month, env=env).stdout
    assert f"ledger: that of hall {begins} and {ends}" in table
    csv = idlewatt("report", *month, "--format", "csv", env=env)
    assert begins in csv.stderr
    assert begins not in csv.stdout
    told = json.loads(idlewatt("report", *month, "--format", "json", env=env).stdout)
    assert told["ledger"] == [
        {"site": "hall", "from": "2020-11-01T02:00+01:00", "to": "2020-11-01T02:02+01:00"}
    ]
    assert any(ends in note for note in told["notes"])
    page = idlewatt("report", "--statement", "search", "--month", "2020-11", env=env).stdout
    assert "Not the whole month: as of 2020-11-01T02:02+01:00." in page
    assert begins in page
    # neither does one up to a moment that is still to come
    to_come = idlewatt("report", "--from", "2020-11-01", "--to", "2199-01-01", env=env).stdout
    assert "interval: it is not over, now is 20" in to_come


def test_a_report_says_that_its_last_hour_is_not_over() -> None:
    """Tiers go by what usage told in the whole of a clock hour: until then the revenue of an interval that is over changes."""
    pairs = [
        {"ts_ms": START_MS + minute * MINUTE_MS, "tier": tier, "output_tokens": 10_000}
        for minute, tier in ((10, "standard"), (40, "premium"))
    ]
    at = [START_MS + minute * MINUTE_MS for minute in (10, 40)]
    booked = Booked(
        [power(window_start_ms=ms) for ms in at], [tokens(window_start_ms=ms) for ms in at], pairs
    )
    ledger, half = booked.ledger, Interval(START_MS, START_MS + HOUR_MS // 2)
    early = dataclasses.replace(
        ledger, tokens=ledger.tokens.filter(half.has()), usage=ledger.usage.filter(half.has())
    )
    revenues = [
        grouped(cells(known, TIERED, CONFIG, half), ()).total("revenue_micro") for known in (early, ledger)
    ]
    assert revenues[0] != revenues[1]

    def said(minutes: int, now: int, known: Ledger = ledger) -> list[str]:
        interval = Interval(START_MS, START_MS + minutes * MINUTE_MS)
        heading = Heading.now(interval, TIERED, known)
        at_then = dataclasses.replace(heading, now_ms=START_MS + now * MINUTE_MS)
        return [note for note in at_then.notes if note.startswith(("tiers:", "interval:"))]

    note = "tiers: the hour from 2020-10-31T21:00-04:00 is not over; until it is, its tiers and what its tokens bring can change"
    assert said(30, 30) == said(30, 59) == said(11, 59) == [note]
    assert said(30, 60) == said(60, 60) == []
    assert said(61, 119) == [note.replace("T21:00", "T22:00")]
    assert [line.split(":")[0] for line in said(30, 29)] == ["interval"]
    # without usage all is on the default tier
    assert said(30, 30, dataclasses.replace(ledger, usage=ledger.usage.clear())) == []


def test_a_statement_says_where_usage_ends(env: dict[str, str], tmp_path: Path) -> None:
    """The economy stood still for the rest of the day, and the meter went on."""
    settings = Settings.model_validate({"log": {"path": str(tmp_path / "economy.db")}})
    prepare(settings)
    rows = [power(window_start_ms=START_MS + hour * 3_600_000) for hour in range(9)]
    write_ledger(settings, Booked(rows, [], [{"team": "search", "output_tokens": 40_000}]))
    env |= {"IDLEWATT_LOG__PATH": settings.log.path}
    page = idlewatt("report", "--statement", "search", "--month", "2020-11", env=env).stdout
    assert "usage: the newest of hall is of 2020-11-01T02:01+01:00" in page
    table = idlewatt("report", "--from", "2020-11-01T02:00", "--to", "2020-11-01T06:00", env=env).stdout
    assert "usage: the newest" not in table
    # nor is there any usage in what comes after
    later = ("--from", "2020-11-01T04:00", "--to", "2020-11-01T11:00", "--format", "json")
    notes = json.loads(idlewatt("report", *later, env=env).stdout)["notes"]
    assert [
        note for note in notes if note.startswith("usage: the newest of hall is of 2020-11-01T02:01+01:00")
    ]


def test_a_report_that_is_stopped_is_not_done(env: dict[str, str], tmp_path: Path) -> None:
    """Neither its exit code nor the file that it was to write says that it was."""
    pipe = tmp_path / "nobody reads it"
    os.mkfifo(pipe)
    command = [*COMMAND, "report", "--from", FROM, "--to", TO, "--format", "csv", "--out", str(pipe)]
    with subprocess.Popen(command, env=environment(env), stderr=subprocess.PIPE, text=True) as process:
        # it has read the ledger, and will wait for a reader
        assert process.stderr is not None
        while "offset" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert "stopped before it was done" in process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM


def test_a_full_disk_keeps_the_report_of_before(small_disk: SmallDisk) -> None:
    """What --out names is written whole or not at all; a link stays one, and modes stay."""
    before = small_disk.folder / "november.csv"
    before.write_bytes(b"last month")
    before.chmod(0o640)
    link = small_disk.folder / "link.csv"
    link.symlink_to(before)
    small_disk.fill()
    with pytest.raises(ConfigError, match="No space left"):
        write_bytes(link, bytes(100_000))
    assert before.read_bytes() == b"last month"
    small_disk.empty()
    write_bytes(link, b"this month")
    assert (before.read_bytes(), before.stat().st_mode & 0o777) == (b"this month", 0o640)
    assert link.is_symlink()
    assert sorted(path.name for path in small_disk.folder.iterdir()) == ["link.csv", "november.csv"]


def test_a_stdout_that_takes_nothing_is_told_in_a_line() -> None:
    """No traceback, neither then nor at the exit."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "config"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment({}),
            check=False,
            text=True,
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output: No space left" in done.stderr
