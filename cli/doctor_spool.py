"""What `idlewatt doctor` says of the spool in which a collector keeps rows while Kafka is away."""

from idlewatt.cli.doctor_sources import Finding
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.settings import Settings
from idlewatt.stream.spool_probe import probe_spool


def spool_finding(settings: Settings) -> Finding:
    """The line on the part spool: may rows be kept there, is there room, does anything wait."""
    path, bound = settings.collect.spool_path, settings.collect.spool_max_bytes
    try:
        found = probe_spool(path)
    except ConfigError as error:
        return Finding("FAIL", "spool", str(error))
    if found.waiting_bytes and not found.is_in_use:
        seen = f"{_mb(found.waiting_bytes)} wait in {path} and no collector sends them"
        return Finding("warn", "spool", seen, "start idlewatt collect with this collect.spool_path")
    missing = bound - found.waiting_bytes - found.free_bytes
    if missing > 0:
        seen = f"the disk of {path} lacks {_mb(missing)} for the {_mb(bound)} it may take"
        return Finding("warn", "spool", seen, "make room, or lower collect.spool_max_bytes")
    if found.waiting_bytes:
        seen = f"{_mb(found.waiting_bytes)} of {_mb(bound)} wait in {path}"
        return Finding("warn", "spool", seen, "its collector sends them when Kafka takes them; ask again")
    return Finding("ok", "spool", f"{path} can hold {_mb(bound)}, nothing waits in it")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
