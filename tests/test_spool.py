"""The spool: order, bounds, full disks, damage, and SIGKILL at any moment."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small_disk import DISK_BYTES, SmallDisk

from idlewatt.collectors.packing import Unencodable, pack
from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.log import Record
from idlewatt.stream.records import EngineRow, GpuRow
from idlewatt.stream.settings import Collect
from idlewatt.stream.spool import Spool
from idlewatt.stream.spool_frames import WaitingMessage, read_frames, to_frame

KIB = 1024
ALL = 1_000_000


def message(number: int, value_bytes: int = 20, rows: int = 1) -> WaitingMessage:
    """A message that knows its number, with a value no compression and no luck can foresee."""
    value = number.to_bytes(4, "big") + random.Random(number).randbytes(value_bytes)
    return WaitingMessage(Record(topics.GPU if number % 2 else topics.ENGINE, b"s/p", value), rows)


def number_of(message: WaitingMessage) -> int:
    return int.from_bytes(message.record.value[:4], "big")


def numbers(messages: Sequence[WaitingMessage]) -> list[int]:
    return [number_of(message) for message in messages]


def drain(spool: Spool, limit: int = ALL) -> list[int]:
    """Take everything out, in steps of `limit`."""
    drained = []
    while batch := spool.oldest(limit):
        drained += numbers(batch)
        spool.acknowledge()
    return drained


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def dropped(spool: Spool) -> int:
    return sum(spool.dropped_rows.values())


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of one example; hypothesis and fixtures do not mix. In memory, where syncs are quick."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


def crashed(spool_folder: Path, copy: Path) -> Path:
    """The folder as a process that was killed right now would leave it."""
    shutil.copytree(spool_folder, copy)
    return copy


def test_messages_come_out_as_they_went_in(tmp_path: Path) -> None:
    """Topic, key, value and rows are the same, in the same order, and nothing stays on the disk."""
    spool = Spool(tmp_path / "spool", 1024 * KIB)
    put = [message(n, value_bytes=n * 7, rows=n + 1) for n in range(500)]
    put.append(WaitingMessage(Record("a topic", b"", b""), 0))
    assert spool.append(put) == len(put)
    assert spool.waiting_rows == sum(each.rows for each in put)
    assert spool.waiting_bytes == bytes_in(tmp_path / "spool") > 0
    got = []
    while batch := spool.oldest(64):
        assert spool.oldest(64) == batch
        got += batch
        spool.acknowledge()
    assert got == put
    assert (spool.waiting_rows, spool.waiting_bytes, files(tmp_path / "spool")) == (0, 0, [])
    assert (dropped(spool), spool.damaged, spool.failures) == (0, 0, 0)


def test_what_came_last_is_found_by_the_next_process(tmp_path: Path) -> None:
    """A process that opens the folder goes on where the one before it ended, and writes behind it."""
    spool = Spool(tmp_path, 1024 * KIB)
    spool.append([message(n) for n in range(3)])
    assert len(spool.oldest(ALL)) == 3
    spool.close()
    # a thread that hung in the log comes back after the end
    spool.acknowledge()
    assert (spool.append([message(9)]), spool.oldest(1)) == (0, [])
    after = Spool(tmp_path, 1024 * KIB)
    assert after.waiting_rows == 3
    after.append([message(3)])
    assert drain(after) == [0, 1, 2, 3]


Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 6), st.integers(0, 500)),
        st.tuples(st.just("take"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
        st.tuples(st.just("crash"), st.just(0), st.just(0)),
        st.tuples(st.just("close"), st.just(0), st.just(0)),
    ),
    max_size=50,
)


@examples(200)
@given(max_bytes=st.integers(600, 12_000), steps=STEPS)
def test_any_course_of_events_keeps_order_bound_and_books(max_bytes: int, steps: list[Step]) -> None:
    """Nothing unacknowledged is lost but the oldest beyond the bound; each row is sent, dropped or waits."""
    with folder() as root:
        place = root / "0"
        spool = Spool(place, max_bytes)
        newest = 0
        waiting: list[int] = []
        taken: list[int] = []
        # of the process that runs now
        found = put = sent = 0
        for life, (what, count, size) in enumerate(steps, start=1):
            dropped_before = dropped(spool)
            if what == "put":
                new = [message(newest + n, size) for n in range(1, count + 1)]
                fits = spool.waiting_bytes + sum(len(to_frame(each)) for each in new) <= max_bytes
                assert spool.append(new) == count
                waiting += numbers(new)
                newest += count
                put += count
                # every message is one row
                gone = dropped(spool) - dropped_before
                assert not (gone and fits)
                del waiting[:gone]
                # what was taken came from the oldest file, and goes with it
                taken = taken if taken and taken[0] in waiting else []
            elif what == "take":
                taken = numbers(spool.oldest(count))
                assert bool(taken) == bool(waiting)
                assert taken == waiting[: len(taken)]
            elif what == "acknowledge":
                spool.acknowledge()
                del waiting[: len(taken)]
                sent += len(taken)
                taken = []
            else:
                here, place = place, root / str(life)
                if what == "close":
                    spool.close()
                crashed(here, place)
                spool.close()
                spool = Spool(place, max_bytes)
                found, put, sent, dropped_before = spool.waiting_rows, 0, 0, 0
                # what was sent of a file that still holds others comes again
                assert found >= len(waiting)
                waiting = list(range(newest - found + 1, newest + 1))
                taken = []
            assert what == "put" or dropped(spool) == dropped_before
            assert len(waiting) == spool.waiting_rows == found + put - sent - dropped(spool)
            assert spool.waiting_bytes == bytes_in(place) <= max_bytes
        assert drain(spool) == waiting
        assert (spool.damaged, spool.failures) == (0, 0)
        spool.close()


@examples(150)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    which=st.integers(0, 100),
    cut=st.floats(0, 1),
)
def test_a_file_cut_off_anywhere_costs_what_was_cut_off(sizes: list[int], which: int, cut: float) -> None:
    """Whatever a crash or a lost disk block leaves of a file: every whole message in it, and all others, are there."""
    with folder() as root:
        spool = Spool(root / "before", 8 * KIB)
        spool.append([message(n, size) for n, size in enumerate(sizes)])
        place = crashed(root / "before", root / "after")
        spool.close()
        path = files(place)[which % len(files(place))]
        ends = []
        end = 0
        for each in read_frames(path.read_bytes())[0]:
            end += len(to_frame(each))
            ends.append((end, number_of(each)))
        at = round(cut * path.stat().st_size)
        os.truncate(path, at)
        lost = {number for end, number in ends if end > at}

        after = Spool(place, 8 * KIB)
        after.append([message(len(sizes))])
        assert drain(after, limit=3) == [n for n in range(len(sizes) + 1) if n not in lost]
        assert after.damaged == (at not in {0, *(end for end, _ in ends)})
        assert bytes_in(place) == 0
        after.close()


@examples(150)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30), at=st.floats(0, 1), bit=st.integers(0, 7)
)
def test_a_flipped_bit_costs_one_message_and_is_counted(sizes: list[int], at: float, bit: int) -> None:
    """Wherever it is: all other messages are delivered unchanged, and the rows of that one are counted as dropped."""
    with folder() as root:
        spool = Spool(root, 1024 * KIB)
        put = [message(n, size, rows=n + 1) for n, size in enumerate(sizes)]
        spool.append(put)
        (path,) = files(root)
        data = bytearray(path.read_bytes())
        position = min(int(at * len(data)), len(data) - 1)
        data[position] ^= 1 << bit
        path.write_bytes(data)
        end = 0
        for hit in put:
            end += len(to_frame(hit))
            if end > position:
                break
        got = spool.oldest(ALL)
        spool.acknowledge()
        assert got == [each for each in put if each != hit]
        assert spool.oldest(ALL) == []
        assert (spool.damaged, dropped(spool), spool.waiting_rows) == (1, hit.rows, 0)
        assert path.name in spool.fault
        spool.close()


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 5000, b"IWs\x01", b"IWs\x01" + b"\xff" * 400])
def test_rubbish_between_messages_is_skipped(tmp_path: Path, rubbish: bytes) -> None:
    """Zeros of a disk that lost power, a head that lies about its lengths: the messages behind it are found."""
    path = tmp_path / "000000000007.spool"
    path.write_bytes(to_frame(message(1)) + rubbish + to_frame(message(2)))
    spool = Spool(tmp_path, 1024 * KIB)
    assert spool.waiting_rows == 2
    spool.append([message(3)])
    assert drain(spool) == [1, 2, 3]
    assert spool.damaged == bool(rubbish)


def test_the_oldest_go_when_the_bound_is_reached(tmp_path: Path) -> None:
    """Never a byte above the bound, never less than nine tenths of it in use, rows counted by topic."""
    bound = 64 * KIB
    spool = Spool(tmp_path, bound)
    for number in range(2000):
        spool.append([message(number, 100, rows=2)])
        assert bytes_in(tmp_path) <= bound
    assert spool.waiting_bytes > bound * 9 // 10
    assert sum(spool.dropped_rows.values()) + spool.waiting_rows == 4000
    assert abs(spool.dropped_rows[topics.GPU] - spool.dropped_rows[topics.ENGINE]) <= 2
    kept = drain(spool)
    assert kept == list(range(kept[0], 2000))


def test_a_message_larger_than_the_bound_costs_only_itself(tmp_path: Path) -> None:
    """It can never be held, so it is dropped and counted, and what waits stays."""
    spool = Spool(tmp_path, 2 * KIB)
    assert spool.append([message(1), message(2, 3 * KIB, rows=7), message(3)]) == 3
    assert dropped(spool) == 7
    assert drain(spool) == [1, 3]


def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    """What a predecessor left beyond it goes at once, the oldest first."""
    spool = Spool(tmp_path, 64 * KIB)
    spool.append([message(n, 1000) for n in range(60)])
    spool.close()
    smaller = Spool(tmp_path, 16 * KIB)
    assert bytes_in(tmp_path) <= 16 * KIB
    assert dropped(smaller) + smaller.waiting_rows == 60
    kept = drain(smaller)
    assert kept == list(range(kept[0], 60))


def test_a_full_disk_drops_the_oldest(small_disk: SmallDisk) -> None:
    """The spool lives in what room there is: whole, in order, the newest kept, every row counted."""
    place = small_disk.folder / "spool"
    spool = Spool(place, 2 * DISK_BYTES)
    for number in range(1500):
        assert spool.append([message(number, 1000)]) == 1, spool.fault
        assert dropped(spool) + spool.waiting_rows == number + 1
    assert bytes_in(place) > DISK_BYTES // 4
    kept = drain(spool)
    assert kept == list(range(1500 - len(kept), 1500))
    assert spool.damaged == 0
    assert spool.failures > 0
    assert "No space left" in spool.fault


def test_a_disk_that_others_have_filled_is_no_end(small_disk: SmallDisk) -> None:
    """Nothing is taken and nothing corrupted while there is no room at all; with room all goes on."""
    place = small_disk.folder / "spool"
    spool = Spool(place, 2 * DISK_BYTES)
    small_disk.fill()
    assert spool.append([message(1), message(2)]) == 0
    assert spool.failures == 1
    assert "No space left" in spool.fault
    assert (spool.waiting_rows, dropped(spool), spool.oldest(ALL)) == (0, 0, [])
    small_disk.empty()
    assert spool.append([message(1), message(2)]) == 2
    small_disk.fill()
    # the block that the file has already may take some more
    last = 2 + spool.append([message(number, 1000) for number in range(3, 20)])
    left = last - dropped(spool)
    assert spool.waiting_rows == left
    assert drain(spool) == list(range(last - left + 1, last + 1))
    assert spool.damaged == 0


def test_a_limit_on_the_size_of_files_costs_nothing(tmp_path: Path) -> None:
    """Where a file may not grow on, the next one takes what it could not."""
    script = """if True:
        import resource, sys
        from idlewatt.stream.log import Record
        from idlewatt.stream.spool import Spool, WaitingMessage
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        spool = Spool(sys.argv[1], 1 << 20)
        taken = [spool.append([WaitingMessage(Record("t", b"k", bytes(1000)), 1)]) for _ in range(100)]
        print(sum(taken), spool.waiting_rows, dict(spool.dropped_rows), spool.failures)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["100", "100", "{}", "0"]
    assert max(path.stat().st_size for path in files(tmp_path)) <= 8192


