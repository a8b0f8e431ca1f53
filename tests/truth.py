"""The meter's figures computed a second time, in plain Python, from sorted readings: docs/metering.md in code.

Nothing here is shared with the processor, nothing is fast, and nothing is kept from one window to the next: all
readings are there from the beginning, and every question is answered by looking through all of them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

from idlewatt.stream.records import EngineRow, GpuRow

R = TypeVar("R", GpuRow, EngineRow)
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
# no GPU draws more
WILDEST_MW = 100_000_000
# no server counts more of a kind
WILDEST_TOKENS_PER_MS = 1000


@dataclass(frozen=True)
class Interval(Generic[R]):
    """Time of one entity over which its counters gained `gains` and the gauges of `row` held."""

    start: int
    end: int
    gains: tuple[int, ...]
    row: R
    # somebody looked: it is no gap
    read: bool
    estimated: bool = False

    def gain_within(self, a: int, b: int) -> tuple[int, ...]:
        """What was gained from `a` to `b`, both within the interval."""
        length = self.end - self.start
        return tuple(g * (b - self.start) // length - g * (a - self.start) // length for g in self.gains)

    def overlaps(self, a: int, b: int) -> bool:
        return self.start < b and a < self.end

    @property
    def active(self) -> bool:
        """Of an engine."""
        assert isinstance(self.row, EngineRow)
        return self.read and (any(self.gains) or (self.row.requests_running or 0) > 0)


@dataclass
class Truth:
    """Sums up to the closing edge. Keys are as in the ledger's rows, without the constant parts of a row."""

    # (site, pool, window, product, model, state) -> [gpu_ms, draw_mj, headroom_mj, estimated_mj]
    power: dict[tuple[str, str, int, str, str, str], list[int]] = field(default_factory=dict)
    # (site, pool, window, node, engine, model) -> [output, input, cached, serving_mj, measured_ms, silent_ms]
    tokens: dict[tuple[str, str, int, str, str, str], list[int]] = field(default_factory=dict)
    # (site, pool, gpu, minute, state) -> [gpu_ms, draw_mj, headroom_mj]
    minutes: dict[tuple[str, str, str, int, str], list[int]] = field(default_factory=dict)
    # reasons of dropped readings -> how many
    dropped: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def truth(
    gpu_rows: Iterable[GpuRow],
    engine_rows: Iterable[EngineRow],
    *,
    window_ms: int,
    grace_ms: int,
    forget_ms: int,
    edge_ms: int,
    provisioned_mw: Mapping[str, int] | None = None,
) -> Truth:
    """All figures of all windows that end at or before `edge_ms`, a multiple of the window."""
    result = Truth()
    times = Times(window_ms, grace_ms * 2 // 3, forget_ms, edge_ms)
    gpus = defaultdict(list)
    for gpu_row in gpu_rows:
        limit_mw = (provisioned_mw or {}).get(gpu_row.pool, gpu_row.power_limit_mw)
        gpu_row = replace(gpu_row, power_limit_mw=limit_mw)
        gpus[gpu_row.site, gpu_row.pool, gpu_row.gpu_uuid].append(gpu_row)
    engines: dict[tuple[str, str], Members] = defaultdict(dict)
    readings = defaultdict(list)
    for engine_row in engine_rows:
        who = (engine_row.node, engine_row.engine, engine_row.model_name)
        readings[engine_row.site, engine_row.pool, who].append(engine_row)
    for (site, pool, who), rows in sorted(readings.items()):
        engines[site, pool][who] = times.known(rows, _engine_step, result.dropped)
    for (site, pool), members in engines.items():
        _book_tokens(result, site, pool, members, times)
    for (site, pool, _), gpu_readings in sorted(gpus.items()):
        intervals = times.known(gpu_readings, _gpu_step, result.dropped)
        _book_gpu(result, intervals, engines[site, pool], times)
    return result


# node, engine, model
Who = tuple[str, str, str]
Members = dict[Who, list[Interval[EngineRow]]]


@dataclass(frozen=True)
class Times:
    """The settings that are lengths of time, and what follows from them for any entity."""

    window: int
    hold: int
    forget: int
    edge: int

    def known(
        self,
        rows: Iterable[R],
        step: Callable[[R, R, int], list[Interval[R]] | str | None],
        dropped: dict[str, int],
    ) -> list[Interval[R]]:
        """The entity's time from its first reading to the edge, less what it was forgotten for.

        `step` tells what lies between two readings, or why the second one is dropped, or None if it says nothing.
        """
        found: list[Interval[R]] = []
        last: R | None = None
        for row in sorted(rows, key=lambda row: row.ts_ms):
            if row.ts_ms > self.edge + self.hold:
                break
            if last is not None and row.ts_ms <= last.ts_ms:
                continue
            if last is None or row.ts_ms >= last.ts_ms + self.forget:
                if last is not None:
                    found.append(self._silence(last))
                last = row
                continue
            between = step(last, row, self.hold)
            if between is None:
                continue
            if isinstance(between, str):
                dropped[between] += 1
                continue
            found.extend(between)
            last = row
        if last is not None and last.ts_ms < self.edge:
            found.append(self._silence(last))
        return [i for i in found if i.start < min(i.end, self.edge)]

    def _silence(self, last: R) -> Interval[R]:
        end = min(last.ts_ms + self.forget, self.edge)
        return Interval(last.ts_ms, end, (0, 0, 0), last, read=False)

    def pieces(self, interval: Interval[R]) -> list[tuple[int, int, int]]:
        """(window, a, b) for each window up to the edge that the interval touches."""
        end = min(interval.end, self.edge)
        first = interval.start // self.window * self.window
        return [
            (w, max(w, interval.start), min(w + self.window, end)) for w in range(first, end, self.window)
        ]


def _engine_step(before: EngineRow, row: EngineRow, hold: int) -> list[Interval[EngineRow]] | str:
    old = (before.output_tokens, before.input_tokens, before.cached_input_tokens)
    new = (row.output_tokens, row.input_tokens, row.cached_input_tokens)
    return _step(before, row, old, new, hold, most=(row.ts_ms - before.ts_ms) * WILDEST_TOKENS_PER_MS)


def _gpu_step(before: GpuRow, row: GpuRow, hold: int) -> list[Interval[GpuRow]] | str | None:
    length = row.ts_ms - before.ts_ms
    mute, was_mute = (each.energy_mj is None and each.power_mw is None for each in (row, before))
    if mute and not was_mute:
        return None
    if was_mute:
        return [Interval(before.ts_ms, row.ts_ms, (0,), before, read=False)]
    if before.energy_mj is None or (row.energy_mj is None and _begins_anew(before, row)):
        assert before.power_mw is not None
        assert row.power_mw is not None
        gain = (before.power_mw + row.power_mw) * length // 2000 if length <= hold else 0
        return [Interval(before.ts_ms, row.ts_ms, (gain,), before, length <= hold, estimated=True)]
    limit = before.power_limit_mw
    most = -1 if limit is None else limit * length * 13 // 10_000
    gain = (row.energy_mj or 0) - before.energy_mj
    restarted = None not in (before.epoch_ms, row.epoch_ms) and before.epoch_ms != row.epoch_ms
    restarted &= gain < 0 or not before.ts_ms >= (row.epoch_ms or 0) >= row.ts_ms - HOUR_MS
    if row.energy_mj is not None and not restarted and gain > WILDEST_MW * length // 1000:
        return [Interval(before.ts_ms, row.ts_ms, (0,), before, read=False)]
    return _step(before, row, (before.energy_mj,), (row.energy_mj,), hold, most)


def _step(
    before: R,
    row: R,
    old: tuple[int | None, ...],
    new: tuple[int | None, ...],
    hold: int,
    most: int,
) -> list[Interval[R]] | str:
    """The table of cases. `most` is what a counter can have gained at all."""
    t0, t1 = before.ts_ms, row.ts_ms
    nothing = (0,) * len(new)
    counted = any(None not in pair for pair in zip(old, new, strict=True))
    known = counted and before.epoch_ms is not None and row.epoch_ms is not None
    anew = _begins_anew(before, row)
    if any(n is None and o is not None for o, n in zip(old, new, strict=True)) and not anew:
        return "counter_missing"
    fell = any(o is not None and n is not None and n < o for o, n in zip(old, new, strict=True))
    difference = tuple(0 if o is None or n is None else n - o for o, n in zip(old, new, strict=True))
    whole = tuple(n or 0 for n in new)
    if known and before.epoch_ms != row.epoch_ms:
        assert before.epoch_ms is not None
        assert row.epoch_ms is not None
        if not anew:
            return "stale_epoch"
        if t1 - row.epoch_ms > HOUR_MS:
            return [Interval(t0, t1, nothing, before, read=False)]
        if row.epoch_ms <= t0 and not fell:
            return [Interval(t0, t1, difference, before, read=t1 - t0 <= hold)]
        began = min(max(t0, row.epoch_ms), t1 - 1)
        return [
            Interval(t0, began, nothing, before, read=False),
            Interval(began, t1, whole, before, read=t1 - began <= hold),
        ]
    if not fell:
        return [Interval(t0, t1, difference, before, read=t1 - t0 <= hold)]
    if known:
        return "counter_decrease"
    if t1 - t0 <= hold and max(whole) <= most:
        return [Interval(t0, t1, whole, before, read=True)]
    return [Interval(t0, t1, nothing, before, read=False)]


def _begins_anew(before: R, row: R) -> bool:
    if before.epoch_ms is None or row.epoch_ms is None:
        return row.epoch_ms is not None
    # a clock that was ahead, and is right again, may have told the one before
    mended = row.epoch_ms != before.epoch_ms and before.ts_ms < row.epoch_ms <= row.ts_ms
    return row.epoch_ms > before.epoch_ms or mended


def _book_tokens(result: Truth, site: str, pool: str, members: Members, times: Times) -> None:
    for who, intervals in members.items():
        for interval in intervals:
            for window, a, b in times.pieces(interval):
                read = (b - a, 0) if interval.read else (0, b - a)
                row = result.tokens.setdefault((site, pool, window, *who), [0] * 6)
                _add(row, (*interval.gain_within(a, b), 0, *read))


def _book_gpu(
    result: Truth,
    intervals: list[Interval[GpuRow]],
    members: Members,
    times: Times,
) -> None:
    # (window, model, state) -> [gpu_ms, draw_mj, available_mj, estimated_mj]
    booked: dict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0] * 4)
    # window -> [gpu_ms, draw_mj, headroom_mj, estimated_mj] while anybody served
    served: dict[int, list[int]] = defaultdict(lambda: [0] * 4)
    for interval in intervals:
        gpu = interval.row
        limit = gpu.power_limit_mw
        for window, a, b in times.pieces(interval):
            state, models = _state(interval, a, b, members)
            drawn = interval.gain_within(a, b)[0]
            # without a limit what it drew was available
            available = drawn
            if limit is not None:
                available = limit * (b - window) // 1000 - limit * (a - window) // 1000
            _add(
                booked[window, min(models, default=""), state],
                (b - a, drawn, available, drawn if interval.estimated else 0),
            )
    for (window, model, state), (gpu_ms, drawn, available, estimated) in booked.items():
        # dark time may be booked before what was drawn in it is known
        headroom = available - drawn if state == "dark" else max(0, available - drawn)
        minute = (gpu.site, gpu.pool, gpu.gpu_uuid, window // MINUTE_MS * MINUTE_MS, state)
        _add(result.minutes.setdefault(minute, [0] * 3), (gpu_ms, drawn, headroom))
        if state == "serving":
            _add(served[window], (gpu_ms, drawn, headroom, estimated))
        else:
            power = (gpu.site, gpu.pool, window, gpu.product, model, state)
            _add(result.power.setdefault(power, [0] * 4), (gpu_ms, drawn, headroom, estimated))
    for window, amounts in served.items():
        busy = [(who, span) for who, span in _spans(members, window, window + times.window) if span.active]
        made = {who: _made(members[who], window, times) for who, _ in _holding(gpu, busy)}
        for who, part in _shares(amounts, made).items():
            power = (gpu.site, gpu.pool, window, gpu.product, who[2], "serving")
            _add(result.power.setdefault(power, [0] * 4), part)
            result.tokens[gpu.site, gpu.pool, window, *who][3] += part[1]


def _state(interval: Interval[GpuRow], a: int, b: int, members: Members) -> tuple[str, set[str]]:
    """The state of a GPU from `a` to `b`, and the models that put it there."""
    gpu = interval.row
    if not interval.read:
        return "dark", set()
    holding = _holding(gpu, _spans(members, a, b), may_hold=bool(gpu.has_process))
    active = {model for (_, _, model), span in holding if span.active}
    if active:
        return "serving", active
    read = {model for (_, _, model), span in holding if span.read}
    if read:
        return "idle_loaded", read
    if gpu.has_process is None or (holding and gpu.has_process):
        return "dark", set()
    return ("other" if gpu.has_process else "idle_free"), set()


Spans = list[tuple[Who, Interval[EngineRow]]]


def _spans(members: Members, a: int, b: int) -> Spans:
    """What all engines did from `a` to `b`."""
    return [(who, span) for who, spans in sorted(members.items()) for span in spans if span.overlaps(a, b)]


def _holding(gpu: GpuRow, spans: Spans, may_hold: bool = True) -> Spans:
    """The spans of engines that name the GPU; else of those of its node that name none, if they may hold it."""
    named = [(who, span) for who, span in spans if gpu.gpu_uuid in (span.row.gpus or ())]
    if named or not may_hold:
        return named
    return [(who, span) for who, span in spans if not span.row.gpus and span.row.node == gpu.node]


def _made(intervals: list[Interval[EngineRow]], window: int, times: Times) -> list[int]:
    """Output and input tokens made in a window while somebody looked."""
    made = [0, 0]
    for interval in intervals:
        for w, a, b in times.pieces(interval):
            if w == window and interval.read:
                _add(made, interval.gain_within(a, b)[:2])
    return made


def _shares(amounts: list[int], made: dict[Who, list[int]]) -> dict[Who, list[int]]:
    """Share each amount in proportion to output tokens, else to input tokens, else evenly; the last takes the remainder."""
    weights = [[made[who][kind] for who in made] for kind in (0, 1)] + [[1] * len(made)]
    chosen = next(each for each in weights if any(each))
    upto = [
        [amount * reached // sum(chosen) for amount in amounts] for reached in accumulate(chosen, initial=0)
    ]
    parts = [[b - a for a, b in zip(before, after, strict=True)] for before, after in pairwise(upto)]
    return dict(zip(made, parts, strict=True))


def _add(row: list[int], more: Iterable[int]) -> None:
    for i, value in enumerate(more):
        row[i] += value
