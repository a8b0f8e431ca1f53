import socket
from collections.abc import Callable, Iterator

import pytest
from loopback_http import LoopbackServer, page, says, serving

from idlewatt.collectors.engine_source import EngineSource
from idlewatt.collectors.source import Reading
from idlewatt.stream.clock import Clock
from idlewatt.stream.errors import ConfigError, SourceError
from idlewatt.stream.records import EngineRow
from idlewatt.stream.settings import Engine

NOW_MS = 1_790_000_100_000


def vllm(
    output: str | int = 100,
    *,
    model: str = "m",
    engine: str = "0",
    start: float | None = 1.79e9,
    **more: str | int,
) -> bytes:
    labels = f'{{model_name="{model}",engine="{engine}"}}'
    lines = [f"vllm:generation_tokens_total{labels} {output}"]
    lines += [f"vllm:{name}{labels} {value}" for name, value in more.items()]
    if start is not None:
        lines.append(f"process_start_time_seconds {start}")
    return "".join(f"{line}\n" for line in lines).encode()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(says(page(b""))) as server:
        yield server


Read = Callable[..., tuple[list[EngineRow], dict[str, int]]]


@pytest.fixture
def read(server: LoopbackServer) -> Iterator[Read]:
    source = source_of(Engine(url=server.url))

    def read(body: bytes) -> tuple[list[EngineRow], dict[str, int]]:
        server.answer = says(page(body))
        reading = source.read()
        return [row for row in reading.rows if isinstance(row, EngineRow)], dict(reading.left_out)

    yield read
    source.close()


def source_of(engine: Engine, clock: Clock = lambda: NOW_MS) -> EngineSource:
    return EngineSource(
        engine,
        site="hall",
        pool="rack",
        node="n1",
        interval_s=1.0,
        timeout_s=5.0,
        max_body_bytes=1_000_000,
        clock=clock,
    )


def test_a_page_becomes_a_whole_row(server: LoopbackServer) -> None:
    """Everything the settings and the page know stands in the row, stamped with the clock."""
    server.answer = says(
        page(
            vllm(
                100,
                prompt_tokens_total=70,
                prompt_tokens_cached_total=30,
                num_requests_running=3,
                num_requests_waiting=2,
                kv_cache_usage_perc="0.5",
            )
        )
    )
    source = source_of(Engine(url=server.url, name="chat", pool="fast", gpus=("GPU-1", "GPU-2")))
    assert (source.name, source.interval_s) == ("chat", 1.0)
    assert list(source.read().rows) == [
        EngineRow(
            ts_ms=NOW_MS,
            site="hall",
            pool="fast",
            node="n1",
            engine="chat",
            server="vllm",
            server_version=None,
            model_name="m",
            output_tokens=100,
            input_tokens=40,
            cached_input_tokens=30,
            advance="step",
            requests_running=3,
            requests_waiting=2,
            kv_cache_ratio=0.5,
            epoch_ms=1_790_000_000_000,
            gpus=["GPU-1", "GPU-2"],
        )
    ]
    source.close()


def test_the_clock_is_read_when_the_body_has_arrived(server: LoopbackServer) -> None:
    """A slow answer is stamped with its end, not with the moment it was asked for."""
    moments: list[str] = []

    def slow(connection: socket.socket, request: bytes) -> None:
        answer = page(vllm())
        connection.sendall(answer[:-10])
        moments.append("half sent")
        connection.sendall(answer[-10:])

    def clock() -> int:
        moments.append("stamped")
        return NOW_MS

    server.answer = slow
    source = EngineSource(
        Engine(url=server.url),
        site="s",
        pool="p",
        node="n",
        interval_s=1,
        timeout_s=5,
        max_body_bytes=10_000,
        clock=clock,
    )
    source.read()
    assert moments == ["half sent", "stamped"]
    source.close()


def test_without_a_name_it_is_called_by_host_and_port() -> None:
    """The port is spelt out even where the URL has none; a loopback host is called by the node's name."""
    for url, name in (
        ("http://gpu-7.example:8000/metrics", "gpu-7.example:8000"),
        ("http://user:secret@gpu-7.example/metrics", "gpu-7.example:80"),
        ("https://[fd00::7]/metrics", "[fd00::7]:443"),
        ("http://127.0.0.1:8000/metrics", "n1:8000"),
        ("http://localhost:8001/metrics", "n1:8001"),
        ("http://[::1]:8002/metrics", "n1:8002"),
    ):
        assert source_of(Engine(url=url)).name == name


