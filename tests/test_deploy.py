"""deploy/ and compose.yaml: generated files are what the code writes, and what is mounted and started exists."""

import ipaddress
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from kafka_broker import KAFKA_VERSION

from idlewatt.cli.book_sample import SAMPLE_BOOK
from idlewatt.cli.config import load_settings
from idlewatt.cli.main import main
from idlewatt.collectors.simulated.plant import DEFAULT_PLANT
from idlewatt.dashboards import provisioning
from idlewatt.dashboards.writing import generated_files, write_all
from idlewatt.processors.economy.book_file import read_book
from idlewatt.stream.errors import IdlewattError

ROOT: Final = Path(__file__).parent.parent
DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
DOCKERFILE: Final = (DEPLOY / "Dockerfile").read_text()
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
WRITTEN_BY_HAND: Final = {
    "book/book.toml",
    "Dockerfile",
    "Dockerfile.dockerignore",
    "idlewatt.collect-gpu.toml",
    "idlewatt.collect-simulated.toml",
    "idlewatt.process.toml",
}


def test_deploy_is_what_the_code_writes(tmp_path: Path) -> None:
    """The committed files are a fresh output of the code, and no stale file lies beside them."""
    written = write_all(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in written} == set(generated_files())
    for path in written:
        committed = DEPLOY / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), (
            f"{committed} is not what the code writes: run idlewatt dashboards --out deploy"
        )
    present = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    assert present == set(generated_files()) | WRITTEN_BY_HAND


def test_the_command_writes_them(tmp_path: Path) -> None:
    """`idlewatt dashboards --out DIR` writes every file into a folder it makes."""
    folder = tmp_path / "new" / "folder"
    assert main(["dashboards", "--out", str(folder), "--target", "127.0.0.1:9477", "--target", "b:1"]) == 0
    for name in generated_files():
        assert (folder / name).is_file()
    scraped = yaml.safe_load((folder / "prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9477", "b:1"]}]
    assert "dns_sd_configs" not in job
    assert "alerting" not in scraped


def test_collectors_are_found_by_a_name(tmp_path: Path) -> None:
    """`--collectors-dns NAME` has every address of the name read as well: nobody lists hundreds of collectors."""
    target = ["--target", "p:9477", "--collectors-dns", "collectors.example.com"]
    assert main(["dashboards", "--out", str(tmp_path), *target]) == 0
    (job,) = yaml.safe_load((tmp_path / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["p:9477"]}]
    (found,) = job["dns_sd_configs"]
    assert (found["names"], found["type"], found["port"]) == (["collectors.example.com"], "A", 9477)


def test_collectors_alone_are_refused(tmp_path: Path) -> None:
    """A name of collectors without a processor would leave Prometheus without figures: nothing is written."""
    with pytest.raises(IdlewattError, match=r"--collectors-dns needs a --target"):
        write_all(tmp_path / "out", collectors_dns="collectors.example.com")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error says which path and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(IdlewattError, match=r"cannot write .*file.*--out"):
        write_all(tmp_path / "file")


