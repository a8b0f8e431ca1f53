"""What only the embedded log promises: it survives the death of its process, and shares its file."""

import errno
import fcntl
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stage_reader import StageReader

from idlewatt.stream import topics
from idlewatt.stream.embedded_file import open_file, open_readonly
from idlewatt.stream.embedded_log import EmbeddedAppender, EmbeddedStageLog, read_messages
from idlewatt.stream.errors import ConfigError, LogUnavailableError, RewindError
from idlewatt.stream.log import Commit, Record

DAY_MS = 86_400_000


def gpu(value: bytes) -> Record:
    return Record(topics.GPU, b"site/rack", value)


def stage(path: Path, name: str = "meter") -> StageReader:
    return StageReader(EmbeddedStageLog(path, name, (topics.GPU, topics.ENGINE)))


def values(path: Path, topic: str) -> list[bytes]:
    return [message.value for message in read_messages(path, topic)]


COMMIT_AND_DIE = """
    import os, signal, sys
    from idlewatt.stream.embedded_log import EmbeddedStageLog
    from idlewatt.stream.log import Commit, Record

    log = EmbeddedStageLog(sys.argv[1], "meter", ("idlewatt.gpu",))
    while not (messages := log.poll(1.0).messages):
        pass
    log._connection.set_progress_handler(lambda: os.kill(os.getpid(), signal.SIGKILL), int(sys.argv[2]))
    records = [Record("idlewatt.ledger", b"site", b"row")] * 20
    log.commit(Commit(records, {0: b"new"}, {("idlewatt.gpu", 0): messages[-1].offset + 1}))
"""


def test_a_commit_that_is_killed_did_not_happen(tmp_path: Path) -> None:
    """Killed at any step of the commit, neither output nor state nor offsets of it remain."""
    survived = []
    for instructions in (1, 20, 50, 100, 200, 400, 100_000):
        path = tmp_path / f"{instructions}.db"
        appender = EmbeddedAppender(path)
        appender.append([gpu(b"a")])
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(COMMIT_AND_DIE), str(path), str(instructions)],
            check=False,
            timeout=30,
        )
        survived.append(child.returncode == 0)
        assert child.returncode in (0, -signal.SIGKILL)
        after = stage(path)
        if survived[-1]:
            after.until_assigned_and_caught_up()
            assert after.snapshots == {0: b"new"}
            assert values(path, topics.LEDGER) == [b"row"] * 20
        else:
            after.until_values({b"a"})
            assert after.snapshots == {0: None}
            assert values(path, topics.LEDGER) == []
        after.log.close()
        appender.close()
    assert survived[0] is False
    assert survived[-1] is True


COMMIT_FOREVER = """
    import sys
    from idlewatt.stream.embedded_log import EmbeddedStageLog
    from idlewatt.stream.log import Commit, Record

    log = EmbeddedStageLog(sys.argv[1], "meter", ("idlewatt.gpu",))
    state = log.poll(0).assigned[0]
    number = int(state.partition(b" ")[0]) if state else 0
    while True:
        number += 1
        row = Record("idlewatt.ledger", b"site", b"%d" % number)
        log.commit(Commit([row], {0: b"%d " % number + bytes(50_000)}, {("idlewatt.gpu", 0): number}))
        print(number, flush=True)
"""


