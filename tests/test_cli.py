"""The command line: exit codes, one line for a user's mistake, and a clean end on a signal."""

import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from idlewatt_command import COMMAND, Serving, environment, idlewatt, serving, taken_port, wait_until
from kafka_broker import KafkaBroker
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from idlewatt.cli.config_sample import sample
from idlewatt.cli.main import main
from idlewatt.cli.serving import running
from idlewatt.stream import metric_names
from idlewatt.stream.embedded_file import open_file
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.settings import Collect, Log, Settings

COMMANDS = ("demo", "run", "collect", "process", "dashboards", "doctor", "report", "whatif", "tail", "config")
_STOPPED_AT = """
import os, signal, sys, threading
_, place, number, *arguments = sys.argv
def reach(name):
    if name.startswith(place):
        os.kill(os.getpid(), int(number))
begin = threading.Thread.start
def start(thread):
    reach(thread.name)
    begin(thread)
threading.Thread.start = start
sys.addaudithook(lambda event, what: event == "import" and reach(what[0]))
from idlewatt.cli.main import main
sys.exit(main(arguments))
"""


def simulated(tmp_path: Path, more: str = "") -> str:
    """A settings file for a simulated factory with quick windows."""
    file = tmp_path / "idlewatt.toml"
    file.write_text(
        f"[log]\npath = '{tmp_path / 'log.db'}'\n"
        "[collect]\ngpu = 'simulated'\ngpu_interval_s = 0.5\nengine_interval_s = 0.5\nsend_interval_s = 0.25\n"
        f"[process]\nwindow_s = 1\ngrace_s = 2\n{more}"
    )
    return str(file)


def families(page: str) -> dict[str, float]:
    """The sum of each family of a metrics page, which has each family once and each series once."""
    sums: dict[str, float] = {}
    series = set()
    for family in text_string_to_metric_families(page):
        assert family.name not in sums, f"{family.name} stands twice on the page"
        for sample_ in family.samples:
            key = (sample_.name, tuple(sorted(sample_.labels.items())))
            assert key not in series, f"{key} stands twice on the page"
            series.add(key)
        sums[family.name] = sum(sample_.value for sample_ in family.samples)
    return sums


def assert_one_line_errors(result: subprocess.CompletedProcess[str], *lines: str) -> None:
    """stderr is these lines, each beginning with the command's name, and no traceback."""
    found = result.stderr.splitlines()
    assert len(found) == len(lines), result.stderr
    for line, wanted in zip(found, lines, strict=True):
        assert line.startswith("idlewatt: ")
        assert wanted in line


def test_help_shows_commands_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Help is enough to begin with."""
    result = idlewatt("--help")
    assert result.returncode == 0
    for word in (*COMMANDS, "examples:", "idlewatt run --config idlewatt.toml", "exit codes:"):
        assert word in result.stdout
    for command in COMMANDS:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, "--help"])
        assert f"usage: idlewatt {command}" in capsys.readouterr().out


def refusal_of(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of arguments that make no sense to it, which is exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_version_is_told() -> None:
    """--version prints name and version."""
    result = idlewatt("--version")
    assert (result.returncode, result.stdout) == (0, "idlewatt 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [(), ("rnu",), ("run", "--confg", "x"), ("demo", "--seconds", "long")],
)
def test_wrong_use_exits_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """Arguments that make no sense are exit code 2 and say what would."""
    assert "usage: idlewatt" in refusal_of(arguments, capsys)


def test_wrong_demo_seconds_are_told() -> None:
    """The variable is checked like the argument."""
    result = idlewatt("demo", env={"DEMO_SECONDS": "40s"})
    assert result.returncode == 2
    assert "'40s' is no number of seconds; write it plainly, such as 40" in result.stderr


def test_wrong_settings_exit_2_with_a_line_each(tmp_path: Path) -> None:
    """Faults of a file and of the environment come as a line each."""
    file = tmp_path / "idlewatt.toml"
    file.write_text("[serve]\nprot = 1\n")
    result = idlewatt("run", "--config", str(file), env={"IDLEWATT_PROT": "1"})
    assert result.returncode == 2
    assert_one_line_errors(
        result, "did you mean IDLEWATT_PORT?", "[serve] has no key prot; did you mean port?"
    )


def test_missing_file_exits_2(tmp_path: Path) -> None:
    """A settings file that is not there is no reason to start on defaults."""
    result = idlewatt("collect", env={"IDLEWATT_CONFIG": str(tmp_path / "no.toml")})
    assert result.returncode == 2
    assert_one_line_errors(result, "there is no such file")


def test_taken_port_exits_2(tmp_path: Path) -> None:
    """Whoever serves does not move to another port by itself."""
    with taken_port() as held:
        port = str(held.getsockname()[1])
        result = idlewatt("run", "--config", simulated(tmp_path), env={"IDLEWATT_PORT": port})
    assert result.returncode == 2
    assert_one_line_errors(result, f"port {port} on 127.0.0.1 is taken")
    assert not (tmp_path / "log.db").exists()


def away() -> dict[str, str]:
    """Settings of a Kafka where nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        servers = f"127.0.0.1:{gone.getsockname()[1]}"
    return {"IDLEWATT_LOG__KIND": "kafka", "IDLEWATT_LOG__BOOTSTRAP_SERVERS": servers, "IDLEWATT_PORT": "0"}


