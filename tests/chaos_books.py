"""What was booked against what is true: all read back from Kafka and added up a second time, in plain Python."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chaos_garbage import readable
from truth import Truth, truth

from idlewatt.collectors.simulated.factory import Factory
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.opening import read_topic
from idlewatt.stream.records import EngineRow, GpuRow
from idlewatt.stream.settings import Settings

Row = Mapping[str, Any]
Sums = dict[tuple[Any, ...], tuple[int, ...]]
_EARLIEST_MS: Final = 631_152_000_000  # 1990


@dataclass(frozen=True)
class Raw:
    """What collectors sent and a reader accepts, repeats included."""

    gpus: list[GpuRow]
    engines: list[EngineRow]
    rows: int
    # readings that stand in the log behind newer ones of their entity, and nowhere before: collectors keep order
    disordered: int

    @property
    def newest_ms(self) -> int:
        return max(row.ts_ms for row in (*self.gpus, *self.engines))


@dataclass(frozen=True)
class Difference:
    """One comparison: how many sums were compared, and those that differ, as (booked, true)."""

    what: str
    unit: str
    compared: int
    found: dict[tuple[Any, ...], tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def amount(self) -> int:
        return sum(
            abs(b - t) for booked, true in self.found.values() for b, t in zip(booked, true, strict=True)
        )


def read_raw(settings: Settings, until_ms: int) -> Raw:
    """`until_ms`: no clock that was right was further, so rows beyond it were ahead of it."""
    found: dict[str, list[Row]] = {}
    count = 0
    for topic in (topics.GPU, topics.ENGINE):
        rows = [row for message in read_topic(settings, topic) for row in readable(message)]
        count += len(rows)
        found[topic] = [row for row in rows if _EARLIEST_MS <= row["ts_ms"] <= until_ms]
    return Raw(
        [GpuRow(**row) for row in found[topics.GPU]],
        [EngineRow(**row) for row in found[topics.ENGINE]],
        count,
        _disordered(found[topics.GPU], ("site", "pool", "gpu_uuid"))
        + _disordered(found[topics.ENGINE], ("site", "pool", "node", "engine", "model_name")),
    )


def _disordered(rows: Iterable[Row], entity: tuple[str, ...]) -> int:
    seen: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    newest: dict[tuple[Any, ...], int] = defaultdict(int)
    count = 0
    for row in rows:
        key, ts_ms = tuple(row[name] for name in entity), row["ts_ms"]
        count += ts_ms < newest[key] and ts_ms not in seen[key]
        seen[key].add(ts_ms)
        newest[key] = max(newest[key], ts_ms)
    return count


def read_ledger(settings: Settings) -> tuple[list[tuple[str, Row]], dict[int, int]]:
    """Every row with the name of its schema, in the order of each partition; and where each partition ends."""
    rows: list[tuple[str, Row]] = []
    ends: dict[int, int] = {}
    for message in read_topic(settings, topics.LEDGER):
        schema, frame = decode(message.value)
        rows += [(schema.name, row) for row in frame.to_dicts()]
        ends[message.partition] = message.offset + 1
    return rows, ends


def read_money(settings: Settings) -> list[Row]:
    """Money of pools; what consumers owe stands in the same topic."""
    decoded = (decode(message.value) for message in read_topic(settings, topics.MONEY))
    return [row for schema, frame in decoded if schema is records.MONEY for row in frame.to_dicts()]


def metered(raw: Raw, settings: Settings, edge_ms: int) -> Truth:
    process = settings.process
    return truth(
        raw.gpus,
        raw.engines,
        window_ms=process.window_s * 1000,
        grace_ms=round(process.grace_s * 1000),
        forget_ms=round(process.forget_after_s * 1000),
        edge_ms=edge_ms,
        provisioned_mw={
            pool: round(known.provisioned_watts_per_gpu * 1000)
            for pool, known in process.pool.items()
            if known.provisioned_watts_per_gpu is not None
        },
    )


def compare_ledger(
    ledger: Iterable[tuple[str, Row]], true: Truth, edge_ms: int
) -> tuple[list[Difference], list[Difference]]:
    """Windows before the edge: what decides, and what is only told."""
    power, tokens, minutes = (
        [row for name, row in ledger if name == schema.name]
        for schema in (records.POWER, records.TOKENS, records.GPU_MINUTE)
    )
    power = [row for row in power if row["window_start_ms"] < edge_ms]
    tokens = [row for row in tokens if row["window_start_ms"] < edge_ms]
    minutes = [row for row in minutes if row["minute_start_ms"] + 60_000 <= edge_ms]
    pool = ("site", "pool", "window_start_ms")
    gpu = ("site", "pool", "gpu_uuid", "minute_start_ms")
    engine = (*pool, "node", "engine", "model_name")
    kinds = ("output_tokens", "input_tokens", "cached_input_tokens")
    power_true = {
        (s, p, w, product, m, state): row for (s, p, w, product, m, state), row in true.power.items()
    }
    minutes_true = {key: row for key, row in true.minutes.items() if key[3] + 60_000 <= edge_ms}

    def of_power(width: int, *amounts: Any) -> Sums:
        return _folded(power_true, width, *amounts)

    decide = [
        compare("joules per pool and window", "mJ", _sums(power, pool, ("draw_mj",)), of_power(3, 1)),
        compare(
            "available energy per pool and window",
            "mJ",
            _sums(power, pool, ("draw_mj", "headroom_mj"), add=True),
            of_power(3, (1, 2)),
        ),
        compare("GPU time per pool and window", "ms", _sums(power, pool, ("gpu_ms",)), of_power(3, 0)),
        compare(
            "joules per GPU and minute", "mJ", _sums(minutes, gpu, ("draw_mj",)), _folded(minutes_true, 4, 1)
        ),
        compare(
            "tokens per engine, model and window",
            "tokens",
            _sums(tokens, engine, kinds),
            _folded(true.tokens, 6, 0, 1, 2),
        ),
    ]
    tell = [
        compare(
            "GPU time by state",
            "ms",
            _sums(power, (*pool, "product", "model_name", "state"), ("gpu_ms",)),
            of_power(6, 0),
        ),
        compare(
            "joules by state",
            "mJ",
            _sums(power, (*pool, "product", "model_name", "state"), ("draw_mj",)),
            of_power(6, 1),
        ),
        compare(
            "headroom by state",
            "mJ",
            _sums(power, (*pool, "product", "model_name", "state"), ("headroom_mj",)),
            of_power(6, 2),
        ),
        compare(
            "serving joules by engine",
            "mJ",
            _sums(tokens, engine, ("serving_mj",)),
            _folded(true.tokens, 6, 3),
        ),
        compare(
            "engine time read", "ms", _sums(tokens, engine, ("measured_ms",)), _folded(true.tokens, 6, 4)
        ),
        compare(
            "engine time silent", "ms", _sums(tokens, engine, ("silent_ms",)), _folded(true.tokens, 6, 5)
        ),
    ]
    return decide, tell


def compare_factory(
    raw: Raw, ledger: Iterable[tuple[str, Row]], factories: Mapping[str, Factory]
) -> list[Difference]:
    """Against what the factories really did: each reading, and each pool's joules from first to last reading.

    Pools in which a driver was reloaded are left out: what a GPU drew between its last reading and the reload
    is known to nobody.
    """
    wrong: dict[tuple[Any, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}
    spans: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    by_time = sorted(raw.gpus, key=lambda row: row.ts_ms)
    boards = {
        (site, gpu.uuid): gpu
        for site, factory in factories.items()
        for node in factory.nodes
        for group in node.groups
        for gpu in group.gpus
    }
    for row in by_time:
        factories[row.site].advance(row.ts_ms)
        board = boards[row.site, row.gpu_uuid]
        if (row.energy_mj, row.epoch_ms) != (board.energy_mj, board.epoch_ms):
            wrong[row.site, row.gpu_uuid, row.ts_ms] = (row.energy_mj or 0,), (board.energy_mj,)
        spans[row.site, row.pool, row.gpu_uuid].append((board.epoch_ms, board.energy_mj))
    reloaded = {key[:2] for key, found in spans.items() if found[0][0] != found[-1][0]}
    drawn: dict[tuple[Any, ...], int] = defaultdict(int)
    for (site, pool, _), found in spans.items():
        if (site, pool) not in reloaded:
            drawn[site, pool] += found[-1][1] - found[0][1]
    booked = _sums(
        (row for name, row in ledger if name == records.POWER.name), ("site", "pool"), ("draw_mj",)
    )
    return [
        Difference("readings of the factories' counters", "mJ", len(by_time), wrong),
        compare(
            "joules per pool, of the factories",
            "mJ",
            {key: row for key, row in booked.items() if key in drawn},
            {key: (amount,) for key, amount in drawn.items()},
        ),
    ]


def _sums(rows: Iterable[Row], by: tuple[str, ...], of: tuple[str, ...], *, add: bool = False) -> Sums:
    total: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        amounts = [row[name] for name in of]
        _add(total, tuple(row[name] for name in by), [sum(amounts)] if add else amounts)
    return {key: tuple(amounts) for key, amounts in total.items()}


def _folded(true: Mapping[tuple[Any, ...], list[int]], width: int, *amounts: int | tuple[int, int]) -> Sums:
    """Sums of the truth by the first `width` parts of its keys; a pair of amounts is added up."""
    total: dict[tuple[Any, ...], list[int]] = {}
    for key, row in true.items():
        chosen = [row[at] if isinstance(at, int) else row[at[0]] + row[at[1]] for at in amounts]
        _add(total, key[:width], chosen)
    return {key: tuple(found) for key, found in total.items()}


def _add(total: dict[tuple[Any, ...], list[int]], key: tuple[Any, ...], amounts: list[int]) -> None:
    row = total.setdefault(key, [0] * len(amounts))
    for i, amount in enumerate(amounts):
        row[i] += amount


def compare(what: str, unit: str, booked: Sums, true: Sums) -> Difference:
    """A sum that is not there is 0."""
    found = {}
    for key in booked.keys() | true.keys():
        width = len(booked.get(key) or true.get(key) or ())
        pair = booked.get(key, (0,) * width), true.get(key, (0,) * width)
        if pair[0] != pair[1]:
            found[key] = pair
    return Difference(what, unit, len(booked.keys() | true.keys()), found)