def test_what_was_committed_outlives_a_kill(tmp_path: Path) -> None:
    """Killed at a random moment, everything whose commit had returned is there, and all of it agrees."""
    path = tmp_path / "log.db"
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(COMMIT_FOREVER), str(path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            said = [int(child.stdout.readline()) for _ in range(40)][-1]
            child.kill()
            said = max([said, *(int(line) for line in child.stdout.read().split())])
        ledger = [int(value) for value in values(path, topics.LEDGER)]
        assert ledger == list(range(1, len(ledger) + 1))
        assert len(ledger) >= said
        reader = stage(path)
        reader.until_assigned(1)
        state = reader.snapshots[0]
        assert state is not None
        assert int(state.partition(b" ")[0]) == len(ledger)
        with sqlite3.connect(path) as connection:
            assert connection.execute(
                'SELECT "offset" FROM resume WHERE topic = ?', (topics.GPU,)
            ).fetchone() == (len(ledger),)
        reader.log.close()


def test_usage_outlives_the_machine(tmp_path: Path) -> None:
    """Whoever posts an event is told that no crash takes it; readings of counters need no such care."""
    appender = EmbeddedAppender(tmp_path / "log.db")
    said: list[str] = []
    appender._connection.set_trace_callback(said.append)
    for topic, synchronous in ((topics.GPU, "NORMAL"), (topics.USAGE, "FULL"), (topics.GPU, "NORMAL")):
        said.clear()
        appender.append([Record(topic, b"site", b"a")])
        assert [one.rpartition(" ")[2] for one in said if "synchronous" in one] == [synchronous]
        assert "synchronous" in said[0]
        assert said[-1] == "COMMIT"
    appender.close()


def test_a_commit_the_file_refuses_rewinds(tmp_path: Path) -> None:
    """When SQLite fails in a commit, nothing of it remains and the partition is handed out from the last one."""
    path = tmp_path / "log.db"
    appender = EmbeddedAppender(path)
    appender.append([gpu(b"a")])
    reader = stage(path)
    reader.until_values({b"a"})
    assert isinstance(reader.log, EmbeddedStageLog)
    pages = reader.log._connection.execute("PRAGMA page_count").fetchone()[0]
    reader.log._connection.execute(f"PRAGMA max_page_count = {pages + 10}")  # a full disk
    with pytest.raises(RewindError, match=r"log\.path.*full"):
        reader.commit(bytes(1_000_000), (Record(topics.LEDGER, b"site", b"row"),))
    reader.until_values({b"a"})
    assert reader.snapshots == {0: None}
    assert values(path, topics.LEDGER) == []
    reader.commit(b"small", (Record(topics.LEDGER, b"site", b"row"),))
    assert values(path, topics.LEDGER) == [b"row"]
    reader.log.close()
    appender.close()


def test_a_read_that_fails_midway_is_done_again(tmp_path: Path) -> None:
    """What it had already taken when SQLite failed is not passed over."""
    path = tmp_path / "log.db"
    appender = EmbeddedAppender(path)
    expected = [b"%d" % n for n in range(20)]
    appender.append([gpu(value) for value in expected])
    appender.close()
    log = EmbeddedStageLog(path, "meter", (topics.GPU, topics.ENGINE))
    log.poll(0)
    failures = 0
    for instructions in range(1, 10_000, 5):
        log._connection.set_progress_handler(lambda: 1, instructions)
        try:
            found = log.poll(0)
            break
        except LogUnavailableError:
            failures += 1
    assert failures > 20
    assert [message.value for message in found.messages] == expected
    log.close()


def test_a_value_that_cannot_be_opened_ends_nothing(tmp_path: Path) -> None:
    """It comes as it is, for the stage to set aside."""
    path = tmp_path / "log.db"
    appender = EmbeddedAppender(path)
    appender.append([gpu(b"a"), gpu(b"b")])
    appender._connection.execute(
        'UPDATE messages SET value = x\'00\' WHERE "offset" = (SELECT min("offset") FROM messages)'
    )
    appender.close()
    reader = stage(path)
    reader.until_values({b"\0", b"b"})
    reader.log.close()


def test_two_processes_on_one_stage_count_nothing_twice(tmp_path: Path) -> None:
    """The one that commits second is sent back to the other's commit."""
    path = tmp_path / "log.db"
    appender = EmbeddedAppender(path)
    appender.append([gpu(b"a")])
    first, second = stage(path), stage(path)
    first.until_values({b"a"})
    second.until_values({b"a"})
    second.commit(b"second's", (Record(topics.LEDGER, b"site", b"a"),))
    with pytest.raises(RewindError, match="another process runs stage meter"):
        first.commit(b"first's", (Record(topics.LEDGER, b"site", b"a"),))
    appender.append([gpu(b"b")])
    first.until_values({b"b"})
    assert first.snapshots == {0: b"second's"}
    assert values(path, topics.LEDGER) == [b"a"]
    for reader in (first, second):
        reader.log.close()
    appender.close()


def test_a_stage_is_held_until_it_is_closed(tmp_path: Path) -> None:
    """Another process opens the stage then, and any other stage at any time."""
    path = tmp_path / "log.db"
    code = """
        import sys
        from idlewatt.stream.embedded_log import EmbeddedStageLog
        EmbeddedStageLog(sys.argv[1], sys.argv[2], ("idlewatt.gpu",)).poll(0)
    """

    def opens(name: str, where: Path = path) -> bool:
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(where), name], capture_output=True, check=False
        )
        assert child.returncode == 0 or b"another process runs stage meter on" in child.stderr
        return child.returncode == 0

    reader = stage(path)
    (tmp_path / "link.db").symlink_to(path)
    assert [opens("meter"), opens("meter", tmp_path / "link.db"), opens("economy")] == [False, False, True]
    reader.log.close()
    assert opens("meter")


