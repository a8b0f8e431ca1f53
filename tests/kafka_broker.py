"""A real Apache Kafka for tests: KRaft nodes on the loopback, one or several, their own cluster id, no Docker needed.

The jars come from Maven Central once and stay in .cache/kafka.
"""

import base64
import ctypes
import fcntl
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    NewPartitions,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from idlewatt.stream import topics
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.kafka_clients import KafkaError, open_admin
from idlewatt.stream.kafka_topics import create_topics
from idlewatt.stream.settings import Settings

KAFKA_VERSION: Final = "4.1.0"
_IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"
_CACHE: Final = Path(__file__).parent.parent / ".cache" / "kafka"
_START_S: Final = 180.0
_STOP_S: Final = 20.0
_APT: Final = ("apt-get", "install", "-y", "--no-install-recommends", "openjdk-17-jre-headless", "maven")

USER, PASSWORD = "limited", "a password"
_JAAS: Final = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
# below those that Linux, macOS and Windows give to clients
_SERVER_PORTS: Final = range(15_000, 32_000)
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>idlewatt.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


class Cluster:
    """What the brokers of a cluster share: its id, and the ports of all."""

    def __init__(self, brokers: int = 1) -> None:
        self.id = _base64_uuid()
        ports = _free_ports(3 * brokers)
        self.ports, self.controller_ports = ports[:brokers], ports[brokers : 2 * brokers]
        self.user_ports = ports[2 * brokers :]


