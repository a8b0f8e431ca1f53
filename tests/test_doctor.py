"""`idlewatt doctor` says of each part what it saw and what to do, and exits 3 if one fails."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import loopback_http
import pytest
from idlewatt_command import idlewatt, serving, taken_port
from kafka_broker import KafkaBroker
from nvml_library import NvmlScript
from nvml_library import nvml_library as nvml_library
from small_disk import SmallDisk

from idlewatt.cli.config import load_settings
from idlewatt.cli.doctor_spool import spool_finding
from idlewatt.collectors.packing import pack
from idlewatt.stream import records, topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.log import Record
from idlewatt.stream.opening import open_appender
from idlewatt.stream.records import GpuRow
from idlewatt.stream.settings import Settings
from idlewatt.stream.spool import Spool
from idlewatt.stream.spool_frames import WaitingMessage

README = Path(__file__).parent.parent / "README.md"
LITELLM_PAGE = (Path(__file__).parent / "testdata/gateways/litellm/1.106/metrics.prom").read_bytes()
VLLM_PAGE = (Path(__file__).parent / "testdata/engines/vllm/0.33/metrics.prom").read_bytes()


def examine(tmp_path: Path, env: dict[str, str] | None = None) -> tuple[int, dict[str, list[str]]]:
    """The exit code, and the lines by part; settings that are sound except for `env`."""
    sound = {
        "IDLEWATT_COLLECT__GPU": "none",
        "IDLEWATT_LOG__PATH": str(tmp_path / "log.db"),
        "IDLEWATT_PORT": "0",
    }
    result = idlewatt("doctor", env=sound | (env or {}))
    assert result.stderr == ""
    parts: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        level, part, seen = line.split(maxsplit=2)
        parts.setdefault(part, []).append(f"{level} {seen}")
    return result.returncode, parts


def engine(url: str) -> dict[str, str]:
    return {"IDLEWATT_COLLECT__ENGINE": f'[{{url = "{url}", name = "chat-0"}}]'}


def test_a_sound_box_is_all_ok(tmp_path: Path) -> None:
    """Nothing wrong is exit code 0, a line for each part, and no trace left behind."""
    with loopback_http.serving(loopback_http.says(loopback_http.page(VLLM_PAGE))) as server:
        code, parts = examine(tmp_path, engine(server.url))
    assert code == 0
    assert list(parts) == ["config", "gpu", "engine", "log", "clock", "port"]
    assert all(line.startswith("ok ") for lines in parts.values() for line in lines)
    assert "chat-0 serves " in parts["engine"][0]
    assert list(tmp_path.iterdir()) == []


def test_an_engine_in_a_pool_without_gpus_is_told(tmp_path: Path) -> None:
    """Its tokens would stand on no joules, and the GPUs it holds would be another's."""
    env = {"IDLEWATT_COLLECT__POOL": "chat"}
    with loopback_http.serving(loopback_http.says(loopback_http.page(VLLM_PAGE))) as server:
        for pool, gpu, level in (
            ("caht", "simulated", "warn"),
            ("chat", "simulated", "ok"),
            ("caht", "none", "ok"),
        ):
            env["IDLEWATT_COLLECT__GPU"] = gpu
            env["IDLEWATT_COLLECT__ENGINE"] = f'[{{url = "{server.url}", pool = "{pool}"}}]'
            code, parts = examine(tmp_path, env)
            assert code == 0
            assert parts["engine"][0].startswith(level)
            assert ("in pool caht, this node's GPUs are in chat" in parts["engine"][0]) is (level == "warn")


def test_two_sources_of_one_name_fail(tmp_path: Path) -> None:
    """`idlewatt collect` would not start with them, and both answer."""
    with loopback_http.serving(loopback_http.says(loopback_http.page(VLLM_PAGE))) as server:
        twice = f'[{{url = "{server.url}"}}, {{url = "{server.url}"}}]'
        code, parts = examine(tmp_path, {"IDLEWATT_COLLECT__ENGINE": twice})
    assert code == 2
    assert "FAIL two sources are called" in parts["config"][1]
    assert [line.split()[0] for line in parts["engine"]] == ["ok", "ok"]


