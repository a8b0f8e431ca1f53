"""Small random fleets, and the ways their readings can travel."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st
from stage_driver import Message

from idlewatt.processors.meter.config import MeterConfig
from idlewatt.stream import records, topics
from idlewatt.stream.records import EngineRow, GpuRow

START_MS = 1_700_000_040_000
Row = GpuRow | EngineRow


@dataclass(frozen=True)
class Fleet:
    """Readings in the order they were taken, and the settings they are metered with."""

    config: MeterConfig
    rows: tuple[Row, ...]

    @property
    def gpu_rows(self) -> list[GpuRow]:
        return [row for row in self.rows if isinstance(row, GpuRow)]

    @property
    def engine_rows(self) -> list[EngineRow]:
        return [row for row in self.rows if isinstance(row, EngineRow)]

    @property
    def newest_ms(self) -> int:
        return max(row.ts_ms for row in self.rows)

    def edge_ms(self, clock_ms: int) -> int:
        """The newest window edge that a clock has passed by the grace."""
        return (clock_ms - self.config.grace_ms) // self.config.window_ms * self.config.window_ms


_READINGS = st.sampled_from([1, 2, 3, 6, 12, 25, 25, 40])


@st.composite
def fleets(
    draw: st.DrawFn,
    *,
    clean: bool = False,
    overdraw: bool = True,
    forget: bool = False,
    shared: bool = False,
) -> Fleet:
    """1-2 pools, 1-3 nodes, 1-6 GPUs, 0-3 engines; up to some minutes of readings.

    How many there are of each, and how long they are read, is drawn and shrinks; what they read is random.
    `clean`: no counter restarts or lies. `overdraw`: boards may draw more than their limit. `forget`: entities are
    given up soon; GPUs come back from longer outages. `shared`: 2-3 engines of two models each on the first node, read for long.
    """
    grace_ms = draw(st.sampled_from([15_000, 9_000]))
    hold_ms = grace_ms * 2 // 3
    config = MeterConfig(
        window_ms=draw(st.sampled_from([10_000, 5_000])),
        grace_ms=grace_ms,
        forget_ms=draw(st.sampled_from([41_000, 43_210])) if forget else 86_400_000,
        provisioned_mw=draw(st.sampled_from([{}, {}, {"p0": 1_100_000}])),
    )
    rng = random.Random(draw(st.integers(0, 10**6)))
    readings = st.sampled_from([25, 40]) if shared else _READINGS
    pools = draw(st.integers(1, 2))
    gpus: list[tuple[str, str, str]] = []
    rows: list[Row] = []
    for n in range(draw(st.integers(1, 3))):
        for g in range(draw(st.integers(1, 2))):
            gpus.append((f"p{n % pools}", f"n{n}", f"G{n}{g}"))
            rows += _gpu(rng, *gpus[-1], draw(readings), hold_ms, clean, overdraw, 10 if forget else 4)
    for e in range(draw(st.integers(2 if shared else 0, 3))):
        pool, node, own = gpus[0] if shared else rng.choice(gpus)
        near = [uuid for p, n, uuid in gpus if (p, n) == (pool, node)]
        named = draw(st.sampled_from([None, near, [own]]))
        for model in rng.choice(["ab"] if shared else ["a", "b", "ab"]):
            rows += _engine(rng, (pool, node, f"E{e}", model), named, draw(readings), hold_ms, clean)
    return Fleet(config, tuple(sorted(rows, key=lambda row: row.ts_ms)))


def _gaps(rng: random.Random, readings: int, hold_ms: int, holds: int = 4) -> list[int]:
    """Milliseconds from reading to reading: a cadence with jitter, broken by outages of up to so many holds."""
    cadence_ms = rng.choice([1000, 2000, 5000])
    outage = rng.choice([0, 0.05, 0.2])
    return [
        rng.randint(hold_ms - 300, hold_ms * holds)
        if rng.random() < outage
        else rng.randint(cadence_ms * 3 // 5, cadence_ms * 7 // 5)
        for _ in range(readings)
    ]


def _gpu(
    rng: random.Random,
    pool: str,
    node: str,
    uuid: str,
    readings: int,
    hold_ms: int,
    clean: bool,
    overdraw: bool,
    holds: int,
) -> list[GpuRow]:
    has_counter = clean or rng.random() < 0.7
    knows_epoch = has_counter and rng.random() < 0.5
    trouble = 0.0 if clean else rng.choice([0, 0, 0.1])
    limit_mw = rng.choice([700_000, 333_333])
    # what is drawn without a limit is more than what was available
    knows_limit = not overdraw or rng.random() < 0.9
    # 99 % is too much where the limit is lowered
    loads = [10, 10, 60, 99, 120] if overdraw else [10, 10, 60]
    processes: list[bool | None] = rng.choice([[None], [True], [True], [False], [None, True, True, False]])
    ts_ms = START_MS + rng.randint(0, 20_000)
    last = GpuRow(
        ts_ms=ts_ms,
        site="s",
        pool=pool,
        node=node,
        gpu_uuid=uuid,
        product=rng.choice(["H100", "L40"]),
        energy_mj=rng.randint(0, 10**12) if has_counter else None,
        power_mw=limit_mw // 5,
        power_limit_mw=limit_mw if knows_limit else None,
        epoch_ms=ts_ms - 5_000_000 if knows_epoch else None,
        has_process=rng.choice(processes),
    )
    found = [last]
    # from some reading on none tells of power, or one here and there between them
    is_mute, hiccups = (not clean and rng.random() < chance for chance in (0.1, 0.2))
    for gap_ms in _gaps(rng, readings, hold_ms, holds):
        power_mw = limit_mw * rng.choice(loads) // 100
        gained = power_mw * gap_ms // 1000
        row = replace(
            last,
            ts_ms=last.ts_ms + gap_ms,
            energy_mj=None if last.energy_mj is None else last.energy_mj + gained,
            power_mw=power_mw,
            has_process=rng.choice(processes) if rng.random() < 0.2 else last.has_process,
            power_limit_mw=None
            if not knows_limit
            else limit_mw
            if clean or rng.random() < 0.9
            else limit_mw - 100_001,
        )
        last = row
        if rng.random() < trouble and has_counter:
            began_ms = row.ts_ms - gap_ms // 2 if knows_epoch else None
            lie = replace(row, energy_mj=(row.energy_mj or 0) // 2)
            restart = replace(row, energy_mj=gained // 2, epoch_ms=began_ms)
            leap = replace(row, energy_mj=(row.energy_mj or 0) + 10**12)
            retold = replace(row, epoch_ms=row.ts_ms - gap_ms - rng.choice([0, 1, 999]))
            # its counter is not believed, for this once
            refuted = replace(row, energy_mj=None, epoch_ms=row.ts_ms)
            row = rng.choice([lie, restart, retold] if knows_epoch else [lie, restart, leap, refuted])
            # a lie is dropped where the epoch is known, and the counter goes on; a leap is nobody's joules
            last = last if row in (leap, refuted) or (row is lie and knows_epoch) else row
        found.append(row)
        if hiccups and rng.random() < 0.2:
            found.append(_mute(replace(row, ts_ms=row.ts_ms + rng.choice([0, 1, 300, 20_000]))))
    told = rng.randint(0, len(found)) if is_mute else len(found)
    return [*found[:told], *map(_mute, found[told:])]


def _mute(row: GpuRow) -> GpuRow:
    return replace(row, energy_mj=None, power_mw=None)


def _engine(
    rng: random.Random,
    names: tuple[str, str, str, str],
    gpus: list[str] | None,
    readings: int,
    hold_ms: int,
    clean: bool,
) -> list[EngineRow]:
    pool, node, engine, model = names
    knows_epoch = rng.random() < 0.5
    trouble = 0.0 if clean else rng.choice([0, 0, 0.1])
    ts_ms = START_MS + rng.randint(0, 20_000) + rng.choice([0, 0, rng.randint(0, 60_000)])
    last = EngineRow(
        ts_ms=ts_ms,
        site="s",
        pool=pool,
        node=node,
        engine=engine,
        server="vllm",
        model_name=model,
        output_tokens=rng.randint(0, 10**9),
        input_tokens=rng.choice([None, 0, 77]),
        cached_input_tokens=rng.choice([None, 5]),
        advance="step",
        requests_running=rng.choice([None, 0, 2]),
        requests_waiting=0,
        epoch_ms=ts_ms - 3_000 if knows_epoch else None,
        gpus=gpus,
    )
    found = [last]
    for gap_ms in _gaps(rng, readings, hold_ms):
        made = rng.choice([0, 0, 1, 30, 99]) * gap_ms // 1000
        read = rng.choice([0, 0, 7, 1000])
        row = replace(
            last,
            ts_ms=last.ts_ms + gap_ms,
            output_tokens=last.output_tokens + made,
            input_tokens=_plus(last.input_tokens, read),
            cached_input_tokens=_plus(last.cached_input_tokens, read // 3),
            requests_running=rng.choice([None, 0, 0, 2]),
            requests_waiting=rng.choice([0, 0, 1]),
        )
        last = row
        if rng.random() < trouble:
            began_ms = row.ts_ms - gap_ms // 2 if knows_epoch else None
            # one counter falls and another is far ahead: what comes next is not held against either
            lie = replace(
                row, output_tokens=row.output_tokens // 2, input_tokens=_plus(row.input_tokens, 10**6)
            )
            restart = replace(
                row,
                output_tokens=made,
                input_tokens=_plus(row.input_tokens and 0, read),
                cached_input_tokens=_plus(row.cached_input_tokens and 0, read // 3),
                epoch_ms=began_ms,
            )
            # another series tells when it began
            retold = replace(row, epoch_ms=row.ts_ms - gap_ms - rng.choice([0, 1, 999]))
            row = rng.choice([lie, restart, retold] if knows_epoch else [lie, restart])
            last = last if row is lie and knows_epoch else row
        found.append(row)
    return found


def _plus(counter: int | None, gained: int) -> int | None:
    return None if counter is None else counter + gained


@dataclass(frozen=True)
class Arrival:
    """What is in the log at `now_ms` that was not there at `began_ms`."""

    began_ms: int
    now_ms: int
    messages: tuple[Message, ...]


def delivery(
    fleet: Fleet,
    rng: random.Random,
    late_ms: Mapping[str, int] | None = None,
    repeats: float = 0.2,
) -> list[Arrival]:
    """The fleet's rows cut into messages at random, in the order in which they arrive.

    Each row arrives up to two thirds of the grace after it was read; rows of the nodes in `late_ms` as much later
    as it says, or all at once where it says 0. Some messages come twice: at once, or (`repeats`) much later.
    """
    third_ms = fleet.config.grace_ms // 3
    end_ms = fleet.newest_ms + 1
    order: list[tuple[int, int, int, Row]] = []
    for row in fleet.rows:
        delay_ms = rng.choice([0, 0, rng.randint(0, third_ms)])
        if late_ms and row.node in late_ms:
            # a spool is emptied in order
            delay_ms = late_ms[row.node] or end_ms - row.ts_ms
        order.append((row.ts_ms + delay_ms, row.ts_ms, len(order), row))
    order.sort()
    # row by row takes long
    largest = rng.choice([1 if len(order) < 40 else 4, 8, 30, 1000])
    found: list[Arrival] = []
    while order:
        # nobody waits for a message to be full until its first rows are late
        full = (i for i, (arrives_ms, *_) in enumerate(order) if arrives_ms - order[0][0] > third_ms)
        take = min(rng.randint(1, largest), next(full, len(order)))
        batch, order = order[:take], order[take:]
        messages = pack([row for *_, row in batch])
        if found and rng.random() < repeats:
            messages += rng.choice(found).messages
        if rng.random() < 0.1:
            messages += messages[:1]
        found.append(Arrival(batch[0][0], batch[-1][0], tuple(messages)))
    return found


def pack(rows: Sequence[Row]) -> list[Message]:
    """One message for each topic that has rows."""
    gpus = [row for row in rows if isinstance(row, GpuRow)]
    engines = [row for row in rows if isinstance(row, EngineRow)]
    messages = []
    if gpus:
        messages.append(Message(topics.GPU, records.GPU, gpus))
    if engines:
        messages.append(Message(topics.ENGINE, records.ENGINE, engines))
    return messages