def test_a_file_system_without_locks_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commits alone decide then."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", refused)
    reader = stage(tmp_path / "log.db")
    reader.until_assigned(1)
    reader.log.close()


def test_inputs_stay_side_by_side_while_catching_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a poll brings, messages of all inputs come in the order in which they were written."""
    path = tmp_path / "log.db"
    monkeypatch.setattr(EmbeddedStageLog, "POLL_MESSAGES", 7)
    appender = EmbeddedAppender(path)
    for i in range(50):
        topic = topics.GPU if i % 5 else topics.ENGINE
        appender.append([Record(topic, b"k", b"%d" % i), Record(topics.LEDGER, b"k", b"not an input")])
    reader = stage(path)
    reader.until(lambda: len(reader.messages) == 50)
    assert [int(m.value) for m in reader.messages] == list(range(50))
    reader.log.close()
    appender.close()


def test_a_poll_brings_bounded_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll stops at its bytes, and always brings at least one message."""
    path = tmp_path / "log.db"
    monkeypatch.setattr(EmbeddedStageLog, "POLL_BYTES", 1000)
    appender = EmbeddedAppender(path)
    appender.append([gpu(bytes(600)) for _ in range(4)] + [gpu(bytes(5000))])
    log = EmbeddedStageLog(path, "meter", (topics.GPU,))
    log.poll(0)
    assert [len(log.poll(0).messages) for _ in range(4)] == [2, 2, 1, 0]
    log.close()
    appender.close()


def test_threads_and_processes_share_the_file(tmp_path: Path) -> None:
    """Appends from two threads and another process while a stage reads and commits: each message comes once."""
    path = tmp_path / "log.db"
    child_code = """
        import sys
        from idlewatt.stream.embedded_log import EmbeddedAppender
        from idlewatt.stream.log import Record
        appender = EmbeddedAppender(sys.argv[1])
        for i in range(200):
            appender.append([Record("idlewatt.gpu", b"k", b"p%d" % i)])
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(child_code), str(path)])

    def append(name: bytes) -> None:
        appender = EmbeddedAppender(path)
        for i in range(200):
            appender.append([gpu(name + b"%d" % i)])
        appender.close()

    threads = [threading.Thread(target=append, args=(name,)) for name in (b"a", b"b")]
    for thread in threads:
        thread.start()
    reader = stage(path)
    expected = {name + b"%d" % i for name in (b"a", b"b", b"p") for i in range(200)}
    while {m.value for m in reader.messages} != expected:
        reader.poll()
        reader.commit(b"%d" % len(reader.messages), (Record(topics.LEDGER, b"site", b"x"),))
    for thread in threads:
        thread.join()
    assert child.wait(30) == 0
    assert len(reader.messages) == 600
    reader.log.close()


def test_another_process_wakes_a_poll(tmp_path: Path) -> None:
    """A message of another process is noticed although it rings no bell here."""
    path = tmp_path / "log.db"
    reader = stage(path)
    reader.until_assigned_and_caught_up()
    code = f"""
        from idlewatt.stream.embedded_log import EmbeddedAppender
        from idlewatt.stream.log import Record
        EmbeddedAppender({str(path)!r}).append([Record("idlewatt.gpu", b"k", b"a")])
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    assert [m.value for m in reader.log.poll(30.0).messages] == [b"a"]
    assert child.wait(30) == 0
    reader.log.close()


def test_many_processes_may_create_the_file(tmp_path: Path) -> None:
    """Processes that open a new log at the same moment all succeed."""
    path = tmp_path / "log.db"
    code = "import sys; from idlewatt.stream.embedded_file import open_file; open_file(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(6)]
    assert [child.wait(60) for child in children] == [0] * 6


def test_threads_that_create_one_file_never_see_half_of_it(tmp_path: Path) -> None:
    """Whoever looks while another creates the tables sees nothing or all of them, never a stranger's file."""
    for i in range(40):
        path = tmp_path / f"{i}.db"
        start = threading.Barrier(4)

        def create(path: Path = path, start: threading.Barrier = start) -> None:
            start.wait()
            open_file(path).close()

        with ThreadPoolExecutor(4) as pool:
            for created in [pool.submit(create) for _ in range(4)]:
                created.result()


