"""The SQLite file of the embedded log: opening it, its tables, and waking whoever waits for messages.

WAL lets readers and the one writer work at the same time; it needs a local file system, not NFS.
"""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from idlewatt.stream.errors import ConfigError, IdlewattError, LogUnavailableError

# A writer waits this long for another writer; the longest a writer holds the file is one commit.
BUSY_TIMEOUT_S: Final = 10.0

# "IDLW": tells our files from other SQLite databases
_APPLICATION_ID: Final = 0x49444C57
# 2: values are compressed by zstd
_VERSION: Final = 2
# SQLite's primary result codes of what passes, and how
_PASSING: Final = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    # what a full disk is said to be where the file of the shared memory cannot grow
    sqlite3.SQLITE_IOERR: "make room on its disk, which must be a local one",
    # of the files that SQLite makes beside it: the file itself was opened before
    sqlite3.SQLITE_CANTOPEN: "make room on its disk, inodes too, and let this user write in its folder",
    sqlite3.SQLITE_BUSY: "another program holds it: stop that, or try again",
}
_TABLES: Final = (
    # AUTOINCREMENT: an offset is never given twice, not even when retention has emptied the table
    """CREATE TABLE messages (
        "offset" INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL,
        appended_ms INTEGER NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL)""",
    'CREATE INDEX messages_of_topic ON messages (topic, "offset")',
    # `commits` counts up with every commit, so that of two processes on one stage only one can move it on
    "CREATE TABLE stages (stage TEXT PRIMARY KEY, commits INTEGER NOT NULL, snapshot BLOB) WITHOUT ROWID",
    """CREATE TABLE resume (
        stage TEXT NOT NULL,
        topic TEXT NOT NULL,
        "offset" INTEGER NOT NULL,
        PRIMARY KEY (stage, topic)) WITHOUT ROWID""",
)


def open_file(path: str | Path) -> sqlite3.Connection:
    """Open the log for reading and writing, and create it if there is none. Raises ConfigError, LogUnavailableError."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"log.path: the folder of {path.absolute()} does not exist; make it or name another file"
        )
    try:
        connection = _connect(str(path))
    except sqlite3.Error as error:
        raise ConfigError(f"log.path: {path} cannot be opened: {error}") from error
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _fault(f"log.path: {path} cannot hold the log: {error}", error, "name another file") from error
    except ConfigError:
        connection.close()
        raise
    return connection


def open_readonly(path: str | Path) -> sqlite3.Connection:
    """Open an existing log for reading. Raises ConfigError, LogUnavailableError."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"log.path: there is no file {path.absolute()}; if the log is elsewhere, name its configuration "
            "with --config or IDLEWATT_CONFIG"
        )
    try:
        connection = _connect(f"{path.absolute().as_uri()}?mode=ro")
    except sqlite3.Error as error:
        raise ConfigError(f"log.path: {path} cannot be opened: {error}") from error
    try:
        if _is_new(connection, path):
            raise ConfigError(f"log.path: there is nothing in {path} yet")
    except sqlite3.Error as error:
        connection.close()
        raise _fault(f"log.path: {path} cannot be read: {error}", error, "name the log's file") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _fault(what: str, error: sqlite3.Error, mend: str) -> IdlewattError:
    """`mend` is for a file that can never work: whoever names another one has empty books beside those that are there."""
    # our own have no code, and are of what does not pass
    passing = _PASSING.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    return ConfigError(f"{what}; {mend}") if passing is None else LogUnavailableError(f"{what}; {passing}")


def hold_stage(path: str | Path, stage: str) -> int | None:
    """A descriptor that keeps other processes from this stage on the file, until it is closed or this process ends.

    None where that cannot be had: then the commits alone decide. Raises ConfigError where another process runs it.
    """
    descriptor = None
    try:
        # of a name of its own: SQLite locks the file itself, and would lose that with any descriptor that is closed
        descriptor = os.open(f"{Path(path).resolve()}-{stage}.lock", os.O_RDWR | os.O_CREAT, 0o640)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise ConfigError(
                f"log.path: another process runs stage {stage} on {path}: stop it, name another file, or let "
                'processes share by Kafka (log.kind = "kafka")'
            ) from error
        return None
    return descriptor


def _connect(name: str) -> sqlite3.Connection:
    # Each user of a connection keeps to one thread at a time, but may be closed from another.
    return sqlite3.connect(
        name,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        uri=name.startswith("file:"),
    )


def make_durable(connection: sqlite3.Connection, durable: bool) -> None:
    """Whether the transactions that follow outlive the end of the machine, too, and not of the process alone."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # before anything is written: a file of another program stays as it is
    is_new = _is_new(connection, path)
    _switch_to_wal(connection)
    # In WAL mode NORMAL loses nothing when the process dies. When the machine does, the newest transactions
    # may go, each of them whole: output, state and offsets still agree, and raw rows carry cumulative
    # counters, so that a lost one costs resolution only. FULL would pay an fsync for every message.
    make_durable(connection, False)
    connection.execute("PRAGMA journal_size_limit = 67108864")
    if is_new:
        with transaction(connection):
            # another process may have been quicker
            if _is_new(connection, path):
                for statement in _TABLES:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
    else:
        # says now whether the file can be written
        with transaction(connection):
            connection.execute(f"PRAGMA user_version = {_VERSION}")


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there is nothing in the file yet. Raises ConfigError if there is something that is no log of ours."""
    # one statement sees one moment of the file, so that never half of what another process creates is taken for
    # another program's
    application_id, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema) "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application_id == 0 and tables == 0:
        return True
    if application_id != _APPLICATION_ID:
        raise ConfigError(f"log.path: {path} is another program's database; name another file")
    if version != _VERSION:
        raise ConfigError(
            f"log.path: {path} has log version {version}, this Idlewatt knows {_VERSION}: "
            "upgrade Idlewatt or name another file"
        )
    return False


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # SQLite answers "locked" at once when two processes switch a new file at the same time.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError(f"its file system has no shared memory (journal mode {mode})")
        return


@contextmanager
def transaction(connection: sqlite3.Connection, mode: str = "IMMEDIATE") -> Iterator[None]:
    """All of it or nothing. DEFERRED reads one moment of the file without holding up writers."""
    connection.execute(f"BEGIN {mode}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite ends some failed transactions by itself (a full disk)
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Bell:
    """Rung when this process has written to the file, so that readers need not look again and again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0

    @property
    def rings(self) -> int:
        """Read it before looking into the file, then wait for it to change."""
        return self._rings

    def ring(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, rings: int, timeout_s: float) -> None:
        """Return when the bell has rung since `rings` was read, or after `timeout_s`."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings != rings, timeout_s)


_bells: dict[Path, Bell] = {}


def bell_of(path: str | Path) -> Bell:
    """The one bell of this file in this process."""
    return _bells.setdefault(Path(path).resolve(), Bell())
