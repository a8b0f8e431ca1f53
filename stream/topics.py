"""Topic names and message keys.

Raw rows are keyed by site and pool, so that the joules and tokens that belong together meet in one
partition; ledger, usage and money rows by site, so that a site's pools and consumers do.
"""

from typing import Final

from idlewatt.stream.clock import DAY_MS, HOUR_MS

GPU: Final = "idlewatt.gpu"
ENGINE: Final = "idlewatt.engine"
USAGE: Final = "idlewatt.usage"
LEDGER: Final = "idlewatt.ledger"
MONEY: Final = "idlewatt.money"
STATE: Final = "idlewatt.state"
REJECTED: Final = "idlewatt.rejected"

ALL: Final = (GPU, ENGINE, USAGE, LEDGER, MONEY, STATE, REJECTED)
# what collectors send
RAW: Final = (GPU, ENGINE, USAGE)
# One message: topics and producers agree on it. Brokers take requests of up to 100 MB; snapshots are cut small.
MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
RAW_RETENTION_MS: Final = 3 * DAY_MS
# How long the id of an event of usage is remembered; older events are refused, lest one counts twice.
EVENT_HORIZON_MS: Final = 48 * HOUR_MS
LEDGER_RETENTION_MS: Final = 400 * DAY_MS
# idlewatt.state is compacted instead
RETENTION_MS: Final = {
    GPU: RAW_RETENTION_MS,
    ENGINE: RAW_RETENTION_MS,
    USAGE: RAW_RETENTION_MS,
    REJECTED: RAW_RETENTION_MS,
    LEDGER: LEDGER_RETENTION_MS,
    MONEY: LEDGER_RETENTION_MS,
}


def pool_key(site: str, pool: str) -> bytes:
    """Key of raw rows: one partition holds all of a pool."""
    return f"{site}/{pool}".encode()


def site_key(site: str) -> bytes:
    """Key of usage, ledger and money rows: one partition holds all of a site."""
    return site.encode()