class KafkaBroker:
    """One broker that belongs to this test session; stop() and start() make an outage, the data stays."""

    def __init__(
        self, folder: Path, command: Sequence[str] | None, cluster: "Cluster", number: int = 1
    ) -> None:
        """`command` is how java is started with the jars; None runs the image in Docker."""
        self.folder = folder
        self.log_path = folder / "kafka.log"
        self.cluster_id = cluster.id
        self.number = number
        # all of the cluster's, as users give them
        self.bootstrap_servers = ",".join(f"127.0.0.1:{port}" for port in cluster.ports)
        self.copies = len(cluster.ports)
        self._port = cluster.ports[number - 1]
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._name = f"idlewatt-{uuid.uuid4().hex[:12]}"
        port, controller_port = self._port, cluster.controller_ports[number - 1]
        self.user_port = cluster.user_ports[number - 1]
        voters = (f"{n}@127.0.0.1:{other}" for n, other in enumerate(cluster.controller_ports, 1))
        copies, most = str(self.copies), str(self.copies // 2 + 1)
        data = str(folder / "data") if command else "/var/lib/kafka/data"
        self._properties = {
            "process.roles": "broker,controller",
            "node.id": str(number),
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},"
            f"USERS://127.0.0.1:{self.user_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},USERS://127.0.0.1:{self.user_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_PLAINTEXT",
            # who comes without a name may do all, and a user what it is granted
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.users.plain.sasl.jaas.config": _JAAS,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": data,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": most,
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": most,
            # a broker that is gone loses what it leads to others this soon
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": "16777216",
            "log.cleaner.backoff.ms": "1000",
        }

    def settings(self, **sections: Any) -> Settings:
        """Settings with this broker as the log, four partitions and a consumer group of their own."""
        log = {
            "kind": "kafka",
            "bootstrap_servers": self.bootstrap_servers,
            "partitions": 4,
            "replication_factor": self.copies,
        }
        process = {"group": f"test-{uuid.uuid4().hex[:12]}"}
        return Settings.model_validate(
            {
                **sections,
                "log": log | sections.get("log", {}),
                "process": process | sections.get("process", {}),
            }
        )

    @contextmanager
    def granted(self, rights: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
        """Settings of [log] for a user who has these rights alone: operations by kind and name, such as "TOPIC x"."""
        acls = [
            ACL(
                f"User:{USER}", "*", ACLOperation[right], ACLPermissionType.ALLOW, ResourcePattern(kind, name)
            )
            for resource, granted in rights.items()
            for kind, name in [(ResourceType[resource.split()[0]], resource.split()[1])]
            for right in granted
        ]
        all_of_them = ACLFilter(
            None,
            None,
            ACLOperation.ANY,
            ACLPermissionType.ANY,
            ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY),
        )

        def are_granted(count: int) -> bool:
            return len(admin.describe_acls(all_of_them)[0]) == count

        with self.admin() as admin:
            admin.create_acls(acls)
            _wait_until(lambda: are_granted(len(acls)), "the rights are granted")
            try:
                yield {
                    "bootstrap_servers": f"127.0.0.1:{self.user_port}",
                    "security_protocol": "SASL_PLAINTEXT",
                    "sasl_mechanism": "PLAIN",
                    "sasl_username": USER,
                    "sasl_password": PASSWORD,
                }
            finally:
                admin.delete_acls([all_of_them])
                _wait_until(lambda: are_granted(0), "the rights are taken back")

    @contextmanager
    def denying(self, kind: ResourceType, prefix: str) -> Iterator[None]:
        """Meanwhile the user of granted() has no right to resources whose name begins so."""
        resource = ResourcePattern(kind, prefix, ACLResourcePatternType.PREFIXED)
        acl = ACL(f"User:{USER}", "*", ACLOperation.ALL, ACLPermissionType.DENY, resource)
        with self.admin() as admin:
            admin.create_acls([acl])
            _wait_until(lambda: admin.describe_acls(acl)[0], "the broker knows of it")
            yield
            admin.delete_acls([acl])

    def raise_partitions(self, partitions: int, *names: str) -> None:
        """As kafka-topics.sh --alter --partitions does; returns when the broker shows them."""
        with self.admin() as admin:
            admin.create_partitions({name: NewPartitions(partitions) for name in names})
            _wait_until(
                lambda: all(len(t["partitions"]) == partitions for t in admin.describe_topics(list(names))),
                "there are more partitions",
            )

    def fresh_topics(self, settings: Settings) -> Settings:
        """Make all Idlewatt topics anew and empty, with the partitions of the settings; returns them."""
        with self.admin() as admin:
            present = set(admin.list_topics()) & set(topics.ALL)
            if present:
                admin.delete_topics(sorted(present))
                _wait_until(lambda: not set(admin.list_topics()) & present, "the topics are deleted")
        create_topics(settings.log)
        return settings

    def admin(self) -> Any:
        """An admin client of kafka-python, a context manager."""
        return open_admin(self.settings().log)

    def prepare(self) -> None:
        """Write the configuration and format the data folder with this broker's own cluster id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._command is None:
            return
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties.items()))
        with self.log_path.open("ab") as log:
            subprocess.run(
                [
                    *self._command,
                    "kafka.tools.StorageTool",
                    "format",
                    "-t",
                    self.cluster_id,
                    "-c",
                    properties,
                ],
                check=True,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Return when the process that was started here answers with the cluster id that was formatted."""
        self.launch()
        _wait_until(self.answers, f"Kafka answers (its log: {self.log_path})", _START_S)

    def launch(self) -> None:
        """Start the process and return; does nothing while there is one."""
        if self._process is not None:
            # a second one on the same folder would take this one's data and fail on its ports
            return
        if self._command is None:
            environment = [
                f"--env=KAFKA_{key.upper().replace('.', '_')}={value}"
                for key, value in self._properties.items()
            ]
            command = [
                *("docker", "run", "--rm", "--network=host", f"--name={self._name}"),
                *(f"--volume={self._name}:/var/lib/kafka/data", f"--env=CLUSTER_ID={self.cluster_id}"),
                *environment,
                _IMAGE,
            ]
        else:
            command = [*self._command, "kafka.Kafka", str(self.folder / "server.properties")]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL
            )

    def stop(self, within_s: float = _STOP_S) -> None:
        """Stop the broker; clients see refused connections until start()."""
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the broker by SIGKILL; launch() starts it again on the data it left. Not for Docker."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process, self._frozen = None, False

    def freeze(self) -> None:
        """Stop answering without closing connections, until thaw()."""
        assert self._process is not None
        if self._command is None:
            subprocess.run(["docker", "pause", self._name], check=True, capture_output=True)
        else:
            self._process.send_signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """Answer again; does nothing to a broker that is not frozen."""
        if not self._frozen:
            return
        assert self._process is not None
        if self._command is None:
            subprocess.run(["docker", "unpause", self._name], check=True, capture_output=True)
        else:
            self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    @property
    def listens(self) -> bool:
        """Whether it takes connections: at once true or false, where answers() waits."""
        if self._frozen:
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
            return True
        return False

    def remove(self) -> None:
        """Stop for good; the log stays."""
        if self._command is None:
            self.stop()
            subprocess.run(
                ["docker", "volume", "rm", "--force", self._name], check=False, capture_output=True
            )
        elif self._process is not None:
            # the last of several would wait for the others until its time is over
            self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def answers(self) -> bool:
        """Whether the process that was started here answers; fails if it has ended or another one does."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(
                f"Kafka ended with {self._process.returncode}:\n{self.log_path.read_text()[-3000:]}"
            )
        try:
            with self.admin() as admin:
                found = admin.describe_cluster()
        except (LogUnavailableError, KafkaError):
            return False
        assert found["cluster_id"] == self.cluster_id, (
            f"another Kafka ({found['cluster_id']}) answers at {self.bootstrap_servers}"
        )
        # the others say so of one that does not listen yet
        return self.listens and any(
            b["broker_id"] == self.number and not b["is_fenced"] for b in found["brokers"]
        )


def cluster_of(folder: Path, command: Sequence[str], brokers: int) -> list[KafkaBroker]:
    """So many brokers of one cluster; see start_all()."""
    cluster = Cluster(brokers)
    return [KafkaBroker(folder / f"kafka-{n}", command, cluster, n) for n in range(1, brokers + 1)]


def start_all(brokers: Sequence[KafkaBroker]) -> None:
    """Return when each of them answers; none does before most of them run."""
    for broker in brokers:
        broker.prepare()
        broker.launch()
    for broker in brokers:
        broker.start()


@pytest.fixture(scope="session")
def kafka_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """The broker of this session. Tests take kafka_broker, which is running at their start."""
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), java_command(), Cluster())
    broker.prepare()
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()


@pytest.fixture
def kafka_broker(kafka_session: KafkaBroker) -> KafkaBroker:
    """A running Apache Kafka."""
    if kafka_session._process is None:  # a test that stopped it has failed
        kafka_session.start()
    kafka_session.thaw()
    return kafka_session


@pytest.fixture
def fresh_topics(kafka_broker: KafkaBroker) -> Settings:
    """Settings for the broker, its Idlewatt topics new and empty."""
    return kafka_broker.fresh_topics(kafka_broker.settings())


def java_command() -> list[str] | None:
    """How to start a main class of Kafka; None if it must be Docker. Skips when there is no way."""
    if not _has_java() and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], list(_APT)):
            subprocess.run(command, check=False, capture_output=True, timeout=600)
    if _has_java():
        with _cache_for_itself():
            libs = _jars()
            return _java(libs, f"-XX:SharedArchiveFile={_classes(libs)}")
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0
    ):
        return None
    pytest.skip("needs Java 17 and Maven: sudo apt-get install openjdk-17-jre-headless maven")


def _has_java() -> bool:
    if not (shutil.which("java") and shutil.which("mvn")):
        return False
    version = subprocess.run(
        ["java", "-XshowSettings:properties", "-version"], check=False, capture_output=True, text=True
    ).stderr
    found = [line.split("=")[1] for line in version.splitlines() if "java.specification.version =" in line]
    return bool(found) and found[0].strip().isdigit() and int(found[0]) >= 17


@contextmanager
def _cache_for_itself() -> Iterator[None]:
    """Two test runs in one checkout fill it once."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _java(libs: Path, *flags: str) -> list[str]:
    return [
        "java",
        *("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *flags),
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        *("-cp", f"{libs}/*"),
    ]


def _jars() -> Path:
    """The folder of Kafka's jars, filled at the first call on this machine."""
    # a clone may link to the cache of another, and Java takes archived classes only of jars by the same path
    libs = _CACHE.resolve() / f"libs-{KAFKA_VERSION}"
    if not libs.is_dir():
        (_CACHE / "pom.xml").write_text(_POM)
        partial = _CACHE / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        command = [
            "mvn",
            "--batch-mode",
            "--quiet",
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
        ]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={partial}"],
            check=False,
            cwd=_CACHE,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            pytest.fail(
                f"Maven could not get Kafka {KAFKA_VERSION}:\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
            )
        partial.rename(libs)
    return libs


def _classes(libs: Path) -> Path:
    """Kafka's classes as Java has them in memory, kept by a first broker: others start with half the work.

    Java starts without if it cannot use the file: it is another Java's, or empty as this one keeps none.
    """
    archive = libs.with_name(f"classes-{KAFKA_VERSION}.jsa")
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            kept = Path(folder) / "kept"
            broker = KafkaBroker(Path(folder), _java(libs, f"-XX:ArchiveClassesAtExit={kept}"), Cluster())
            broker.prepare()
            broker.start()
            broker.fresh_topics(broker.settings())
            process = broker._process
            broker.stop(_START_S)
            if process and process.returncode < 0:
                # it was killed, and half a file would end every Java that takes it
                kept.unlink(missing_ok=True)
            kept.touch()
            kept.rename(archive)
    return archive


def _base64_uuid() -> str:
    """A cluster id as Kafka writes it: 22 characters; one that begins with a dash reads as an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _free_ports(count: int) -> list[int]:
    """None that the system gives to a client of whatever else runs here: a broker that is away wants its own back."""
    with ExitStack() as held:
        ports: list[int] = []
        for port in random.SystemRandom().sample(_SERVER_PORTS, len(_SERVER_PORTS)):
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                break
    return ports


def die_with_parent() -> None:
    """For preexec_fn: the child ends when the thread that starts it does."""
    # a test run that is killed leaves no broker behind
    if sys.platform == "linux" and platform.python_implementation() == "CPython":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait_until(condition: Any, what: str, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"within {timeout_s:.0f} s it did not come true that {what}")
        time.sleep(0.05)