def test_old_messages_go_but_none_that_is_unread(tmp_path: Path) -> None:
    """Retention deletes by topic and age, and never what a stage has not read past in a commit."""
    path = tmp_path / "log.db"
    now_ms = [1_000 * DAY_MS]
    appender = EmbeddedAppender(path, clock=lambda: now_ms[0])
    reader = stage(path)
    reader.until_assigned(1)
    appender.append([gpu(b"read"), gpu(b"unread"), Record(topics.LEDGER, b"site", b"row")])
    reader.until_values({b"read", b"unread"})
    reader.log.commit(Commit((), {0: b"s"}, {(topics.GPU, 0): reader.messages[0].offset + 1}))

    now_ms[0] += 2 * DAY_MS
    appender.append([gpu(b"new")])
    assert values(path, topics.GPU) == [b"read", b"unread", b"new"]
    now_ms[0] += 2 * DAY_MS
    appender.append([gpu(b"newest")])
    assert values(path, topics.GPU) == [b"unread", b"new", b"newest"]
    assert values(path, topics.LEDGER) == [b"row"]
    now_ms[0] += 400 * DAY_MS
    appender.append([])
    assert values(path, topics.LEDGER) == []
    assert values(path, topics.GPU) == [b"unread", b"new", b"newest"]
    reader.log.close()
    appender.close()


