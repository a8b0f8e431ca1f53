"""Every setting there is: its name, unit, default, and the sentence that documents it.

The sample file and docs/configuration.md are printed from this tree. How the file and the environment are
read stands in cli/config.py.
"""

import re
import socket
from collections import Counter
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# `accepts` says in words what a pattern asks for
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=120, pattern=r"^[^\s/\x00-\x1f][^/\x00-\x1f]*$"),
    Field(json_schema_extra={"accepts": "text of 1 to 120 characters with no / and no blank before it"}),
]
# the ids of MIG instances begin otherwise: their watts are those of the GPU, which is what is metered
GpuUuid = Annotated[
    str,
    StringConstraints(pattern=r"^GPU-[^\s/]+$"),
    Field(json_schema_extra={"accepts": 'UUIDs of GPUs as nvidia-smi -L shows them, "GPU-..."'}),
]
Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[^\s/]+(/\S*)?$"),
    Field(json_schema_extra={"accepts": "an address that begins with http:// or https://"}),
]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
# of a host, or of an IPv6 address in brackets, and its port
_SERVER: Final = re.compile(r"(?:[^\s/:\[\]]+|\[[^\s/\[\]]+\]):([0-9]{1,5})")
_KAFKA_PORT: Final = 9092


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Log(_Section):
    """Where the stream lives."""

    kind: Literal["embedded", "kafka"] = Field(
        "embedded", description="embedded: one SQLite file for one box. kafka: Apache Kafka for many."
    )
    path: str = Field(
        "idlewatt.db",
        description="File of the embedded log; of each stage one process runs on it. "
        "A relative path goes by the working directory, not by the configuration file.",
    )
    bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="Kafka brokers, host:port, separated by commas."
    )
    partitions: int = Field(
        12,
        ge=1,
        le=4096,
        description="Partitions of the topics Idlewatt creates: the most processors that can share the work.",
    )
    replication_factor: int = Field(
        1, ge=1, le=7, description="Replicas of the topics Idlewatt creates; 3 in production."
    )
    session_timeout_s: Annotated[float, Field(ge=1, le=1800)] = Field(
        20.0,
        description="A processor that Kafka has not heard from for this long loses its partitions to the others. "
        "Brokers take no less than 6 s unless they are told to.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT",
        description="How to talk to the brokers. What it does not use of ssl_* and sasl_* must be left out.",
    )
    ssl_cafile: str | None = Field(
        None, description="CA certificates of the brokers, PEM.", examples=["/etc/idlewatt/kafka-ca.pem"]
    )
    ssl_certfile: str | None = Field(
        None, description="Client certificate, PEM.", examples=["/etc/idlewatt/client.pem"]
    )
    ssl_keyfile: str | None = Field(
        None, description="Client key, PEM, without a pass phrase.", examples=["/etc/idlewatt/client.key"]
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="SASL mechanism.", examples=["SCRAM-SHA-512"]
    )
    sasl_username: str | None = Field(None, description="SASL user.", examples=["idlewatt"])
    sasl_password: str | None = Field(
        None,
        description="SASL password; better given as IDLEWATT_LOG__SASL_PASSWORD.",
        examples=["change me"],
    )

    @property
    def servers(self) -> list[str]:
        """Each HOST:PORT of bootstrap_servers."""
        named = [server.strip() for server in self.bootstrap_servers.split(",") if server.strip()]
        return [
            f"{server}:{_KAFKA_PORT}" if server.endswith("]") or ":" not in server else server
            for server in named
        ]

    @model_validator(mode="after")
    def _are_servers(self) -> "Log":
        for server in self.servers or [self.bootstrap_servers]:
            found = _SERVER.fullmatch(server)
            if self.kind == "kafka" and not (found and 0 < int(found[1]) < 1 << 16):
                raise ValueError(
                    "bootstrap_servers must be HOST:PORT of one or more brokers, separated by commas, "
                    f"without http:// and such; {server!r} is none"
                )
        return self

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> "Log":
        # kafka-python builds this error for SCRAM and never raises it
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_mechanism and self.sasl_username and self.sasl_password
        ):
            raise ValueError("security_protocol SASL_* needs sasl_mechanism, sasl_username and sasl_password")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Log":
        # rows would go in the clear, or as another, where somebody has seen to it that they do not
        if self.kind != "kafka":
            return self
        used = {
            "sasl_": self.security_protocol.startswith("SASL"),
            "ssl_": self.security_protocol.endswith("SSL"),
        }
        ignored = [
            name
            for prefix, is_used in used.items()
            for name in Log.model_fields
            if name.startswith(prefix) and not is_used and getattr(self, name)
        ]
        if ignored:
            raise ValueError(
                f"security_protocol {self.security_protocol} does not use {', '.join(ignored)}: "
                "set SASL_SSL, SASL_PLAINTEXT or SSL, or leave them out"
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self


class Engine(_Section):
    """One inference server to scrape."""

    url: Url = Field(description="Its metrics page.", examples=["http://127.0.0.1:8000/metrics"])
    server: str = Field("vllm", description="Server kind: a file in collectors/engines.")
    name: Name | None = Field(
        None,
        description="Name in the figures. Left out: host:port of the URL, with the node's name for a host that each node has, such as localhost.",
        examples=["chat-0"],
    )
    pool: Name | None = Field(
        None, description="Pool it serves in; collect.pool if left out.", examples=["chat"]
    )
    gpus: tuple[GpuUuid, ...] = Field(
        (),
        description="UUIDs of the GPUs it holds. Empty: the GPUs of this node that have a process and no other engine.",
    )


class Gateway(_Section):
    """One gateway that counts tokens by who asked for them."""

    url: Url = Field(description="Its metrics page.", examples=["http://127.0.0.1:4000/metrics/"])
    kind: str = Field("litellm", description="Gateway kind: a file in collectors/gateways.")
    name: Name | None = Field(
        None,
        description="Name in the figures; if left out, host:port of the URL. The node's name stands before either where the URL's "
        "host is one that each node has, such as localhost.",
        examples=["gateway-1"],
    )
    token_file: str | None = Field(
        None,
        description="File that holds the bearer token the page asks for; read at every reading.",
        examples=["/etc/idlewatt/gateway-token"],
    )


class Consumer(_Section):
    """Names who spent a gateway's tokens by one of its labels. Each name is given by the first entry that fits."""

    label: str = Field(description="Label of the gateway's counters.", examples=["team_alias"])
    match: str = Field("*", description="Value of the label, * and ? match.")
    function: Name | None = Field(
        None, description="Business function; {value} is the label's value.", examples=["support"]
    )
    team: Name | None = Field(None, description="Team, likewise.", examples=["growth"])
    agent_family: Name | None = Field(None, description="Family of agents, likewise.", examples=["{value}"])
    engineer: Name | None = Field(None, description="Person, likewise.", examples=["{value}"])
    tier: Name | None = Field(
        None, description="Tier of the price book that their tokens are sold at.", examples=["premium"]
    )
    model: Name | None = Field(
        None,
        description="Model as the engines name it, where the gateway names it otherwise.",
        examples=["{value}"],
    )

    @model_validator(mode="after")
    def _names_have_no_other_placeholder(self) -> "Consumer":
        for name in ("function", "team", "agent_family", "engineer", "tier", "model"):
            for other in set(re.findall(r"\{\w*\}", getattr(self, name) or "")) - {"{value}"}:
                raise ValueError(
                    f"{name} has {other}, which stands for nothing; {{value}} is the label's value"
                )
        return self


class Collect(_Section):
    """What is read on this node."""

    node: Name = Field(
        default_factory=socket.gethostname,
        description="Name of this node; the host's own name if left out.",
        examples=["gpu-node-1"],
    )
    pool: Name | None = Field(
        None, description="Pool of this node's GPUs; the node's name if left out.", examples=["chat"]
    )
    gpu: Literal["nvml", "simulated", "none"] = Field("nvml", description="Where GPU readings come from.")
    gpu_interval_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        1.0, description="Seconds between readings of the GPUs."
    )
    engine_interval_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        1.0, description="Seconds between readings of an engine."
    )
    gateway_interval_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        15.0, description="Seconds between readings of a gateway."
    )
    timeout_s: Annotated[float, Field(gt=0, le=60)] = Field(
        3.0, description="A reading that takes longer has failed."
    )
    send_interval_s: Annotated[float, Field(ge=0.05, le=60)] = Field(
        1.0,
        description="Rows are packed for this long into one message. With the slowest reading interval at most "
        "`process.grace_s`.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        16 * 1024 * 1024, description="A metrics page larger than this is refused."
    )
    spool_path: str = Field(
        "idlewatt-spool",
        description="Folder in which messages wait while Kafka is away, on a local disk. The embedded log needs none.",
    )
    spool_max_bytes: Annotated[int, Field(ge=1024 * 1024)] = Field(
        1024 * 1024 * 1024,
        description="Room for them; beyond it the oldest are dropped. 1 GiB holds about 6100 minutes of 8 GPUs and their engine, read once a second.",
    )
    engine: tuple[Engine, ...] = Field((), description="Inference servers on this node.")
    gateway: tuple[Gateway, ...] = Field((), description="Gateways that this node reads.")
    consumer: tuple[Consumer, ...] = Field((), description="Who spent the tokens that gateways count.")


