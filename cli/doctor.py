"""`idlewatt doctor`: looks at every part that is needed and says, a line each, what it saw and what to do."""

import errno
import http.client
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from idlewatt.cli.config import FILE_VARIABLE, load_settings
from idlewatt.cli.doctor_sources import Finding, source_findings
from idlewatt.cli.doctor_spool import spool_finding
from idlewatt.cli.exit_codes import ExitCode
from idlewatt.stream import topics
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import ConfigError, IdlewattError, UnreadableMessageError
from idlewatt.stream.metrics_server import MetricsServer, PortTakenError
from idlewatt.stream.settings import Settings

# Clocks that a time service keeps are within milliseconds; file systems stamp to the second or better.
_CLOCK_TOLERANCE_MS: Final = 2_000
_HTTP_TIMEOUT_S: Final = 2.0
_PROBE_BYTES: Final = 1 << 20
_TOPICS_AND_RIGHTS: Final = 'see "Topics and rights" in docs/architecture.md'


def examine(config: Path | None, environ: Mapping[str, str]) -> ExitCode:
    """Print every finding as it comes; WRONG_USE if settings or book are wrong, else UNREACHABLE if one is FAIL."""
    failed = set()
    for finding in _findings(config, environ):
        print(finding, flush=True)
        if finding.level == "FAIL":
            failed.add(finding.part)
    # without a good book nothing starts either
    if failed & {"config", "book"}:
        return ExitCode.WRONG_USE
    return ExitCode.UNREACHABLE if failed else ExitCode.OK


