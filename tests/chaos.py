"""Truth under fire: faults on a real Kafka and real processes, then every figure against the truth.

`make chaos SEED=1 FAULTS=200 BROKERS=3`, or `python tests/chaos.py --seed 1 --faults 200 --brokers 3`. Prints a table, and ends with 0 if
nothing differs.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from chaos_books import (
    Difference,
    compare,
    compare_factory,
    compare_ledger,
    metered,
    read_ledger,
    read_money,
    read_raw,
)
from chaos_faults import Chaos, kinds, plan
from chaos_garbage import Injection
from chaos_money import money
from chaos_scene import OUTAGE_EVERY_S, POOLS, PRICES, SITES, TIERS, WINDOW_S, Scene
from chaos_usage import compare_usage, read_spent, read_usage
from kafka_broker import java_command

from idlewatt.collectors.simulated.factory import Factory
from idlewatt.processors.economy.book_file import read_book
from idlewatt.stream import metric_names as names
from idlewatt.stream import topics
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.kafka_clients import KafkaError

WINDOW_MS: Final = WINDOW_S * 1000
# A broker that starts over, a dead member's session, a transaction left open: each takes its time to end.
HEAL_S: Final = 180.0
# undisturbed, so that windows past the chaos are closed by rows
CALM_S: Final = 3 * WINDOW_S
UNITS: Final = ("mJ", "tokens", "micro-units")
# what no fault may bring about
NEVER_LOGGED: Final = {"unexpected_error", "fold_failed", "append_failed", "row_unencodable"}


@dataclass
class Report:
    """What a run did and found."""

    faults: Counter[str]
    figures: dict[str, int]
    decide: list[Difference]
    tell: list[Difference]
    failures: list[str] = field(default_factory=list)

    @property
    def is_true(self) -> bool:
        return not self.failures and not any(difference.found for difference in self.decide)

    def lines(self) -> list[str]:
        """The table, and the line that says it all."""
        width = max(len(text) for text in (*self.faults, *self.figures)) + 2
        found = [f"{kind:{width}}{count:>12,}" for kind, count in sorted(self.faults.items())]
        found += ["", *(f"{what:{width}}{count:>12,}" for what, count in self.figures.items()), ""]
        found += [f"{'compared':44}{'sums':>8}{'differ':>8}{'by':>14}"]
        for one in (*self.decide, *self.tell):
            note = "" if one in self.decide else "  (told only)"
            found.append(
                f"{one.what:44}{one.compared:>8,}{len(one.found):>8,}{one.amount:>14,} {one.unit}{note}"
            )
            shown = sorted(one.found.items(), key=str)[:5]
            found += [f"    {key}: booked {booked}, true {true}" for key, (booked, true) in shown]
        by_unit = {unit: sum(d.amount for d in self.decide if d.unit == unit) for unit in UNITS}
        found += ["", *self.failures]
        return [*found, "difference: " + ", ".join(f"{by_unit[unit]} {unit}" for unit in UNITS)]


def run(seed: int, faults: int, folder: Path, say: Callable[[str], None], brokers: int = 1) -> Report:
    """One whole run in a folder of its own. Several brokers move what they lead to one another."""
    command = java_command()
    if command is None:
        pytest.skip(
            "needs java here: a broker in a container can be neither killed nor frozen like a process"
        )
    scene = Scene(folder, command, seed, brokers)
    began = time.monotonic()

    def phase(name: str) -> None:
        say(f"{time.monotonic() - began:6.1f} s since the start: {name}")

    try:
        scene.start()
        injection = Injection(scene.settings)
        phase("chaos")
        chaos = Chaos(scene, plan(seed, faults, kinds(scene)), injection, say)
        chaos.run()
        phase("healing")
        _heal(scene)
        phase("closing")
        edge_ms = _close(scene)
        phase("comparing")
        return _report(scene, chaos, injection, edge_ms)
    finally:
        scene.stop()


def _heal(scene: Scene) -> None:
    """Until every process serves, every pool's figures move again, and nothing waits in a spool."""
    scene.until(scene.kafka_is_whole, "Kafka answers again", HEAL_S)
    running = [member for member in scene.members.values() if member.wanted]
    scene.until(lambda: all(member.look() for member in running), "every process serves again", HEAL_S)
    calm_from_s = time.time()

    def is_calm() -> bool:
        spooled = [m.look().get((names.SPOOL_BYTES.name, ())) for m in scene.collectors.values()]
        return _windows_end_s(scene) > calm_from_s + CALM_S and all(waiting == 0 for waiting in spooled)

    scene.until(is_calm, f"the figures go on past {calm_from_s + CALM_S:.0f} and no row waits", HEAL_S)