class Yardstick(_Section):
    """A configured yield; the first entry that matches counts, and beats the learned one."""

    product: str = Field("*", description="GPU product, * and ? match.")
    model: str = Field(
        "*",
        description="Model name, * and ? match; an idle GPU without a model matches * only, else it goes by the pool's "
        "main model.",
    )
    tokens_per_joule: Annotated[float, Field(gt=0, le=1e6)] = Field(
        description="Output tokens per joule of board energy.", examples=[3.5]
    )


class PoolOverride(_Section):
    """What is known of one pool beforehand."""

    provisioned_watts_per_gpu: Annotated[float, Field(gt=0, le=1e5)] | None = Field(
        None,
        description="Watts set aside for each GPU of the pool; replaces the enforced power limit as what is available.",
        examples=[1000.0],
    )


class Process(_Section):
    """How rows become figures."""

    stages: tuple[Literal["meter", "economy"], ...] = Field(
        ("meter", "economy"), min_length=1, description="Stages this process runs."
    )
    window_s: Annotated[int, Field(ge=1, le=60)] = Field(
        10,
        description="Length of a window; must divide 60. The dashboards' rates are over a minute: above 15, set the scrape "
        "interval of Grafana's data source to as much.",
    )
    grace_s: Annotated[float, Field(ge=0.5, le=3600)] = Field(
        15.0,
        description="A window closes this long after its end in event time. At least 1.5 times the slowest reading interval "
        "of GPUs and engines, and at least that and `collect.send_interval_s` together. "
        "Above 60, raise the limit of the alert IdlewattWindowClockStalled and of the dashboards, as its runbook says.",
    )
    forget_after_s: Seconds = Field(
        86_400.0,
        description="A GPU or engine silent for longer is no longer known to be there, and no longer booked as dark.",
    )
    coverage_floor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9, description="Ratios that stand on less coverage are withheld. The dashboards go by the default."
    )
    min_tokens: Annotated[int, Field(ge=1)] = Field(
        100,
        description="Ratios that stand on fewer output tokens are withheld, and idle watts are not valued at what a model "
        "brought that made fewer in an hour. The dashboards go by the default.",
    )
    worst_offenders: Annotated[int, Field(ge=0, le=10_000)] = Field(
        50, description="GPUs named in idlewatt_gpu_wasted_watts."
    )
    group: Name = Field(
        "idlewatt",
        description="Prefix of the Kafka consumer groups, the same for all processors. Those of another group would book "
        "everything a second time into the same ledger, so that they do not start where one has booked.",
    )
    instance: Name | None = Field(
        None,
        description="Name of this processor among those of its group. Set, and started again within "
        "log.session_timeout_s, it gets its partitions back and nobody else notices; but for as long they wait when it "
        "is stopped for good. All processors have one of their own, or none has.",
        examples=["processor-1"],
    )
    yardstick: tuple[Yardstick, ...] = Field((), description="Configured yields.")
    published_yardsticks: bool = Field(
        True,
        description="What was published of a GPU product serves as its yield where nothing is configured or learned; "
        "idlewatt_yardstick_tokens_per_joule says so.",
    )
    pool: dict[str, PoolOverride] = Field(
        default_factory=dict, description="What is known of a pool beforehand, by its name."
    )

    @model_validator(mode="after")
    def _window_divides_a_minute(self) -> "Process":
        if 60 % self.window_s:
            raise ValueError(
                f"window_s must divide 60 (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60), not {self.window_s}"
            )
        return self