@pytest.mark.prometheus
def test_prometheus_takes_its_configuration(prometheus_tools: None) -> None:
    """promtool finds nothing in the committed prometheus.yml and the rules it loads."""
    done = subprocess.run(
        ["promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


@pytest.mark.prometheus
def test_alertmanager_takes_its_configuration(prometheus_tools: None) -> None:
    """amtool finds nothing in the committed alertmanager.yml."""
    if not shutil.which("amtool"):
        pytest.skip("needs amtool: sudo apt-get install prometheus-alertmanager")
    done = subprocess.run(
        ["amtool", "check-config", DEPLOY / "alertmanager" / "alertmanager.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_s_parts_know_each_other() -> None:
    """Data sources have fixed uids that name each other, and dashboards lie where Grafana is told to look."""
    sources = {s["type"]: s for s in yaml.safe_load(provisioning.datasources_yaml())["datasources"]}
    assert sources["prometheus"]["jsonData"]["alertmanagerUid"] == sources["alertmanager"]["uid"]
    assert sources["prometheus"]["isDefault"]
    (provider,) = yaml.safe_load(provisioning.dashboard_provider_yaml())["providers"]
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / "dashboards" / Path(home).name).is_file()
    for source in sources.values():
        host = source["url"].removeprefix("http://").split(":")[0]
        assert host in SERVICES


def test_prometheus_scrapes_and_alerts_services_that_exist() -> None:
    """Every address in prometheus.yml is a service of compose.yaml."""
    config = yaml.safe_load(provisioning.prometheus_yaml())
    (scrape,) = config["scrape_configs"]
    hosts = [target.split(":")[0] for target in scrape["static_configs"][0]["targets"]]
    assert hosts == ["process-1", "process-2"]
    assert [name for sd in scrape["dns_sd_configs"] for name in sd["names"]] == ["collect"]
    (alertmanagers,) = config["alerting"]["alertmanagers"]
    assert {*hosts, "collect", alertmanagers["static_configs"][0]["targets"][0].split(":")[0]} <= set(
        SERVICES
    )
    # the collector with GPUs answers to the same name
    assert SERVICES["collect-gpu"]["networks"]["default"]["aliases"] == ["collect"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_checked_and_private(name: str) -> None:
    """Images have a full version, health is checked, ports are open to this machine only."""
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
    assert service["healthcheck"]["test"][0] == "CMD"
    for port in service.get("ports", ()):
        address, outside, inside = port.split(":")
        assert ipaddress.ip_address(address).is_loopback
        assert outside == inside


@pytest.mark.parametrize("name", SERVICES)
def test_every_mounted_path_exists(name: str) -> None:
    """What a service mounts is in the checkout and read-only, or a volume that is declared."""
    for mount in SERVICES[name].get("volumes", ()):
        source, target, *mode = mount.split(":")
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).exists(), f"{name} mounts {source}, which is not there"
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", [n for n in SERVICES if n.startswith(("collect", "process"))])
def test_idlewatt_services_start_commands_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The subcommand exists, takes --config, and loads the file that is mounted there."""
    service = SERVICES[name]
    program, command, option, path = service["command"]
    assert (program, option) == ("idlewatt", "--config")
    assert program in PROJECT["project"]["scripts"]
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--config" in capsys.readouterr().out

    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in service["volumes"]}
    settings = load_settings(ROOT / mounts[path], {})
    assert settings.log.kind == "kafka"
    assert settings.log.bootstrap_servers == "kafka:9092"
    assert settings.serve.host == "0.0.0.0"
    assert settings.serve.port == provisioning.PORT
    assert f":{settings.serve.port}/healthz" in service["healthcheck"]["test"][-1]
    # /v1 is off without it
    assert "IDLEWATT_SERVE__TOKEN" in service["environment"]
    # of a host without GPUs, `idlewatt doctor` goes by it
    gpus = {"collect-gpu": "nvml", "collect": "simulated"}
    assert settings.collect.gpu == (gpus[name] if command == "collect" else "none")


def test_simulated_figures_have_their_own_site_and_prices() -> None:
    """Nobody adds simulated watts to real ones; every simulated model has a price, and no price fits any model."""
    simulated = load_settings(DEPLOY / "idlewatt.collect-simulated.toml", {})
    real = load_settings(DEPLOY / "idlewatt.collect-gpu.toml", {})
    assert simulated.site != real.site
    process = next(
        service for service in SERVICES.values() if service.get("command", [""])[1:2] == ["process"]
    )
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in process["volumes"]}
    book = Path(load_settings(DEPLOY / "idlewatt.process.toml", {}).economy.book or "")
    path = ROOT / mounts[str(book.parent)] / book.name
    # what `idlewatt config --book` prints
    assert path.read_text() == SAMPLE_BOOK
    priced = {price.model for price in read_book(path).price}
    made = {
        holding.deployment.model_name
        for node in DEFAULT_PLANT.nodes
        for holding in node.holdings
        if holding.deployment
    }
    assert made <= priced
    assert not any(set(model) & set("*?") for model in priced)


def test_two_processors_share_the_work() -> None:
    """Two processes of one consumer group start once Kafka is healthy."""
    processors = [s for s in SERVICES.values() if s.get("command", [""])[1:2] == ["process"]]
    assert len(processors) == 2
    assert processors[0] == processors[1]
    assert processors[0]["depends_on"] == {"kafka": {"condition": "service_healthy"}}


def test_gpus_are_asked_for_in_their_profile_only() -> None:
    """`docker compose up` needs no GPU; the profile reserves them all and sees the host's processes."""
    for name, service in SERVICES.items():
        assert ("deploy" in service) == (name == "collect-gpu")
        assert ("profiles" in service) == (name == "collect-gpu")
    gpu = SERVICES["collect-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu", "utility"]}
    assert gpu["profiles"] == ["gpu"]
    assert gpu["pid"] == "host"


def test_kafka_is_the_one_the_tests_run() -> None:
    """Same version as the tests' broker; a single node can hold no second replica of anything."""
    kafka = SERVICES["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA_VERSION}"
    for name, value in kafka["environment"].items():
        if "REPLICATION_FACTOR" in name or "MIN_ISR" in name:
            assert value == "1", name
    assert kafka["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    advertised = dict(
        listener.split("://") for listener in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert advertised["NETWORK"] == "kafka:9092"
    assert f"{advertised['MACHINE']}:19092" in kafka["ports"]


def test_the_image_holds_every_package() -> None:
    """The Dockerfile's base is pinned, and it copies whatever the wheel is made of."""
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"python:3.13.5-slim-bookworm"}
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for word in line.split()}
    folders = set(PROJECT["tool"]["setuptools"]["package-dir"].values())
    files = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert copied == folders | files
    for name in copied:
        assert (ROOT / name).exists(), f"the Dockerfile copies {name}, which is not there"
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert SERVICES["collect"]["image"] == f"idlewatt:{PROJECT['project']['version']}"