def test_a_full_disk_is_found(small_disk: SmallDisk, tmp_path: Path) -> None:
    """An empty file can be made there; a log cannot go on."""
    small_disk.fill()
    code, parts = examine(tmp_path, {"IDLEWATT_LOG__PATH": str(small_disk.folder / "log.db")})
    assert code == 3
    assert "No space left" in parts["log"][0]
    assert "make room" in parts["log"][0]


def test_wrong_settings_are_all_told(tmp_path: Path) -> None:
    """Every fault of the configuration is a line; the rest cannot be looked at."""
    code, parts = examine(tmp_path, {"IDLEWATT_PORT": "x", "IDLEWATT_PROT": "1"})
    assert code == 2
    assert list(parts) == ["config"]
    assert len(parts["config"]) == 2
    assert all(line.startswith("FAIL environment: ") for line in parts["config"])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (loopback_http.page(b"<html>hello</html>", "Content-Type: text/html"), "FAIL chat-0: "),
        (loopback_http.page(b"", status="500 Internal Server Error"), "FAIL chat-0: http_status"),
        (loopback_http.page(b"python_info 1\n"), "FAIL chat-0: no_known_series"),
    ],
    ids=["html", "error", "other_exporter"],
)
def test_an_engine_that_tells_nothing_fails(tmp_path: Path, answer: bytes, told: str) -> None:
    """An engine must answer with series we know."""
    with loopback_http.serving(loopback_http.says(answer)) as server:
        code, parts = examine(tmp_path, engine(server.url))
    assert code == 3
    assert parts["engine"][0].startswith(told)


def test_the_book_is_looked_at(tmp_path: Path) -> None:
    """A book that would be refused is told with its fault before anything starts, and ends as it would end `run`."""
    book = tmp_path / "book.toml"
    price = '[[price]]\nmodel = "*"\ninput = 0\noutput = {}\n'
    whole = "what takes the whole book, such as currency, tiers, tariff and `within`, is checked once this is mended"
    for output, code, *told in (
        ("1", 0, f"ok {book}: 1 prices and 0 budgets in USD"),
        (
            "-1",
            2,
            f"FAIL {book}: [[price]] number 1 output must be 0 to 1000000000; it is -1",
            f"FAIL {book}: {whole}",
        ),
    ):
        book.write_text(price.format(output))
        found, parts = examine(tmp_path, {"IDLEWATT_ECONOMY__BOOK": str(book)})
        assert found == code
        assert parts["book"] == told
    book.write_text("")
    found, parts = examine(tmp_path, {"IDLEWATT_ECONOMY__BOOK": str(book)})
    assert (found, "the file is empty" in parts["book"][0]) == (2, True)
    book.unlink()
    assert examine(tmp_path, {"IDLEWATT_ECONOMY__BOOK": str(book)})[0] == 2


def test_an_unknown_server_kind_fails(tmp_path: Path) -> None:
    """A kind nobody has written is told with the kinds there are."""
    env = {"IDLEWATT_COLLECT__ENGINE": '[{url = "http://127.0.0.1:1/metrics", server = "vlm"}]'}
    code, parts = examine(tmp_path, env)
    assert code == 3
    assert "Did you mean 'vllm'?" in parts["engine"][0]


def test_a_gateway_is_looked_at(tmp_path: Path) -> None:
    """The counters of a gateway are counted, and those that no rule gives a name; one that asks for a key fails."""
    env = {"IDLEWATT_COLLECT__GATEWAY": '[{url = "URL", name = "gate"}]'}
    with loopback_http.serving(loopback_http.says(loopback_http.page(LITELLM_PAGE))) as server:
        code, parts = examine(tmp_path, {name: text.replace("URL", server.url) for name, text in env.items()})
        assert code == 0
        assert re.match(
            r"warn \S+:gate has 4 counters, 3 of a consumer with a name: name ", parts["gateway"][0]
        )
        server.answer = loopback_http.says(loopback_http.page(b"", status="401 Unauthorized"))
        code, parts = examine(tmp_path, {name: text.replace("URL", server.url) for name, text in env.items()})
        assert code == 3
        assert re.match(r"FAIL \S+:gate: http_status", parts["gateway"][0])
        assert "token_file" in parts["gateway"][0]