def test_an_unknown_server_kind_is_a_config_error() -> None:
    """It is refused when the source is made."""
    with pytest.raises(ConfigError, match="known: vllm"):
        source_of(Engine(url="http://127.0.0.1:8000/metrics", server="vllmm"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("NaN", "nan"),
        ("-5", "negative"),
        ("9223372036854775794", "sentinel"),
        ("+Inf", "sentinel"),
        ("0.5", "not_whole"),
    ],
)
def test_a_counter_that_cannot_be_true_leaves_out_its_row_only(read: Read, value: str, reason: str) -> None:
    """The model it belongs to has no row, with the reason counted; the other models have theirs."""
    rows, left_out = read(vllm(value, model="bad") + vllm(7, model="good", start=None))
    assert [(row.model_name, row.output_tokens) for row in rows] == [("good", 7)]
    assert left_out == {reason: 1}
    rows, left_out = read(vllm(8, model="bad", prompt_tokens_total=value) + vllm(7, model="good", start=None))
    assert [row.model_name for row in rows] == ["good"]
    assert left_out == {reason: 1}


def test_one_bad_rank_leaves_out_the_sum(read: Read) -> None:
    """A sum that lacks a part would look like a counter that fell."""
    rows, left_out = read(vllm(5, engine="0") + vllm("NaN", engine="1", start=None))
    assert (rows, left_out) == ([], {"nan": 1})


def test_a_gauge_that_cannot_be_true_costs_only_itself(read: Read) -> None:
    """Tokens still count when a load gauge is nonsense."""
    [row], left_out = read(
        vllm(5, num_requests_running="NaN", num_requests_waiting=-1, kv_cache_usage_perc=55)
    )
    assert (row.output_tokens, row.requests_running, row.requests_waiting, row.kv_cache_ratio) == (
        5,
        None,
        None,
        None,
    )
    assert left_out == {"nan": 1, "negative": 1, "out_of_range": 1}


def test_duplicate_series_fail_the_scrape(read: Read) -> None:
    """Which of two equal series is true cannot be known."""
    with pytest.raises(SourceError) as failed:
        read(vllm(5) + vllm(6))
    assert failed.value.reason == "duplicate_series"


def test_a_reset_stays_visible(read: Read) -> None:
    """A counter that falls is passed on as it is: what it means is the processor's to say."""
    assert [read(vllm(value))[0][0].output_tokens for value in (900, 3)] == [900, 3]


def test_a_restart_changes_the_epoch(read: Read) -> None:
    """A new process start is a new epoch, to the millisecond; the same process keeps it."""
    epochs = [read(vllm(5, start=start))[0][0].epoch_ms for start in (1.79e9, 1.79e9, 1790000033.25)]
    assert epochs == [1_790_000_000_000, 1_790_000_000_000, 1_790_000_033_250]


def test_a_page_that_does_not_tell_its_start_is_no_restart(read: Read) -> None:
    """It goes on with the epoch it had, whatever else is told; a counter that falls meanwhile is one."""

    def epoch_ms(output: int, created: float | None, start: float) -> int | None:
        return read(vllm(output, start=start) + (_created(created) if created else b""))[0][0].epoch_ms

    assert epoch_ms(5, 1790000200, 1.79e9) == 1_790_000_200_000
    assert epoch_ms(6, None, 1.79e9) == 1_790_000_200_000
    assert epoch_ms(7, 1790000200, 1.79e9) == 1_790_000_200_000
    assert epoch_ms(3, None, 1790000700) == 1_790_000_700_000
    # nor is a page that tells it again
    assert epoch_ms(4, 1790000900, 1790000700) == 1_790_000_700_000
    assert epoch_ms(5, 1790000900, 1790000700) == 1_790_000_700_000


def test_counters_that_begin_anew_within_a_process_have_a_new_epoch(read: Read) -> None:
    """vLLM that is scaled up makes all of them anew, for the ranks it had too. One more rank alone is no restart."""

    def page(*created: float) -> bytes:
        ranks = (
            vllm(5, engine=f"{rank}", start=None) + _created(at, rank) for rank, at in enumerate(created)
        )
        return b"process_start_time_seconds 1.78e9\n" + b"".join(ranks)

    epochs = [
        read(page(*created))[0][0].epoch_ms
        for created in ([1.79e9], [1.79e9, 1790000200.0], [1790000400.5] * 4)
    ]
    assert epochs == [1_790_000_000_000, 1_790_000_000_000, 1_790_000_400_500]


def _created(at: float, rank: int = 0) -> bytes:
    return f'vllm:generation_tokens_created{{model_name="m",engine="{rank}"}} {at}\n'.encode()