IdlePart = Literal["idle_loaded.draw", "idle_loaded.headroom", "idle_free.draw", "idle_free.headroom"]


class Economy(_Section):
    """What tokens and watts are worth."""

    book: str | None = Field(
        None,
        description="File of the book: prices, tariff, capital, envelopes; `idlewatt config --book` prints one. "
        "Read again when it changes. Without one nothing has a price. "
        "A relative path goes by the working directory, not by the configuration file.",
        examples=["/etc/idlewatt/book.toml"],
    )
    lost_revenue_counts: tuple[IdlePart, ...] = Field(
        ("idle_loaded.draw", "idle_loaded.headroom", "idle_free.draw", "idle_free.headroom"),
        description="Which idle watts count as lost revenue.",
    )

    @model_validator(mode="after")
    def _each_part_once(self) -> "Economy":
        twice = [part for part, count in Counter(self.lost_revenue_counts).items() if count > 1]
        if twice:
            raise ValueError(
                f"lost_revenue_counts must name each part once; {', '.join(twice)} is there twice"
            )
        return self


class Serve(_Section):
    """Where /metrics and what is under /v1 listen."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        9477, description="Port of /metrics; 0 takes a free one. IDLEWATT_PORT moves it."
    )
    token: (
        Annotated[str, StringConstraints(min_length=16, max_length=1024, pattern=r"^\S([^\r\n]*\S)?$")] | None
    ) = Field(
        None,
        description="Bearer token of what is served under /v1, which is off without one; "
        "better given as IDLEWATT_SERVE__TOKEN.",
        examples=["at least 16 characters that nobody guesses"],
        json_schema_extra={
            "accepts": "one line of at least 16 characters, without a blank before or after it"
        },
    )


class Simulate(_Section):
    """The simulated AI factory, read where collect.gpu is "simulated"."""

    seed: int = Field(1, description="The same seed gives the same factory and load.")
    day_s: Seconds = Field(120.0, description="Seconds in which the load rises and falls once.")
    outage_every_s: Seconds = Field(90.0, description="Mean time between outages of an engine or node.")
    start_ms: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Unix milliseconds at which the factory began: started again, it goes on where it was, after some "
        "ten seconds of work for each hour since. Left out: now, and with each start all engines and drivers have restarted.",
        examples=[1_767_225_600_000],
    )


class Settings(_Section):
    """Everything Idlewatt can be told."""

    site: Name = Field(
        "default",
        description="The power budget with an address these watts belong to: a data hall, a cluster.",
    )
    log: Log = Field(default_factory=lambda: Log())
    collect: Collect = Field(default_factory=lambda: Collect())
    process: Process = Field(default_factory=lambda: Process())
    economy: Economy = Field(default_factory=lambda: Economy())
    serve: Serve = Field(default_factory=lambda: Serve())
    simulate: Simulate = Field(default_factory=lambda: Simulate())