def test_unreachable_kafka_exits_3() -> None:
    """A broker that does not answer a processor at its start is exit code 3."""
    env = away()
    result = idlewatt("process", env=env)
    assert result.returncode == 3
    assert env["IDLEWATT_LOG__BOOTSTRAP_SERVERS"] in result.stderr
    assert "Traceback" not in result.stderr


def test_a_collector_starts_without_kafka(tmp_path: Path) -> None:
    """A collector that is restarted while Kafka is away spools what it reads meanwhile."""
    env = away() | {"IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool")}
    with serving("collect", "--config", simulated(tmp_path), log=tmp_path / "log", env=env) as command:
        wait_until(lambda: families(command.page()).get("idlewatt_spool_bytes", 0) > 0, "rows are spooled")
        assert command.stop()[0] == 0


def test_a_collector_on_a_file_that_is_held_promises_no_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log in a file has none: it ends with what is exit code 3, and says nothing of rows that wait."""
    monkeypatch.setattr("idlewatt.stream.embedded_file.BUSY_TIMEOUT_S", 0.3)
    path = tmp_path / "log.db"
    open_file(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        settings = Settings(log=Log(path=str(path)), collect=Collect(gpu="none"))
        with (
            capture_logs() as logged,
            pytest.raises(LogUnavailableError, match="another program holds it"),
            running(settings, [0], collect=True, process=False),
        ):
            pass
    assert logged == []


def test_config_prints_the_sample() -> None:
    """The sample goes to stdout, whole; a reader that goes away is no error."""
    assert idlewatt("config").stdout == sample()
    with subprocess.Popen(
        [*COMMAND, "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:9477/metrics", "127.0.0.1", "127.0.0.1:", "a:0", "a:65536", "a:9477/metrics", "::1:1"],
)
def test_what_prometheus_cannot_ask_is_no_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """It would refuse the whole file, or ask another port: nothing is written, and the line says how it is."""
    said = refusal_of(("dashboards", "--out", str(tmp_path / "out"), "--target", target), capsys)
    assert not (tmp_path / "out").exists()
    assert f"{target!r} is no HOST:PORT; write it" in said
    assert "such as 127.0.0.1:9477" in said


@pytest.mark.parametrize("name", ["http://collectors", "collectors:9477", "collectors/", ""])
def test_what_has_no_addresses_is_no_name_of_collectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Nothing is written, and the line says how a name is written."""
    arguments = ("--target", "p:9477", "--collectors-dns", name)
    said = refusal_of(("dashboards", "--out", str(tmp_path / "out"), *arguments), capsys)
    assert not (tmp_path / "out").exists()
    assert f"{name!r} is no DNS name; write it without http://, port and path" in said


def test_dashboards_are_written(tmp_path: Path) -> None:
    """--out gets dashboards and rules; a folder that cannot be is told in a line."""
    assert idlewatt("dashboards", "--out", str(tmp_path / "out")).returncode == 0
    assert list((tmp_path / "out").rglob("*.json"))
    (tmp_path / "file").touch()
    result = idlewatt("dashboards", "--out", str(tmp_path / "file"))
    assert result.returncode == 2
    assert_one_line_errors(result, "cannot write")