class SetClock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def test_a_fall_that_no_epoch_tells_of_is_no_restart_by_itself(server: LoopbackServer) -> None:
    """It is a page that lost its end, or another server's: counted again from zero, all of it would be booked."""
    clock = SetClock()
    source = source_of(Engine(url=server.url), clock)

    def tokens(body: bytes, after_s: int = 1) -> list[int]:
        clock.now_ms += after_s * 1000
        server.answer = says(page(body))
        reading = source.read()
        assert bool(reading.rows) != bool(reading.left_out.get("counter_fell"))
        return [row.output_tokens for row in reading.rows if isinstance(row, EngineRow)]

    whole = vllm(900, engine="0", start=None) + vllm(100, engine="1", start=None)
    assert tokens(whole) == [1000]
    # cut at the end of a line, by a server that tells no length
    assert tokens(vllm(901, engine="0", start=None)) == []
    assert tokens(whole) == [1000]
    # two servers behind one address
    for _ in range(10):
        assert tokens(vllm(20, start=None), 5) == []
        assert tokens(vllm(1001, start=None), 5) == [1001]
    # it stays down, for longer than what came meanwhile would be believed
    assert tokens(vllm(30, start=None)) == []
    assert tokens(vllm(31, start=None), 59) == []
    assert tokens(vllm(32, start=None)) == [32]
    # a server that is started anew does not answer for a while
    server.answer = says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(SourceError):
        source.read()
    assert tokens(vllm(1, start=None)) == [1]
    source.close()


def test_a_cut_page_takes_no_epoch_back(server: LoopbackServer) -> None:
    """Where all that is left on it began before, the process is the same: its readings would be refused from then on."""
    clock = SetClock()
    source = source_of(Engine(url=server.url), clock)
    ranks = [vllm(value, engine=str(rank), start=None) for rank, value in enumerate((900, 100))]
    whole = [b"process_start_time_seconds 1.79e9\n", *ranks, _created(1790000030.0)]

    def told(lines: list[bytes], after_s: int = 1) -> list[tuple[int | None, int | None]]:
        clock.now_ms += after_s * 1000
        server.answer = says(page(b"".join(lines)))
        reading = source.read()
        assert bool(reading.rows) != bool(reading.left_out.get("counter_fell"))
        return [(row.output_tokens, row.epoch_ms) for row in reading.rows if isinstance(row, EngineRow)]

    known_ms = 1_790_000_030_000
    assert told(whole) == [(1000, known_ms)]
    assert told(whole[:3]) == [(1000, known_ms)]
    assert told(whole[:2]) == []
    assert told(whole) == [(1000, known_ms)]
    # also where it might have been started anew meanwhile
    server.answer = says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(SourceError):
        source.read()
    assert told(whole[:2]) == []
    assert told(whole) == [(1000, known_ms)]
    # for good: of a newer version, which counts less
    assert told(whole[:2]) == []
    assert told(whole[:2], 60) == [(900, None)]
    source.close()


