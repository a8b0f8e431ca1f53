"""Who asks the simulated engines for tokens: functions, teams, agent families and people, and the tiers they buy."""

import bisect
import itertools
import random
from typing import Final, NamedTuple


class SimulatedConsumer(NamedTuple):
    """One set of names that tokens are spent under; empty where nobody knows it."""

    function: str = ""
    team: str = ""
    agent_family: str = ""
    engineer: str = ""
    tier: str = ""


# went past the gateway
UNKNOWN: Final = SimulatedConsumer()


def _person(team: str, engineer: str) -> SimulatedConsumer:
    return SimulatedConsumer("engineering", team, "", engineer, "standard")


def _agents(function: str, team: str, family: str, tier: str = "standard") -> SimulatedConsumer:
    return SimulatedConsumer(function, team, family, "", tier)


# Pool -> consumers and their shares of its tokens, in percent. The sample book has a price for each, and envelopes
# for some.
SHARES: Final[dict[str, tuple[tuple[SimulatedConsumer, int], ...]]] = {
    "chat": (
        (SimulatedConsumer("sales", "assistant", tier="free"), 30),
        (SimulatedConsumer("sales", "assistant", tier="standard"), 40),
        (_agents("support", "helpdesk", "support-triage"), 14),
        (_agents("support", "helpdesk", "support-drafts"), 9),
        (UNKNOWN, 7),
    ),
    "code": (
        (_person("platform", "ada"), 24),
        (_person("platform", "grace"), 14),
        (_person("product", "linus"), 19),
        (_person("product", "new-margaret"), 11),
        (_agents("engineering", "product", "code-review"), 26),
        (UNKNOWN, 6),
    ),
    "agents": (
        (_agents("research", "insights", "deep-research", "premium"), 45),
        (_agents("finance", "controlling", "invoice-reader"), 25),
        (_agents("engineering", "platform", "test-writer"), 25),
        (UNKNOWN, 5),
    ),
}


def known_consumers(pool: str) -> list[SimulatedConsumer]:
    """Those of a pool that its gateway knows."""
    return [consumer for consumer, _ in SHARES.get(pool, ()) if consumer != UNKNOWN]


class Asking:
    """Draws who asked for the tokens of an engine's tick. Who asks of a pool that is not in SHARES is unknown."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bounds = {
            pool: list(itertools.accumulate(percent for _, percent in shares))
            for pool, shares in SHARES.items()
        }

    def draw(self, pool: str) -> SimulatedConsumer:
        bounds = self._bounds.get(pool)
        if bounds is None:
            return UNKNOWN
        return SHARES[pool][bisect.bisect_right(bounds, self._rng.random() * bounds[-1])][0]