def test_a_clock_that_is_years_ahead_takes_no_books(tmp_path: Path) -> None:
    """Retention goes on from what is due first, in steps; once the clock is right again it does so, after a standstill too."""
    path = tmp_path / "log.db"
    now_ms = [1_000 * DAY_MS]
    appender = EmbeddedAppender(path, clock=lambda: now_ms[0])

    def append(times: int, every_ms: int, value: bytes) -> None:
        for _ in range(times):
            now_ms[0] += every_ms
            appender.append([gpu(value), Record(topics.LEDGER, b"site", value)])

    append(30 * 24, DAY_MS // 24, b"month")
    assert values(path, topics.GPU) == [b"month"] * (3 * 24 + 1)
    now_ms[0] += 730 * DAY_MS
    append(60, 60_000, b"ahead")
    assert values(path, topics.LEDGER) == [b"month"] * 720 + [b"ahead"] * 60
    # right again, and nothing was appended for a month
    now_ms[0] -= 700 * DAY_MS
    append(20, 60_000, b"after")
    assert values(path, topics.GPU) == [b"ahead"] * 60 + [b"after"] * 20
    assert values(path, topics.LEDGER).count(b"month") == 720
    appender.close()


def test_messages_of_a_clock_that_was_ahead_keep_none_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, what comes after them goes when it is old, and they on their own date; no step looks at all."""
    monkeypatch.setattr(EmbeddedAppender, "RETENTION_ROWS", 10)
    path = tmp_path / "log.db"
    now_ms = [1_000 * DAY_MS]
    appender = EmbeddedAppender(path, clock=lambda: now_ms[0])

    def append(times: int, every_ms: int, value: bytes) -> None:
        for _ in range(times):
            now_ms[0] += every_ms
            appender.append([gpu(value)])

    now_ms[0] += 365 * DAY_MS
    append(35, 1000, b"ahead")
    now_ms[0] -= 365 * DAY_MS
    append(200, DAY_MS // 10, b"right")
    kept = values(path, topics.GPU)
    assert kept.count(b"ahead") == 35
    # three days are 30; a clearing looks at ten, and the way round all that are there takes ten of them
    assert 30 <= kept.count(b"right") <= 40
    now_ms[0] += 365 * DAY_MS
    append(200, DAY_MS // 10, b"year")
    kept = values(path, topics.GPU)
    assert set(kept) == {b"year"}
    assert 30 <= len(kept) <= 40
    appender.close()


def test_offsets_are_never_given_twice(tmp_path: Path) -> None:
    """When retention has emptied the log, new messages still come after what a stage has read."""
    path = tmp_path / "log.db"
    now_ms = [1_000 * DAY_MS]
    appender = EmbeddedAppender(path, clock=lambda: now_ms[0])
    reader = stage(path)
    appender.append([gpu(b"old")])
    reader.until_values({b"old"})
    reader.commit(b"s")
    now_ms[0] += 10 * DAY_MS
    appender.append([])
    assert values(path, topics.GPU) == []
    appender.append([gpu(b"new")])
    reader.until(lambda: [m.value for m in reader.messages] == [b"old", b"new"])
    reader.log.close()
    appender.close()


def test_a_long_topic_is_read_whole(tmp_path: Path) -> None:
    """In its order, however many pages that takes."""
    path = tmp_path / "log.db"
    appender = EmbeddedAppender(path)
    appender.append([gpu(b"%d" % i) for i in range(2500)])
    assert [int(m.value) for m in read_messages(path, topics.GPU)] == list(range(2500))
    appender.close()


def make_text(path: Path) -> None:
    path.write_text("[log]\nkind = 'embedded'\n" * 200)


def make_other_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def make_newer(path: Path) -> None:
    connection = open_file(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_text, "not a database"),
        (make_other_database, "another program's"),
        (make_newer, "upgrade Idlewatt"),
        (make_folder, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, make: object, says: str) -> None:
    """Whatever else stands at log.path is named as such, and left as it was."""
    path = tmp_path / "log.db"
    assert callable(make)
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigError, match=rf"log\.path.*{says}"):
        EmbeddedAppender(path)
    if make is not make_newer:
        assert (path.read_bytes() if path.is_file() else None) == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A path in a folder that is not there, and reading a log that is not there, are errors with log.path in them."""
    with pytest.raises(ConfigError, match=r"log\.path.*folder"):
        EmbeddedAppender(tmp_path / "none" / "log.db")
    with pytest.raises(ConfigError, match=r"log\.path.*no file"):
        next(read_messages(tmp_path / "log.db", topics.GPU))


def test_a_read_only_file_is_refused() -> None:
    """A log that cannot be written is refused at the start, not at the first message."""
    # not tmp_path, where another user may not even look
    folder = Path(tempfile.mkdtemp())
    path = folder / "log.db"
    code = """
        import os, sys
        from idlewatt.stream.embedded_log import EmbeddedAppender
        from idlewatt.stream.errors import ConfigError
        if os.geteuid() == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            EmbeddedAppender(sys.argv[1])
        except ConfigError as error:
            print(error)
    """
    try:
        open_file(path).close()
        path.chmod(0o444)
        folder.chmod(0o755)
        child = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(folder)
    assert f"log.path: {path} cannot hold the log: attempt to write a readonly" in child.stdout, child.stderr


def test_a_disk_without_room_is_no_reason_for_another_file(tmp_path: Path) -> None:
    """Whoever restarts there is told to make room, with what is exit code 3: another file would hold empty books."""
    path = tmp_path / "log.db"
    open_file(path).close()
    code = """
        import resource, signal, sys
        from idlewatt.cli.exit_codes import exit_code_of
        from idlewatt.stream.embedded_file import open_file
        from idlewatt.stream.errors import IdlewattError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            open_file(sys.argv[1])
        except IdlewattError as error:
            sys.exit(f"{exit_code_of(error):d} {error}")
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], check=False, capture_output=True, text=True
    )
    assert child.stderr.startswith(
        f"3 log.path: {path} cannot hold the log: disk I/O error; make room on its disk"
    )


def test_a_disk_without_inodes_is_no_reason_for_another_file(tmp_path: Path) -> None:
    """Where the files that SQLite keeps beside a log cannot be made, whoever starts or reads is told what to do there."""
    path = tmp_path / "log.db"
    open_file(path).close()
    # as little to be opened as where there is no inode for it
    (tmp_path / "log.db-wal").mkdir()
    for use in (open_file, open_readonly):
        with pytest.raises(LogUnavailableError, match=r"log\.path.*; make room on its disk, inodes too"):
            use(path)


def test_a_log_that_is_held_for_long_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program holds the file, to append or to start fails in bounded time, and succeeds afterwards."""
    monkeypatch.setattr("idlewatt.stream.embedded_file.BUSY_TIMEOUT_S", 0.3)
    path = tmp_path / "log.db"
    appender = EmbeddedAppender(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(LogUnavailableError, match=r"log\.path.*locked"):
        appender.append([gpu(b"a")])
    with pytest.raises(LogUnavailableError, match=r"log\.path.*locked; another program holds it"):
        open_file(path)
    assert time.monotonic() - start < 5.0
    holder.execute("ROLLBACK")
    appender.append([gpu(b"a")])
    assert values(path, topics.GPU) == [b"a"]
    holder.close()
    appender.close()


def test_waiting_costs_no_cpu(tmp_path: Path) -> None:
    """A stage that waits for messages sleeps."""
    reader = stage(tmp_path / "log.db")
    reader.until_assigned_and_caught_up()
    before = time.thread_time()
    reader.log.poll(2.0)
    assert time.thread_time() - before < 0.2
    reader.log.close()