def test_run_serves_everything_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    """One process meters a box; SIGTERM and SIGINT end it within 5 s with exit 0, and a restart goes on."""
    book = tmp_path / "book.toml"
    book.write_text("[[price]]\nmodel = '*'\ninput = 0\noutput = 1\n")
    config = simulated(tmp_path, f"[economy]\nbook = '{book}'\n")
    energy = 0.0
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving("run", "--config", config, log=tmp_path / "log.txt") as command:
            # windows that the one before had not closed are closed before anything is read
            wait_until(
                lambda before=energy, command=command: (
                    (page := families(command.page())).get("idlewatt_energy_joules", 0.0) > before
                    and page["idlewatt_scrape_success"] > 0
                ),
                "sources are read, and windows close",
            )
            page = families(command.page())
            assert page["idlewatt_unaccounted_joules"] == 0
            known = {metric.name.removesuffix("_total") for metric in metric_names.METRICS}
            assert page.keys() <= known
            assert page["idlewatt_energy_joules"] >= energy
            energy = page["idlewatt_energy_joules"]
            code, seconds = command.stop(number)
            assert code == 0
            assert seconds < 5
            events = command.events()
            assert [event["event"] for event in events if event["event"] in ("serving", "stopping")] == [
                "serving",
                "stopping",
            ]
            assert not [event for event in events if event["level"] == "error"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_sources_are_started_is_a_stop(tmp_path: Path, number: int) -> None:
    """It ends with exit 0 and no error, though some sources have not begun to be read."""
    result = stopped_at("read gpus:", number, "run", "--config", simulated(tmp_path))
    assert result.returncode == 0
    assert result.stderr == ""


@pytest.mark.parametrize(("command", "code"), [("collect", 0), ("doctor", 128 + signal.SIGINT)])
def test_a_stop_while_modules_are_loaded_is_a_stop(command: str, code: int) -> None:
    """That is most of a command's first second; there is no traceback."""
    result = stopped_at("pydantic", signal.SIGINT, command)
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def stopped_at(place: str, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, sent a signal when a thread or a module whose name begins so is about to be started or loaded."""
    return subprocess.run(
        [sys.executable, "-c", _STOPPED_AT, place, str(number), *arguments],
        env=environment({"IDLEWATT_PORT": "0"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_stop_while_stages_are_started_ends_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of a consumer group that goes without a word keeps its partitions from others until it is missed."""
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "idlewatt-economy":
            raise KeyboardInterrupt
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    settings = Settings(log=Log(path=str(tmp_path / "log.db")))
    with pytest.raises(KeyboardInterrupt), running(settings, [0], collect=False, process=True):
        pass
    assert "idlewatt-meter" not in {thread.name for thread in threading.enumerate()}


def test_collect_and_process_share_the_work(tmp_path: Path) -> None:
    """Collectors and stages run apart on one log; each serves its own figures only."""
    config = simulated(tmp_path)

    def process(stage: str) -> AbstractContextManager[Serving]:
        env = {"IDLEWATT_PROCESS__STAGES": f'["{stage}"]'}
        return serving("process", "--config", config, log=tmp_path / f"{stage}.txt", env=env)

    with (
        serving("collect", "--config", config, log=tmp_path / "collect.txt") as collect,
        process("meter") as meter,
        process("economy") as economy,
    ):
        wait_until(lambda: "idlewatt_gpus" in families(meter.page()), "the meter closes windows")
        wait_until(
            lambda: families(economy.page()).get("idlewatt_benchmark_lost_revenue", 0) > 0,
            "the economy prices them",
        )
        pages = {"collector": collect.page(), "meter": meter.page(), "economy": economy.page()}
        for stage, page in pages.items():
            stages = {
                metric.stage
                for metric in metric_names.METRICS
                if metric.name.removesuffix("_total") in families(page)
            }
            assert stages - {"pipeline"} == {stage}
        assert [command.stop()[0] for command in (collect, meter, economy)] == [0, 0, 0]


def test_a_stage_runs_in_one_process_on_a_file(tmp_path: Path) -> None:
    """A second one ends at the start with exit code 2 and says which file; a kill leaves nothing in the way."""
    config = simulated(tmp_path)
    env = {"IDLEWATT_PORT": "0"}
    with serving("run", "--config", config, log=tmp_path / "first.txt") as first:
        assert first.url
        for command, stages in (("run", '["meter", "economy"]'), ("process", '["economy"]')):
            second = idlewatt(
                command, "--config", config, env=env | {"IDLEWATT_PROCESS__STAGES": stages}, timeout_s=30
            )
            assert second.returncode == 2
            assert_one_line_errors(second, f"on {tmp_path / 'log.db'}: stop it")
        with serving("collect", "--config", config, log=tmp_path / "collect.txt") as collect:
            assert collect.url
        first.process.send_signal(signal.SIGKILL)
        with serving("run", "--config", config, log=tmp_path / "next.txt") as heir:
            assert heir.url
    assert not {event["event"] for event in heir.events()} & {"rewound", "unexpected_error"}


def test_a_hanging_engine_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """SIGTERM ends the collector within 5 s while an engine keeps it waiting."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {
            "IDLEWATT_COLLECT__GPU": "none",
            "IDLEWATT_COLLECT__TIMEOUT_S": "60",
            "IDLEWATT_COLLECT__ENGINE": f'[{{url = "http://127.0.0.1:{silent.getsockname()[1]}/metrics"}}]',
            "IDLEWATT_LOG__PATH": str(tmp_path / "log.db"),
        }
        with serving("collect", log=tmp_path / "log.txt", env=env) as command:
            assert command.url
            connection, _ = silent.accept()
            with connection:
                code, seconds = command.stop()
    assert code == 0
    assert seconds < 5


def test_a_state_that_cannot_be_read_ends_the_process(tmp_path: Path) -> None:
    """A broken state is never passed over in silence: the process ends, with one line that says why."""
    config = simulated(tmp_path)
    with serving("run", "--config", config, log=tmp_path / "log.txt") as command:
        wait_until(lambda: "idlewatt_gpus" in families(command.page()), "windows close")
        assert command.stop()[0] == 0
    with sqlite3.connect(tmp_path / "log.db") as file:
        file.execute("UPDATE stages SET snapshot = ? WHERE stage = 'meter'", (b"no snapshot",))
    file.close()
    with serving("run", "--config", config, log=tmp_path / "log.txt") as command:
        code = command.process.wait(40)
        last = command.log.read_text().splitlines()[-1]
    assert code == 2
    assert last.startswith("idlewatt: a snapshot in idlewatt.state is not one of ours")


@pytest.mark.kafka
def test_a_frozen_kafka_does_not_hold_up_the_end(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    """SIGTERM ends collector and processor within 5 s while Kafka does not answer."""
    settings = kafka_broker.fresh_topics(kafka_broker.settings())
    env = {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": settings.log.bootstrap_servers,
        "IDLEWATT_COLLECT__GPU": "simulated",
        "IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool"),
        "IDLEWATT_PROCESS__WINDOW_S": "1",
        "IDLEWATT_PROCESS__GRACE_S": "2",
        "IDLEWATT_PROCESS__GROUP": settings.process.group,
    }
    with (
        serving("collect", log=tmp_path / "collect.txt", env=env) as collect,
        serving("process", log=tmp_path / "process.txt", env=env) as process,
    ):
        wait_until(lambda: "idlewatt_gpus" in families(process.page()), "windows close", 60)
        kafka_broker.freeze()
        try:
            for command in (collect, process):
                code, seconds = command.stop()
                assert code == 0, command.log.read_text()
                assert seconds < 5
                assert "Traceback" not in command.log.read_text()
        finally:
            kafka_broker.thaw()


def test_a_kafka_that_is_away_is_no_flood_of_lines(tmp_path: Path) -> None:
    """The collector says it itself; of the client, which tries on, each thing is there once a minute, with its cause."""
    env = {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "IDLEWATT_COLLECT__GPU": "simulated",
        "IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool"),
    }
    ours = ["log_unavailable", "serving", "log_away"]
    with serving("collect", log=tmp_path / "collect.txt", env=env) as command:
        wait_until(lambda: "log_away" in command.log.read_text(), "it has tried again")
        events = [event["event"] for event in command.events()]
    of_the_client = [event for event in events if event not in ours]
    assert [event for event in events if event in ours] == ours
    assert 0 < len(of_the_client) < 8, of_the_client
    assert any("ECONNREFUSED" in event for event in of_the_client)