def test_a_file_that_vanishes_is_counted_and_said(tmp_path: Path) -> None:
    """Somebody clears the folder: what was there counts as dropped, the rest is delivered."""
    spool = Spool(tmp_path, 16 * KIB)
    spool.append([message(n, 900) for n in range(10)])
    files(tmp_path)[0].unlink()
    rest = drain(spool)
    assert rest == list(range(10 - len(rest), 10))
    assert (dropped(spool), spool.waiting_rows, spool.failures) == (10 - len(rest), 0, 1)
    assert "No such file" in spool.fault


def test_a_file_that_cannot_be_opened_now_waits(tmp_path: Path) -> None:
    """A process that is out of file descriptors for a moment drops nothing of what it has spooled."""
    spool = Spool(tmp_path, 16 * KIB)
    spool.append([message(n, 900) for n in range(10)])
    first, aside = files(tmp_path)[0], tmp_path / "aside"
    first.rename(aside)
    first.mkdir()
    assert spool.oldest(ALL) == []
    assert (dropped(spool), spool.waiting_rows, spool.failures) == (0, 10, 1)
    assert "Is a directory" in spool.fault
    first.rmdir()
    aside.rename(first)
    assert drain(spool) == list(range(10))


def test_who_may_not_drop_anything_is_refused_when_it_is_full(tmp_path: Path) -> None:
    """What was taken before stays, and there is room again when some of it was sent."""
    spool = Spool(tmp_path, 16 * KIB)
    taken = 0
    while taken < 20 and spool.append_all([message(taken, 900)]):
        taken += 1
    assert 10 < taken < 20
    # its disk has not failed
    assert (dropped(spool), spool.waiting_rows, spool.failures) == (0, taken, 0)
    assert not spool.append_all([message(99, 17 * KIB)])
    assert dropped(spool) == 0
    spool.oldest(ALL)
    spool.acknowledge()
    # of these the first would have room
    assert not spool.append_all([message(99, 300), message(99, 900)])
    assert (dropped(spool), spool.waiting_rows) == (0, taken - 1)
    assert spool.append_all([message(taken, 900)])