def _findings(config: Path | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        settings = load_settings(config, environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("FAIL", "config", line)
        return
    yield Finding("ok", "config", str(config or environ.get(FILE_VARIABLE) or "no file: defaults"))
    yield from _book(settings)
    yield from _gpus(settings)
    yield from source_findings(settings)
    if settings.log.kind == "kafka":
        yield from _kafka(settings)
        yield spool_finding(settings)
    else:
        yield from _file(settings)
    yield _port(settings)


def _book(settings: Settings) -> Iterator[Finding]:
    if settings.economy.book is None:
        return
    from idlewatt.processors.economy.book_file import read_book

    try:
        book = read_book(Path(settings.economy.book))
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("FAIL", "book", line)
        return
    seen = f"{len(book.price)} prices and {len(book.envelope)} budgets in {book.currency}"
    yield Finding("ok", "book", f"{settings.economy.book}: {seen}")


def _gpus(settings: Settings) -> Iterator[Finding]:
    if settings.collect.gpu != "nvml":
        yield Finding("ok", "gpu", f"collect.gpu is {settings.collect.gpu}: no driver is needed")
        return
    from idlewatt.collectors.nvml_probe import probe_driver

    for ok, seen, mend in probe_driver():
        yield Finding(("warn" if mend else "ok") if ok else "FAIL", "gpu", seen, mend)


def _kafka(settings: Settings) -> Iterator[Finding]:
    from idlewatt.stream.kafka_probe import missing_topics, newest_messages
    from idlewatt.stream.kafka_topics import examine_topics

    servers = settings.log.bootstrap_servers
    try:
        missing = missing_topics(settings.log)
        if missing:
            yield Finding(
                "warn",
                "log",
                f"Kafka answers at {servers} and lacks {', '.join(sorted(missing))}, or hides them from this user",
                "run, collect and process create what they need, if the brokers let them",
            )
        else:
            yield Finding("ok", "log", f"Kafka answers at {servers} and has all {len(topics.ALL)} topics")
        found = examine_topics(settings.log, settings.process, set(topics.ALL) - missing)
    except IdlewattError as error:
        yield Finding("FAIL", "log", str(error))
        return
    yield from (Finding("FAIL", "log", fault) for fault in found.faults)
    yield from (Finding("warn", "log", rival, "a collector need not") for rival in found.rivals)
    yield from (Finding("warn", "log", doubt, _TOPICS_AND_RIGHTS) for doubt in found.doubts)
    if found.hidden:
        hidden = ", ".join(found.hidden)
        seen = f"this user may not see the settings, or what a processor has to see, of {hidden}"
        yield Finding("warn", "log", seen, f"a collector need not; {_TOPICS_AND_RIGHTS}")
    try:
        newest = [
            (message.appended_ms, message.value)
            for topic in (topics.GPU, topics.ENGINE)
            if topic not in missing
            for message in newest_messages(settings.log, topic)
        ]
    except ConfigError as error:
        yield Finding("warn", "clock", f"clocks cannot be compared: {error}", "a collector need not")
    except IdlewattError as error:
        yield Finding("FAIL", "log", str(error))
    else:
        yield from _broker_clock(settings, newest)


def _broker_clock(settings: Settings, newest: list[tuple[int, bytes]]) -> Iterator[Finding]:
    """The broker stamps what comes in with its own clock; rows carry their sender's."""
    if not newest:
        yield Finding(
            "warn", "clock", "no rows in Kafka yet to compare clocks by", "ask again when they come"
        )
        return
    behind_ms = max(appended_ms for appended_ms, _ in newest) - unix_ms()
    if behind_ms > _CLOCK_TOLERANCE_MS:
        yield Finding("FAIL", "clock", f"this clock is {_s(behind_ms)} behind the brokers'", _SYNC)
    grace_ms = settings.process.grace_s * 1000
    skewed = False
    for appended_ms, value in newest:
        try:
            frame = decode(value)[1]
        except UnreadableMessageError:
            # the processors reject and count it; it tells no time
            continue
        ahead_ms = frame.get_column("ts_ms").max()
        ahead_ms = int(ahead_ms) - appended_ms if isinstance(ahead_ms, int) else 0
        if ahead_ms > _CLOCK_TOLERANCE_MS:
            skewed = True
            node = frame.get_column("node")[0]
            refused = "refused" if ahead_ms > grace_ms else "soon refused"
            seen = f"the clock of {node} is {_s(ahead_ms)} ahead of the brokers', its rows are {refused}"
            yield Finding("FAIL" if ahead_ms > grace_ms else "warn", "clock", seen, _SYNC)
    if not skewed and behind_ms <= _CLOCK_TOLERANCE_MS:
        yield Finding("ok", "clock", f"this clock and those of {len(newest)} senders agree with the brokers'")


def _file(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.log.path)
    folder = path.absolute().parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".idlewatt-doctor-") as probe:
            # an empty file can be made on a full disk
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
            before_ms = unix_ms()
            os.utime(probe.name)
            skew_ms = round(Path(probe.name).stat().st_mtime * 1000) - before_ms
        if path.exists():
            from idlewatt.stream.embedded_file import open_file

            open_file(path).close()
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied")
    except IdlewattError as error:
        yield Finding("FAIL", "log", str(error))
        return
    except OSError as error:
        mend = "name a folder this user may write to with log.path (IDLEWATT_LOG__PATH)"
        if error.errno == errno.ENOSPC:
            mend = "make room on its disk"
        yield Finding("FAIL", "log", f"{path} cannot be written to: {error.strerror}", mend)
        return
    yield Finding(
        "ok", "log", f"{path} {'is ours' if path.exists() else 'can be made'} and can be written to"
    )
    if abs(skew_ms) > _CLOCK_TOLERANCE_MS:
        seen = f"the file system of {folder} is {_s(abs(skew_ms))} {'ahead' if skew_ms > 0 else 'behind'}"
        yield Finding("FAIL", "clock", seen, _SYNC)
    else:
        yield Finding(
            "ok", "clock", f"this clock agrees with the file system, {time.strftime('%FT%TZ', time.gmtime())}"
        )


_SYNC: Final = "let a time service (chrony, systemd-timesyncd) keep the clocks of all hosts"


def _s(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s"


def _port(settings: Settings) -> Finding:
    host, port = settings.serve.host, settings.serve.port
    server = MetricsServer(host, port, bytes)
    try:
        server.start()
    except PortTakenError as error:
        if _is_idlewatt(server.url, port):
            return Finding("warn", "port", f"an Idlewatt serves {server.url} already")
        return Finding("FAIL", "port", str(error))
    except ConfigError as error:
        return Finding("FAIL", "port", str(error))
    server.stop()
    return Finding("ok", "port", f"{server.url} is free" if port else "serve.port is 0: any free port")


def _is_idlewatt(url: str, port: int) -> bool:
    connection = http.client.HTTPConnection(
        url.removeprefix("http://").partition("/")[0], timeout=_HTTP_TIMEOUT_S
    )
    try:
        connection.request("GET", "/metrics")
        return b"idlewatt_" in connection.getresponse().read(1 << 20)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