@pytest.mark.nvml
@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("driver 580.1\ngpus 2", 0, "ok NVIDIA driver 580.1 shows 2 GPUs"),
        ("return nvmlInitWithFlags 18", 3, "FAIL NVIDIA driver: driver_mismatch"),
    ],
    ids=["sound", "mismatch"],
)
def test_the_driver_is_looked_at(
    tmp_path: Path, nvml_library: Callable[..., Path], script: str, code: int, told: str
) -> None:
    """With collect.gpu = "nvml" the driver library, its version and its GPUs are told."""
    nvml = NvmlScript(nvml_library(), tmp_path / "script")
    nvml.write(script)
    found, parts = examine(tmp_path, nvml.environment | {"IDLEWATT_COLLECT__GPU": "nvml"})
    assert parts["gpu"][0].startswith(told)
    assert found == code


def test_a_log_file_that_cannot_be_fails(tmp_path: Path) -> None:
    """A folder that is not there, and a file of another kind, are told."""
    other = tmp_path / "notes.txt"
    other.write_text("dear diary, this is no database " * 100)
    for path in (tmp_path / "no" / "log.db", other):
        code, parts = examine(tmp_path, {"IDLEWATT_LOG__PATH": str(path)})
        assert code == 3
        assert parts["log"][0].startswith("FAIL ")
        assert str(path) in parts["log"][0]


def test_a_port_of_a_stranger_fails_and_our_own_is_a_warning(tmp_path: Path) -> None:
    """A port taken by something else is a fault; by a running Idlewatt it is none."""
    with taken_port() as held:
        code, parts = examine(tmp_path, {"IDLEWATT_PORT": str(held.getsockname()[1])})
    assert code == 3
    assert parts["port"][0].startswith("FAIL ")
    env = {"IDLEWATT_COLLECT__GPU": "simulated", "IDLEWATT_LOG__PATH": str(tmp_path / "other.db")}
    with serving("collect", log=tmp_path / "log.txt", env=env) as command:
        port = command.url.rpartition(":")[2].partition("/")[0]
        code, parts = examine(tmp_path, {"IDLEWATT_PORT": port})
    assert code == 0
    assert parts["port"] == [f"warn an Idlewatt serves http://127.0.0.1:{port}/metrics already"]


@pytest.mark.kafka
def test_kafka_and_the_clocks_of_senders_are_looked_at(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    """Topics that are missing are a warning; a sender whose clock runs ahead of the grace fails, by name."""
    settings = kafka_broker.settings()
    env = {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": settings.log.bootstrap_servers,
        "IDLEWATT_LOG__PARTITIONS": str(settings.log.partitions),
        "IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool"),
        "IDLEWATT_COLLECT__SPOOL_MAX_BYTES": str(1 << 30),
    }
    with kafka_broker.admin() as admin:
        present = sorted(set(admin.list_topics()) & set(topics.ALL))
        if present:
            admin.delete_topics(present)
    code, parts = examine(tmp_path, env)
    assert code == 0
    assert "lacks idlewatt.engine" in parts["log"][0]
    assert parts["clock"][0].startswith("warn no rows in Kafka yet")
    assert parts["spool"] == [f"ok {tmp_path / 'spool'} can hold 1,073.7 MB, nothing waits in it"]

    kafka_broker.fresh_topics(settings)
    appender = open_appender(settings, "test")
    try:
        for node, ahead_ms in (("sound-1", 0), ("fast-1", 60_000)):
            row = GpuRow(
                ts_ms=time.time_ns() // 1_000_000 + ahead_ms,
                site="s",
                pool=node,
                node=node,
                gpu_uuid="GPU-1",
                product="H100",
            )
            key = topics.pool_key("s", node)
            appender.append([Record(topics.GPU, key, encode_rows(records.GPU, [row]))])
            code, parts = examine(tmp_path, env)
            assert parts["log"] == [
                f"ok Kafka answers at {settings.log.bootstrap_servers} and has all {len(topics.ALL)} topics"
            ]
            if ahead_ms:
                assert code == 3
                # less what the row took to arrive
                assert re.search(r"the clock of fast-1 is (60\.0|5\d\.\d) s ahead", parts["clock"][0])
                assert parts["clock"][0].startswith("FAIL ")
            else:
                assert code == 0
                assert parts["clock"][0].startswith("ok ")
    finally:
        appender.close()