def test_of_what_belongs_together_a_full_disk_takes_all_or_none(small_disk: SmallDisk) -> None:
    """Also where it has room for some of it; what fits as a whole is taken, and next to it nothing is torn."""
    spool = Spool(small_disk.folder / "spool", 2 * DISK_BYTES)
    parts = [message(number, DISK_BYTES // 10) for number in range(4)]
    taken = 0
    while taken < 3 and spool.append_all(parts):
        taken += 1
    assert taken == 2
    assert "No space left" in spool.fault
    assert (spool.waiting_rows, dropped(spool)) == (8, 0)
    spool.close()
    spool = Spool(small_disk.folder / "spool", 2 * DISK_BYTES)
    assert spool.waiting_rows == 8
    assert spool.append_all(parts[:1])
    assert drain(spool) == [*range(4), *range(4), 0]
    assert spool.damaged == 0


def test_a_full_disk_may_be_no_reason_to_drop(small_disk: SmallDisk) -> None:
    """What fits is taken and the rest stays the caller's, once. Beyond the spool's own bound the oldest go all the same."""
    spool = Spool(small_disk.folder / "spool", DISK_BYTES // 4)
    put = 0
    while not dropped(spool):
        put += spool.append([message(put, 1000)], drop_if_disk_full=False)
    assert len(drain(spool)) == put - dropped(spool)
    gone = dropped(spool)
    assert spool.append([message(number, 1000) for number in range(50)]) == 50
    assert len(files(small_disk.folder / "spool")) > 2
    small_disk.fill()
    taken = spool.append([message(number, 1000) for number in range(50, 70)], drop_if_disk_full=False)
    assert (taken < 20, dropped(spool)) == (True, gone)
    assert "No space left" in spool.fault
    small_disk.empty()
    spool.append([message(number, 1000) for number in range(50 + taken, 70)], drop_if_disk_full=False)
    assert drain(spool) == list(range(70))
    assert dropped(spool) == gone


def test_what_the_disk_does_not_say_it_holds_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may not drop anything is told so; the messages may be sent even so."""
    spool = Spool(tmp_path, 64 * KIB)
    assert spool.append_all([message(0)])

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", refuse)
        assert not spool.append_all([message(1), message(2)])
        assert "Input/output error" in spool.fault
        assert spool.append([message(3)]) == 1
    assert spool.append_all([message(4)])
    assert drain(spool) == list(range(5))


_WRITER = """if True:
    import random, sys
    from idlewatt.stream.log import Record
    from idlewatt.stream.spool import Spool, WaitingMessage
    spool = Spool(sys.argv[1], 64 << 20)
    number, seed = int(sys.argv[2]), random.Random(int(sys.argv[2]))
    def say(*words):
        print(*words, flush=True)
    say("up")
    while True:
        count = seed.randrange(1, 8)
        messages = [
            WaitingMessage(Record("t", b"k", (number + n).to_bytes(4, "big") + seed.randbytes(seed.randrange(60_000))), 1)
            for n in range(count)
        ]
        assert spool.append(messages) == count
        number += count
        say("put", number - 1)
        if seed.random() < 0.3:
            batch = spool.oldest(seed.randrange(1, 12))
            for message in batch:
                say("sent", int.from_bytes(message.record.value[:4], "big"))
            spool.acknowledge()
            say("acknowledged")
"""


def test_sigkill_loses_nothing_that_was_taken(tmp_path: Path) -> None:
    """A process is killed again and again at moments of no choosing: each message it spooled is sent or found."""
    place = tmp_path / "spool"
    sent: set[int] = set()
    put = -1
    seed = random.Random(4)
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(place), str(put + 1)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == "up\n"
            # no clock: the kill comes after so many lines of work, at whatever instruction that is
            said = [writer.stdout.readline() for _ in range(seed.randrange(60))]
        finally:
            writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        for line in said:
            found = re.fullmatch(r"(put|sent) (\d+)\n", line)
            if found and found[1] == "put":
                put = int(found[2])
            elif found:
                sent.add(int(found[2]))

        spool = Spool(crashed(place, tmp_path / "copy"), 64 * KIB * KIB)
        left = drain(spool)
        assert left == sorted(set(left))
        # it may have written some that it had no time to tell of
        assert set(range(put + 1)) <= sent | set(left)
        assert spool.damaged <= 1
        spool.close()
        shutil.rmtree(tmp_path / "copy")
        put = max([put, *left])
    assert put > 100
    assert len(sent) > 20


def test_one_collector_has_the_folder(tmp_path: Path) -> None:
    """A second one is told so at its start, and may have it when the first has ended."""
    place = tmp_path / "spool"
    first = Spool(place, 1024 * KIB)
    with pytest.raises(ConfigError, match=r"collect\.spool_path.*another collector"):
        Spool(place, 1024 * KIB)
    first.close()
    Spool(place, 1024 * KIB).close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """At the start, with the setting that mends it."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "no" / "such", Path("/proc/spool")):
        with pytest.raises(ConfigError, match=rf"collect\.spool_path: {place} cannot be used: .*SPOOL_PATH"):
            Spool(place, 1024 * KIB)


def test_rows_are_counted_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with a full spool does not take what its reading takes; damaged ones do not count."""
    spool = Spool(tmp_path, 1024 * KIB)
    spool.append([message(number, 100, rows=number) for number in range(1, 9)])
    spool.close()
    [file] = files(tmp_path)
    body = bytearray(file.read_bytes())
    body[-5] ^= 1
    file.write_bytes(body)
    with monkeypatch.context() as patched:
        patched.setattr(zstandard, "decompress", lambda data: pytest.fail("it was read"))
        again = Spool(tmp_path, 1024 * KIB)
    assert again.waiting_rows == sum(range(1, 8))
    assert drain(again) == list(range(1, 8))
    again.close()


@pytest.mark.parametrize("with_rows", [False, True])
def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path, with_rows: bool) -> None:
    """What was in it is lost and counted; what comes after that is kept, and the folder is still this process's."""
    place = tmp_path / "spool"
    spool = Spool(place, 1024 * KIB)
    if with_rows:
        assert spool.append([message(1), message(2)]) == 2
    shutil.rmtree(place)
    assert spool.append([message(3), message(4)]) == 2
    assert (dropped(spool), spool.waiting_rows) == (2 * with_rows, 2)
    with pytest.raises(ConfigError, match="another collector"):
        Spool(place, 1024 * KIB)
    assert drain(spool) == [3, 4]
    assert spool.append([message(5)]) == 1
    spool.close()
    assert drain(Spool(place, 1024 * KIB)) == [5]


def test_files_that_are_copied_into_its_folder_do_not_stop_it(tmp_path: Path) -> None:
    """As those of a node that is dead: the next start takes them over."""
    dead = Spool(tmp_path / "dead", 32 * KIB)
    assert dead.append([message(1000)]) == 1
    spool = Spool(tmp_path / "spool", 32 * KIB)
    assert spool.append([message(0)]) == 1
    for number in range(2, 6):
        shutil.copy(files(tmp_path / "dead")[0], tmp_path / "spool" / f"{number:012d}.spool")
    for number in range(1, 100):
        assert spool.append([message(number, 900)]) == 1
    assert drain(spool)[-1] == 99
    spool.close()
    assert drain(Spool(tmp_path / "spool", 32 * KIB)) == [1000] * 4


def test_a_file_that_this_user_may_not_read_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that root has copied there: it is named, keeps nobody from starting, and is there for the next start."""
    spool = Spool(tmp_path, 16 * KIB)
    spool.append([message(number, 900) for number in range(10)])
    spool.close()
    foreign = files(tmp_path)[1]
    foreign_numbers = numbers(read_frames(foreign.read_bytes())[0])
    own = [number for number in range(10) if number not in foreign_numbers]
    path_open = Path.open

    def refuse(path: Path, mode: str = "r") -> object:
        # root, who may run this, may read all
        if path == foreign:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return path_open(path, mode)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        after = Spool(tmp_path, 16 * KIB)
        assert (after.failures, after.fault) == (1, f"{foreign}: Permission denied")
        assert after.waiting_bytes == bytes_in(tmp_path) - foreign.stat().st_size
        after.append([message(10)])
        assert drain(after) == [*own, 10]
        assert (after.waiting_bytes, dropped(after), files(tmp_path)) == (0, 0, [foreign])
        after.close()
    assert drain(Spool(tmp_path, 16 * KIB)) == foreign_numbers


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """A folder that is not only the spool's keeps what it had."""
    for name in ("notes.txt", "1.spool", "000000000001.spool.bak"):
        (tmp_path / name).write_text("mine")
    spool = Spool(tmp_path, 2 * KIB)
    for number in range(100):
        spool.append([message(number, 500)])
    drain(spool)
    assert {path.name for path in tmp_path.iterdir() if path.read_text() == "mine"} == {
        "notes.txt",
        "1.spool",
        "000000000001.spool.bak",
    }


def test_the_documented_minutes_are_true() -> None:
    """What the setting says 1 GiB holds is what messages of 8 GPUs and one engine really take."""
    seed = random.Random(1)
    uuids = [f"GPU-{seed.randbytes(4).hex()}-{seed.randbytes(12).hex()}" for _ in range(8)]
    total = seconds = 0
    for seconds in range(1, 101):
        rows: list[GpuRow | EngineRow] = [
            GpuRow(
                ts_ms=1_790_000_000_000 + seconds * 1000 + seed.randrange(20),
                site="hall-1",
                pool="gpu-node-1",
                node="gpu-node-1",
                gpu_uuid=uuid,
                product="NVIDIA H100 80GB HBM3",
                energy_mj=seed.randrange(10**12),
                power_mw=seed.randrange(70_000, 700_000),
                power_limit_mw=700_000,
                epoch_ms=1_780_000_000_000,
                sm_activity=seed.random(),
                memory_used_bytes=seed.randrange(80 << 30),
                clocks_event_reasons=4,
                has_process=True,
                power_scope="gpu",
            )
            for uuid in uuids
        ]
        rows.append(
            EngineRow(
                ts_ms=1_790_000_000_000 + seconds * 1000,
                site="hall-1",
                pool="gpu-node-1",
                node="gpu-node-1",
                engine="gpu-node-1:8000",
                server="vllm",
                server_version="0.10.1",
                model_name="meta-llama/Llama-3.3-70B-Instruct",
                output_tokens=seed.randrange(10**9),
                input_tokens=seed.randrange(10**9),
                cached_input_tokens=seed.randrange(10**9),
                advance="step",
                requests_running=seed.randrange(100),
                requests_waiting=seed.randrange(10),
                kv_cache_ratio=seed.random(),
                epoch_ms=1_780_000_000_000,
                gpus=uuids,
            )
        )
        for each in pack(rows):
            assert not isinstance(each, Unencodable)
            total += len(to_frame(each))
    minutes = 2**30 / (total / seconds) / 60
    description = Collect.model_fields["spool_max_bytes"].description
    assert description is not None
    told = re.search(r"about (\d+) minutes", description)
    assert told is not None
    assert int(told[1]) == pytest.approx(minutes, rel=0.05)