def _close(scene: Scene) -> int:
    """Stop the collectors, and return the edge before which everything is booked: all they have read."""
    for member in scene.collectors.values():
        member.stop()
    scene.until(
        lambda: not any(m.runs for m in scene.collectors.values()), "the collectors have ended", HEAL_S
    )
    edge_ms = (read_raw(scene.settings, unix_ms()).newest_ms // WINDOW_MS + 1) * WINDOW_MS
    later_s = edge_ms / 1000 + WINDOW_S
    scene.until(
        lambda: _windows_end_s(scene) >= later_s, "the windows of the last readings are closed", HEAL_S
    )
    return edge_ms


def _windows_end_s(scene: Scene) -> float:
    """Up to where each pool's windows are closed and committed; 0 if some pool has none."""
    ends: dict[tuple[str, str], float] = {}
    for member in scene.processors.values():
        for (name, labels), value in member.look().items():
            if name == names.WINDOW_END.name:
                where = dict(labels)
                ends[where["site"], where["pool"]] = value
    return min(ends.values()) if len(ends) == len(SITES) * len(POOLS) else 0.0


def _report(scene: Scene, chaos: Chaos, injection: Injection, edge_ms: int) -> Report:
    settings = scene.settings
    raw = read_raw(settings, unix_ms())
    ledger, ledger_ends = read_ledger(settings)
    usage, usage_ends = read_usage(settings)
    ends = {topics.LEDGER: ledger_ends, topics.USAGE: usage_ends}
    scene.until(lambda: _is_priced(scene, ends), "the economy has read the ledger and the usage", HEAL_S)
    decide, tell = compare_ledger(ledger, metered(raw, settings, edge_ms), edge_ms)
    factories = {
        site: Factory(seed, scene.start_ms, site=site, outage_every_s=OUTAGE_EVERY_S)
        for site, seed in scene.seeds.items()
    }
    decide += compare_factory(raw, ledger, factories)
    booked: Counter[tuple[object, ...]] = Counter()
    names_ = ("site", "pool", "window_start_ms", "model_name", "kind", "state", "part", "demand", "currency")
    rows = read_money(settings)
    for row in rows:
        if row["window_start_ms"] < edge_ms:
            booked[tuple(row[name] for name in names_)] += row["amount_micro"]
    true = {
        key: (amount,)
        for key, amount in money(
            ledger, read_book(scene.folder / "book.toml"), settings.process.min_tokens
        ).items()
        if key[2] < edge_ms
    }
    decide.append(
        compare(
            "money per pool, window, model and kind",
            "micro-units",
            {k: (v,) for k, v in booked.items()},
            true,
        )
    )
    spent = read_spent(settings)
    decide += compare_usage(usage, spent, PRICES, TIERS[0])
    members = list(scene.members.values())
    unaccounted = [
        (member.name, labels, value)
        for member in scene.processors.values()
        for (name, labels), value in member.look().items()
        if name == names.UNACCOUNTED.name and value
    ]
    logged = Counter(event.get("event") for member in members for event in member.events())
    failures = [failure for member in members for failure in member.failures]
    failures += [f"unaccounted joules: {found}" for found in unaccounted]
    failures += [f"logged {logged[event]} times: {event}" for event in sorted(NEVER_LOGGED & set(logged))]
    figures = {
        "rows read from the raw topics": raw.rows,
        "of these accepted, repeats included": len(raw.gpus) + len(raw.engines),
        "of these behind newer ones": raw.disordered,
        "messages injected": injection.count,
        "rows in the ledger": len(ledger),
        "rows of money": len(rows),
        "rows of what consumers spent": len(spent),
        "rows that amended a closed window": sum(m.total(names.LATE_ROWS) for m in members),
        "messages rejected": sum(m.total(names.REJECTED_MESSAGES) for m in members),
        "rewinds": sum(m.total(names.REWINDS) for m in members),
        "rows dropped by spools": sum(m.total(names.DROPPED_ROWS) for m in members),
    }
    return Report(chaos.done, figures, decide, tell, failures)


def _is_priced(scene: Scene, ends: dict[str, dict[int, int]]) -> bool:
    """Whether the economy has committed its inputs up to where each partition ended."""
    group = f"{scene.settings.process.group}-economy"
    try:
        with scene.brokers[0].admin() as admin:
            offsets = admin.list_group_offsets(group)[group]
    except (KafkaError, LogUnavailableError):
        return False
    at = {(tp.topic, tp.partition): found.offset for tp, found in offsets.items()}
    return all(at.get((topic, n), 0) >= end for topic, found in ends.items() for n, end in found.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--brokers", type=int, default=1, help="3: what they lead moves from one to another")
    parser.add_argument("--keep", type=Path, help="an empty folder for logs; a temporary one if left out")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="idlewatt-chaos-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report = run(
                arguments.seed,
                arguments.faults,
                folder,
                lambda line: print(line, flush=True),
                arguments.brokers,
            )
        except pytest.skip.Exception as skipped:
            print(f"chaos: {skipped}", file=sys.stderr)
            return 2
    print(f"\nseed {arguments.seed}, {arguments.faults} faults, {time.monotonic() - began:.0f} s\n")
    print("\n".join(report.lines()))
    return 0 if report.is_true else 1


if __name__ == "__main__":
    sys.exit(main())