@pytest.mark.kafka
def test_a_host_of_a_processor_is_sound_as_the_readme_sets_it(fresh_topics: Settings, tmp_path: Path) -> None:
    """It has no GPU, and listens where a Prometheus elsewhere reaches it."""
    chapter = README.read_text().partition("## Go to Kafka")[2].partition("\n## ")[0]
    told = re.findall(r'`(collect|serve)\.(\w+) = "([^"]*)"`', chapter)
    env = {f"IDLEWATT_{section}__{key}".upper(): value for section, key, value in told}
    env |= {
        "IDLEWATT_PORT": "0",
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": fresh_topics.log.bootstrap_servers,
        "IDLEWATT_COLLECT__SPOOL_PATH": str(tmp_path / "spool"),
    }
    result = idlewatt("doctor", env=env)
    assert result.returncode == 0, result.stdout
    assert load_settings(None, env).serve.host == "0.0.0.0"


def test_a_kafka_that_is_away_fails(tmp_path: Path) -> None:
    """A broker that does not answer is a fault that names its address."""
    env = {"IDLEWATT_LOG__KIND": "kafka", "IDLEWATT_LOG__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    code, parts = examine(tmp_path, env)
    assert code == 3
    assert parts["log"][0].startswith("FAIL ")
    assert "127.0.0.1:1" in parts["log"][0]


def spooling(spool: Path, max_bytes: int = 1 << 20) -> str:
    """The line on the spool."""
    collect = {"spool_path": str(spool), "spool_max_bytes": max_bytes}
    return str(spool_finding(Settings.model_validate({"collect": collect})))


def test_a_spool_that_waits_is_told(tmp_path: Path) -> None:
    """An empty one, and one that is not there yet, are sound and left as they are; a backlog is a warning."""
    folder = tmp_path / "spool"
    assert spooling(folder) == f"ok    spool    {folder} can hold 1.0 MB, nothing waits in it"
    assert not folder.exists()
    spool = Spool(folder, 1 << 20)
    try:
        row = GpuRow(ts_ms=1, site="s", pool="p", node="n", gpu_uuid="GPU-1", product="x")
        assert spool.append([m for m in pack([row] * 100) if isinstance(m, WaitingMessage)]) == 1
        assert re.fullmatch(rf"warn  spool    0\.0 MB of 1\.0 MB wait in {folder}: its .*", spooling(folder))
    finally:
        spool.close()
    assert "no collector sends them: start idlewatt collect" in spooling(folder)
    assert len(list(folder.glob("*.spool"))) == 1


def test_a_spool_without_room_is_told(small_disk: SmallDisk) -> None:
    """A disk that is smaller than what the spool may take is a warning, with how much it lacks."""
    line = spooling(small_disk.folder / "spool", 10**15)
    assert re.fullmatch(
        r"warn  spool    the disk of .* lacks \S+ MB for the 1,000,000,000\.0 MB it may take: .*", line
    )


def test_a_spool_that_cannot_be_fails(tmp_path: Path) -> None:
    """A folder whose parent is missing, or that is a file, names the setting."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "spool", tmp_path / "file"):
        assert spooling(path).startswith(f"FAIL  spool    collect.spool_path: {path} cannot be used: ")
