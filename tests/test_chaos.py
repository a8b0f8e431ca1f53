"""Truth under fire, a short one: `make chaos` runs longer ones."""

from pathlib import Path

import pytest
from chaos import run

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

SEED = 7
FAULTS = 30


def test_the_ledger_equals_the_truth_whatever_was_killed_frozen_filled_or_injected(tmp_path: Path) -> None:
    """After 30 faults of all kinds every joule, token and micro-unit is booked once, and no process ended by itself."""
    said: list[str] = []
    report = run(SEED, FAULTS, tmp_path, said.append)
    table = "\n".join([*said, *report.lines()])
    assert sum(report.faults.values()) == FAULTS, table
    # every kind there is, but for the disks where nothing can be mounted
    assert len(report.faults) >= 14, table
    # the run shows something: rows were refused, late ones amended, and the sums compared are many
    assert report.figures["messages rejected"], table
    assert report.figures["rows that amended a closed window"], table
    assert all(difference.compared for difference in report.decide), table
    assert report.is_true, table