def test_what_a_model_made_before_it_was_first_read_counts_if_its_start_was_watched(
    server: LoopbackServer,
) -> None:
    """It goes from zero: of a server that was started later, or again under another name; not of one that was there."""
    clock = SetClock()
    source = source_of(Engine(url=server.url), clock)
    down = says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    def told(body: bytes | None, at_s: int) -> list[tuple[int, str, int, int | None]]:
        clock.now_ms = NOW_MS + at_s * 1000
        server.answer = says(page(body)) if body else down
        if body is None:
            with pytest.raises(SourceError):
                source.read()
            return []
        rows = [row for row in source.read().rows if isinstance(row, EngineRow)]
        assert {row.requests_running for row in rows[:-1]} <= {None}
        return [
            ((row.ts_ms - NOW_MS) // 1000, row.model_name, row.output_tokens, row.input_tokens)
            for row in rows
        ]

    def serving_since(at_s: int, output: int, model: str) -> bytes:
        return vllm(
            output, model=model, start=(NOW_MS / 1000) + at_s, prompt_tokens_total=7, num_requests_running=1
        )

    told(None, 0)
    told(None, 30)
    # at 30 s it did not answer, but may have served others
    assert told(serving_since(20, 900, "m"), 50) == [(20, "m", 0, 0), (50, "m", 900, 7)]
    assert told(serving_since(20, 990, "m"), 51) == [(51, "m", 990, 7)]
    told(None, 60)
    assert told(serving_since(70, 800, "other"), 90) == [(70, "other", 0, 0), (90, "other", 800, 7)]
    # it was served by another process before, whose counters nobody has seen, or is told of under its name again
    assert told(serving_since(40, 500, "m"), 91) == [(91, "m", 500, 7)]
    source.close()
    late = source_of(Engine(url=server.url), clock)
    assert [row.ts_ms - NOW_MS for row in late.read().rows] == [91_000]
    late.close()


@pytest.mark.parametrize("behind_s", [-5, 0, 5, 20])
def test_a_server_that_is_started_anew_goes_from_zero_whatever_its_clock(
    server: LoopbackServer, behind_s: int
) -> None:
    """Else what it had made before would be taken off, where its start seems to be before the newest reading."""
    clock = SetClock()
    source = source_of(Engine(url=server.url), clock)

    def told(output: int, at_ms: int, created_s: float | None, start_s: float) -> list[tuple[int, int]]:
        clock.now_ms = NOW_MS + at_ms
        of_host = NOW_MS / 1000 - behind_s
        body = vllm(output, start=of_host + start_s)
        server.answer = says(page(body + (_created(of_host + created_s) if created_s is not None else b"")))
        rows = [row for row in source.read().rows if isinstance(row, EngineRow)]
        return [(row.ts_ms - NOW_MS, row.output_tokens) for row in rows]

    assert told(1000, 0, -400, -420) == [(0, 1000)]
    (zero_ms, zero), newest = told(5000, 9000, 4, 2)
    assert (0 < zero_ms < 9000, zero, newest) == (True, 0, (9000, 5000))
    assert told(6000, 10_000, 4, 2) == [(10_000, 6000)]
    # told by another series, or by the same to another collector: no restart
    assert told(6500, 11_000, None, 10) == [(11_000, 6500)]
    assert told(6600, 12_000, 4, 2) == [(12_000, 6600)]
    source.close()
    source = source_of(Engine(url=server.url), clock)
    assert told(6700, 13_000, 4, 2) == [(13_000, 6700)]
    source.close()


def test_another_server_that_was_there_for_long_is_no_restart(server: LoopbackServer) -> None:
    """A standby takes over the address: what it counted long before the last page was not made since."""
    clock = SetClock()
    source = source_of(Engine(url=server.url), clock)
    for at_s, started_s, outputs in ((0, -90_000, [500]), (1, -3600, [80]), (2, -3598, [0, 90])):
        clock.now_ms = NOW_MS + at_s * 1000
        server.answer = says(page(vllm(outputs[-1], start=NOW_MS / 1000 + started_s)))
        rows = [row for row in source.read().rows if isinstance(row, EngineRow)]
        assert [row.output_tokens for row in rows] == outputs
    source.close()


@pytest.mark.parametrize("is_down", [False, True])
def test_a_model_that_appears_while_the_clock_is_set_back_loses_nothing(
    server: LoopbackServer, is_down: bool
) -> None:
    """It goes from the zero that it began from by the new time, told as of the newest page that was passed on."""
    clock = SetClock()
    source = source_of(Engine(url=server.url), clock)
    other = vllm(1, model="other", start=NOW_MS / 1000 - 500)
    server.answer = says(page(other))
    assert len(source.read().rows) == 1
    started = other + vllm(900, start=None) + _created(NOW_MS / 1000 - 20)
    for at_s in (-30, -25, -10):
        clock.now_ms = NOW_MS + at_s * 1000
        if is_down:
            server.answer = says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            with pytest.raises(SourceError):
                source.read()
        else:
            server.answer = says(page(started if at_s > -20 else other))
            assert source.read() == Reading([], {"clock_set_back": 1})
    clock.now_ms = NOW_MS + 2000
    server.answer = says(page(started))
    rows = [row for row in source.read().rows if isinstance(row, EngineRow) and row.model_name == "m"]
    assert [(row.ts_ms - NOW_MS, row.output_tokens) for row in rows] == [(1, 0), (2000, 900)]
    source.close()


def test_two_engines_behind_one_server_are_one_row(read: Read) -> None:
    """Data-parallel ranks are added up."""
    [row], left_out = read(
        vllm(5, engine="0", num_requests_running=1) + vllm(6, engine="1", start=None, num_requests_running=2)
    )
    assert (row.output_tokens, row.requests_running, left_out) == (11, 3, {})


def test_a_server_of_two_models_gives_two_rows(read: Read) -> None:
    """Each model has a row, all with one time."""
    rows, _ = read(vllm(5, model="a") + vllm(6, model="b", start=None))
    assert [(row.model_name, row.output_tokens, row.ts_ms) for row in rows] == [
        ("a", 5, NOW_MS),
        ("b", 6, NOW_MS),
    ]


def test_another_servers_page_is_told_from_a_broken_one(read: Read) -> None:
    """The error says what was expected and what is there instead."""
    with pytest.raises(
        SourceError, match="expected vllm:generation_tokens_total, but its series begin with sglang:"
    ):
        read(b'sglang:generation_tokens_total{model_name="m"} 5\n')
    with pytest.raises(SourceError, match="HTML") as failed:
        read(b"<html></html>")
    assert failed.value.reason == "no_known_series"
