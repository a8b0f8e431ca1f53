"""Tells at the end what could not run and what mends it; with IDLEWATT_NO_SKIPS=1 a skip fails the run."""

import os
from collections import Counter

import pytest

_NO_SKIPS = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    # taken out, because the command under test refuses variables it does not know
    config.stash[_NO_SKIPS] = os.environ.pop("IDLEWATT_NO_SKIPS", "") not in ("", "0")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = _reasons(terminalreporter)
    if reasons:
        terminalreporter.section("not run")
        for reason, count in reasons.items():
            terminalreporter.line(f"{count} test{'s' if count > 1 else ''}: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.stash[_NO_SKIPS] and reporter is not None and _reasons(reporter):
        reporter.line("\nIDLEWATT_NO_SKIPS is set: a skipped test fails the run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reasons(reporter: pytest.TerminalReporter) -> Counter[str]:
    """How many tests were skipped for each reason; the reason says what mends it."""
    reasons: Counter[str] = Counter()
    for report in reporter.stats.get("skipped", ()):
        where = report.longrepr
        reasons[where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else str(where)] += 1
    return reasons
