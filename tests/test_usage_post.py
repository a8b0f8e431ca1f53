"""POST /v1/usage takes events whole or says why not, keeps them where no crash takes them, and counts them once."""

import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import structlog
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small_disk import SmallDisk

from idlewatt.collectors.collection import Collection
from idlewatt.collectors.sink import Sink
from idlewatt.collectors.usage_post import MAX_BODY_BYTES, MAX_LINE_BYTES, UsagePost
from idlewatt.processors.economy.usage import UsageState, fold_usage
from idlewatt.stream import topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.embedded_log import EmbeddedAppender, EmbeddedStageLog
from idlewatt.stream.errors import LogUnavailableError, RefusedMessageError
from idlewatt.stream.http_routes import Request
from idlewatt.stream.log import Record
from idlewatt.stream.metrics_server import MetricsServer
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.settings import Collect, Log, Serve, Settings
from idlewatt.stream.spool import Spool

NOW_MS = 1_790_000_000_000
TOKEN = "the token of this test"
LINE: dict[str, Any] = {
    "event_id": "a",
    "ts_ms": NOW_MS - 1000,
    "team": "search",
    "engineer": "kim",
    "model_name": "m",
    "output_tokens": 7,
}


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Shelf:
    """A log in memory that can be away."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.away = False

    def append(self, records: Sequence[Record]) -> None:
        if self.away:
            raise LogUnavailableError("the shelf is away")
        self.records.extend(records)

    def close(self) -> None:
        """Nothing is open."""

    def rows(self) -> list[dict[str, Any]]:
        return [row for record in self.records for row in decode(record.value)[1].to_dicts()]


Post = Callable[..., tuple[int, dict[str, Any], dict[str, str]]]


class Site:
    """A sink behind a server that takes usage."""

    def __init__(self, sink: Sink, token: str | None = TOKEN) -> None:
        self.sink = sink
        self.usage_post = UsagePost("hall", sink.store, lambda: NOW_MS, MinuteLog())
        self.server = MetricsServer("127.0.0.1", 0, lambda: b"", token)
        self.server.start()
        self.server.open([self.usage_post.route])

    def post(self, body: bytes, token: str | None = TOKEN, **headers: str) -> tuple[int, Any, dict[str, str]]:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        return self.ask("POST", "/v1/usage", body, fields)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            said = response.read()
            return response.status, json.loads(said), dict(response.headers)
        finally:
            connection.close()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def site(shelf: Shelf) -> Iterator[Site]:
    site = Site(Sink(shelf, 1.0))
    yield site
    site.server.stop()


def test_lines_become_rows(site: Site, shelf: Shelf) -> None:
    """A line is a row of idlewatt.usage, keyed by its site, in the log before the answer is given."""
    status, said, _ = site.post(lines(LINE, LINE | {"event_id": "b", "tier": "premium", "input_tokens": 3}))
    assert (status, said) == (202, {"accepted": 2})
    assert {(record.topic, record.key) for record in shelf.records} == {(topics.USAGE, b"hall")}
    first, second = shelf.rows()
    assert first == LINE | {
        "site": "hall",
        "source": "api",
        "counter": None,
        "function": None,
        "agent_family": None,
        "tier": None,
        "input_tokens": 0,
        "cached_input_tokens": 0,
        "epoch_ms": None,
    }
    assert (second["event_id"], second["tier"], second["input_tokens"]) == ("b", "premium", 3)


def test_a_repeat_counts_once(site: Site, shelf: Shelf) -> None:
    """The same lines under the same Idempotency-Key, or with the same ids, add nothing when sent again."""
    bare = {name: value for name, value in LINE.items() if name != "event_id"}
    for _ in range(3):
        assert site.post(lines(bare, bare), Idempotency_Key="batch-1")[0] == 202
        assert site.post(lines(LINE))[0] == 202
    assert {row["event_id"] for row in shelf.rows()} == {"batch-1/1", "batch-1/2", "a"}
    frames = [decode(record.value)[1] for record in shelf.records]
    usage = fold_usage(UsageState.empty(), pl.concat(frames), NOW_MS)
    assert usage.minutes.get_column("output_tokens").sum() == 21
    assert usage.rejected == {"repeat": 6}


WRONG: list[tuple[str, bytes, str]] = [
    ("no JSON", b"{", "Invalid JSON"),
    ("no object", b"[1]", "object"),
    ("unknown field", lines(LINE | {"teem": "x"}), "teem"),
    ("missing field", lines({"event_id": "a", "ts_ms": NOW_MS}), "model_name"),
    ("negative", lines(LINE | {"output_tokens": -1}), "output_tokens"),
    ("no number", lines(LINE | {"output_tokens": "7"}), "output_tokens"),
    ("a fraction", lines(LINE | {"output_tokens": 7.5}), "output_tokens"),
    ("too many", lines(LINE | {"output_tokens": 10**30}), "output_tokens"),
    ("yes", lines(LINE | {"output_tokens": True}), "output_tokens"),
    ("ahead", lines(LINE | {"ts_ms": NOW_MS + 60_000}), "60 s ahead"),
    ("never", lines(LINE | {"ts_ms": 10**400}), "ts_ms"),
    ("old", lines(LINE | {"ts_ms": NOW_MS - 48 * 3_600_000}), "48 hours"),
    ("seconds", lines(LINE | {"ts_ms": NOW_MS // 1000}), f"{NOW_MS // 1000} looks like seconds"),
    ("no id", lines({k: v for k, v in LINE.items() if k != "event_id"}), "Idempotency-Key"),
    ("empty name", lines(LINE | {"team": ""}), "team"),
    ("long name", lines(LINE | {"team": "x" * 121}), "team"),
    ("control characters", lines(LINE | {"team": "a\nb"}), "no control characters"),
    ("a name of ours", lines(LINE | {"team": "(other)"}), "names in brackets"),
    ("half a character", lines(LINE).replace(b"kim", b"\\ud800"), "Invalid JSON"),
    ("no UTF-8", lines(LINE).replace(b"kim", b"\xff\xfe"), "Invalid JSON"),
    ("nothing", b"\n \n", "no line"),
    ("deep", b"[" * 10_000, "Invalid JSON"),
    ("a long line", lines({f"{n:05}": 1 for n in range(1500)}), f"at most {MAX_LINE_BYTES} are taken"),
]


@pytest.mark.parametrize(("body", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_lines_are_told(site: Site, shelf: Shelf, body: bytes, said: str) -> None:
    """What is wrong is answered with its line, nothing of the request is taken, and the refusal is counted."""
    good = lines(LINE)
    status, answer, _ = site.post(good + body if body.strip() else body)
    assert status == 400
    assert said in answer["errors"][0]["error"]
    assert answer["errors"][0]["line"] == (2 if body.strip() else 1)
    assert answer["accepted"] == 0
    assert not shelf.records
    assert site.usage_post.refused == {"bad_lines": 1}
    assert site.post(good)[0] == 202


def test_the_longest_names_fit_a_line(site: Site, shelf: Shelf) -> None:
    """Also where each character is escaped by twelve bytes, as most languages' JSON does it."""
    named = ("source", "event_id", "function", "team", "agent_family", "engineer", "model_name", "tier")
    assert site.post(lines(LINE | dict.fromkeys(named, "\U0001f600" * 120)))[0] == 202
    assert len(shelf.rows()) == 1


def test_of_many_wrong_lines_the_first_are_told() -> None:
    """None is read after twenty: a megabyte of them would cost seconds, and hundreds of megabytes for each sender."""
    looks: list[int] = []

    def clock() -> int:
        looks.append(NOW_MS)
        return NOW_MS

    too_old = [LINE | {"ts_ms": 0}] * 100
    usage_post = UsagePost("hall", lambda rows: True, clock, MinuteLog())
    answer = usage_post.take(Request("", {}, lines(LINE, *too_old)))
    assert answer.status == 400
    assert [error["line"] for error in answer.content["errors"]] == list(range(2, 22))
    # each line that is read is held against the clock
    assert len(looks) == 21


def test_who_has_no_token_is_refused(site: Site, shelf: Shelf) -> None:
    """Without the token nothing is read or taken; the answer says how to send it."""
    for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1], "\xff"):
        status, said, headers = site.post(lines(LINE), token)
        assert status == 401
        assert "Authorization: Bearer" in said["error"]
        assert headers["WWW-Authenticate"] == "Bearer"
    assert not shelf.records


def test_off_without_a_token_in_the_settings(shelf: Shelf) -> None:
    """Nobody set a token, so nobody may write: the answer names the setting."""
    site = Site(Sink(shelf, 1.0), token=None)
    try:
        for token in (None, "", TOKEN):
            status, said, _ = site.post(lines(LINE), token)
            assert status == 403
            assert "serve.token" in said["error"]
    finally:
        site.server.stop()
    assert not shelf.records


def test_large_bodies_are_refused(site: Site, shelf: Shelf) -> None:
    """A body beyond the bound is refused before it is read, and the client gets to know."""
    status, said, _ = site.post(b"x" * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert str(MAX_BODY_BYTES) in said["error"]
    assert site.post(b"x" * (3 * MAX_BODY_BYTES), token="wrong")[0] == 401
    assert site.post(lines(LINE))[0] == 202
    assert len(shelf.records) == 1


def test_lengths_that_are_none(site: Site) -> None:
    """A body without a length, or with one that is no number, is refused in words."""
    head = f"POST /v1/usage HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    for length in ("Transfer-Encoding: chunked", "Content-Length: -5", "Content-Length: 9e9", "X: y"):
        with socket.create_connection(("127.0.0.1", site.server.port), timeout=10) as client:
            client.sendall(f"{head}{length}\r\n\r\n".encode())
            client.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: client.recv(65_536), b""))
        assert b" 411 " in said.partition(b"\r\n")[0]
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=10) as client:
        client.sendall(f"{head}Content-Length: {'9' * 5000}\r\n\r\n".encode())
        client.shutdown(socket.SHUT_WR)
        assert b" 411 " in client.recv(65_536)
    assert site.post(lines(LINE))[0] == 202


def test_who_leaves_halfway_has_sent_nothing(site: Site, shelf: Shelf) -> None:
    """A client that closes before its body is whole costs nothing and nobody."""
    head = (
        f"POST /v1/usage HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 500\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=10) as client:
        client.sendall(head.encode() + lines(LINE))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(65_536) == b""
    assert not shelf.records
    assert site.post(lines(LINE))[0] == 202


def test_other_methods_and_paths(site: Site) -> None:
    """GET of the route names the method to use; the metrics beside it need no token."""
    status, said, headers = site.ask("GET", "/v1/usage", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (status, headers["Allow"]) == (405, "POST")
    assert "POST" in said["error"]
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=10)
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 200
    connection.close()


def test_before_all_is_up() -> None:
    """While the rest starts, who posts is told to come again, not that there is nothing here."""
    server = MetricsServer("127.0.0.1", 0, lambda: b"", TOKEN)
    server.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/v1/usage", lines(LINE), {"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        connection.close()
    finally:
        server.stop()


def test_a_full_spool_takes_no_more_usage(shelf: Shelf, tmp_path: Path) -> None:
    """What was told to be kept is not dropped for what comes after it: that sender keeps its own."""
    shelf.away = True
    site = Site(Sink(shelf, 1.0, spool=Spool(tmp_path, 64 * 1024)))
    try:
        taken = 0
        while site.post(lines(LINE | {"event_id": random.Random(taken).randbytes(60).hex()}))[0] == 202:
            taken += 1
            assert taken < 2000
        assert site.usage_post.refused == {"not_stored": 1}
    finally:
        site.server.stop()
    spool = site.sink._spool
    assert spool is not None
    assert (spool.waiting_rows, spool.dropped_rows) == (taken, {})


def test_of_a_post_that_has_no_room_nothing_is_kept(shelf: Shelf, tmp_path: Path) -> None:
    """Nor if some of its messages would fit: who sends its lines again in another way counts none of them twice."""
    shelf.away = True
    spool = Spool(tmp_path, 100_000)
    usage_post = UsagePost("hall", Sink(shelf, 1.0, spool=spool).store, lambda: NOW_MS, MinuteLog())
    posts = 0
    while True:
        seed = random.Random(posts)
        rows = [LINE | {"event_id": seed.randbytes(8).hex()} for _ in range(2000)]
        answer = usage_post.take(Request("", {}, lines(*rows)))
        if answer.status == 503:
            break
        posts += 1
        assert posts < 100
    assert posts > 0
    assert spool.waiting_rows == 2000 * posts
    assert "not sure" in answer.content["error"]
    assert "Idempotency-Key" in answer.content["error"]
    spool.close()


@pytest.mark.parametrize("count", [1, 300])
def test_why_the_log_refuses_a_post_is_said(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Whether it is one message or several: the sender is told only that it is not sure that all is kept."""

    def refuse(records: Sequence[Record]) -> None:
        raise RefusedMessageError("raise max.message.bytes")

    monkeypatch.setattr(shelf, "append", refuse)
    usage_post = UsagePost("hall", Sink(shelf, 1.0).store, lambda: NOW_MS, MinuteLog())
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            answer = usage_post.take(Request("", {}, lines(*[LINE] * count)))
            assert answer.status == 503
    (said,) = [event for event in logged if event["event"] == "append_failed"]
    assert said["topic"] == topics.USAGE
    assert str(said["exc_info"]) == "raise max.message.bytes"


def test_an_id_may_be_anything(site: Site, shelf: Shelf) -> None:
    """Only names of consumers, models and tiers stand beside Idlewatt's own."""
    assert site.post(lines(LINE | {"event_id": str(("run-7", 3)), "team": "(eu) search (1)"}))[0] == 202
    assert len(shelf.rows()) == 1


def test_a_log_that_is_back_takes_what_the_spool_cannot(shelf: Shelf, small_disk: SmallDisk) -> None:
    """A collector without other rows asks the log again when its disk takes nothing."""
    spool = Spool(small_disk.folder, 64 * 1024)
    site = Site(Sink(shelf, 1.0, spool=spool))
    try:
        shelf.away = True
        small_disk.fill()
        assert site.post(lines(LINE))[0] == 503
        shelf.away = False
        assert site.post(lines(LINE))[0] == 202
    finally:
        site.server.stop()
    assert len(shelf.rows()) == 1


def test_without_a_place_for_them_rows_are_not_taken(site: Site, shelf: Shelf) -> None:
    """With the log away and no spool the sender keeps its events and is told when to come again."""
    shelf.away = True
    status, said, headers = site.post(lines(LINE))
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert "same ids" in said["error"]
    assert site.usage_post.refused == {"not_stored": 1}
    shelf.away = False
    assert site.post(lines(LINE))[0] == 202
    assert len(shelf.rows()) == 1


def test_each_reason_is_logged_with_its_own_count(shelf: Shelf) -> None:
    """Posts that could not be kept are not told as wrong lines, for one wrong line after them."""
    now_s = 0.0
    shelf.away = True
    usage_post = UsagePost("hall", Sink(shelf, 1.0).store, lambda: NOW_MS, MinuteLog(lambda: now_s))
    with structlog.testing.capture_logs() as logged:
        usage_post.take(Request("", {}, b"x"))
        for _ in range(57):
            usage_post.take(Request("", {}, lines(LINE)))
        now_s = 61.0
        usage_post.take(Request("", {}, b"x"))
    told = [(event["reason"], event["count"]) for event in logged if event["event"] == "usage_refused"]
    assert told[:2] == [("bad_lines", 1), ("not_stored", 1)]
    assert sorted(told[2:]) == [("bad_lines", 1), ("not_stored", 56)]
    assert usage_post.refused == {"bad_lines": 2, "not_stored": 57}


def test_refused_posts_are_said_though_none_comes_after_them(shelf: Shelf) -> None:
    """The sink says those that waited when their minute is over."""
    now_s = 0.0
    minute_log = MinuteLog(lambda: now_s)
    sink = Sink(shelf, 1.0, minute_log=minute_log)
    usage_post = UsagePost("hall", sink.store, lambda: NOW_MS, minute_log)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            usage_post.take(Request("", {}, b"x"))
        sink.send()
        assert [event["count"] for event in logged] == [1]
        now_s = 61.0
        sink.send()
        assert [event["count"] for event in logged] == [1, 2]


def only_usage(folder: Path) -> Settings:
    """Of a collector that reads nothing and takes what is posted."""
    return Settings(
        site="hall",
        log=Log(path=str(folder / "log.db")),
        collect=Collect(node="n", gpu="none"),
        serve=Serve(token=TOKEN),
    )


def test_refused_posts_are_said_at_the_end(tmp_path: Path) -> None:
    """What waits for its minute when the collector ends is said then."""
    told = only_usage(tmp_path)
    shelf = Shelf()
    shelf.away = True
    collection = Collection(told, shelf, clock=lambda: NOW_MS)
    (route,) = collection.routes
    with structlog.testing.capture_logs() as logged:
        collection.start()
        for _ in range(57):
            route.handle(Request("", {}, lines(LINE)))
        shelf.away = False
        collection.stop(1)
    assert [event["count"] for event in logged if event["event"] == "usage_refused"] == [1, 56]


def test_the_spool_takes_them_while_the_log_is_away(shelf: Shelf, tmp_path: Path) -> None:
    """What is answered with 202 is on disk: a collector that dies then and starts again still sends it."""
    spool = Spool(tmp_path, 1024 * 1024)
    sink = Sink(shelf, 1.0, spool=spool)
    site = Site(sink)
    shelf.away = True
    try:
        for i in range(3):
            assert site.post(lines(LINE | {"event_id": f"e{i}"}))[0] == 202
    finally:
        site.server.stop()
    assert sink.state().waiting_rows == 3
    # SIGKILL: nothing is closed but the folder's lock
    spool.close()
    shelf.away = False
    heir = Sink(shelf, 1.0, spool=Spool(tmp_path, 1024 * 1024))
    assert heir.send()
    assert {row["event_id"] for row in shelf.rows()} == {"e0", "e1", "e2"}
    assert heir.state().sent_rows[topics.USAGE] == 3
    heir.stop(1)


def test_nothing_is_taken_after_the_end(shelf: Shelf) -> None:
    """A sink that has stopped says so, instead of taking rows that nobody would send."""
    sink = Sink(shelf, 1.0)
    site = Site(sink)
    sink.stop(1)
    assert site.post(lines(LINE))[0] == 503
    site.server.stop()
    assert not shelf.records


def test_many_at_once(site: Site, shelf: Shelf) -> None:
    """Senders at the same time do not mix or lose each other's events."""
    statuses: list[int] = []

    def send(sender: int) -> None:
        for i in range(10):
            statuses.append(site.post(lines(LINE | {"event_id": f"{sender}-{i}"}))[0])

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [202] * 80
    assert {row["event_id"] for row in shelf.rows()} == {f"{s}-{i}" for s in range(8) for i in range(10)}


def test_a_collector_that_only_takes_usage(tmp_path: Path) -> None:
    """A token is enough of a setting to collect: what is posted is in the embedded log when 202 is answered."""
    told = only_usage(tmp_path)
    appender = EmbeddedAppender(told.log.path)
    collection = Collection(told, appender, clock=lambda: NOW_MS)
    server = MetricsServer("127.0.0.1", 0, lambda: b"", told.serve.token)
    server.start()
    server.open(collection.routes)
    collection.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/v1/usage", lines(LINE), {"Authorization": f"bearer {TOKEN}"})
        assert connection.getresponse().status == 202
        connection.close()
        connection.request("POST", "/v1/usage", b"x", {"Authorization": f"bearer {TOKEN}"})
        assert connection.getresponse().status == 400
        connection.close()
        told_of = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in collection.metrics.collect()
            for sample in metric.samples
        }
        assert told_of["idlewatt_sent_rows_total", topics.USAGE] == 1
        assert told_of["idlewatt_sample_errors_total", "usage_post", "bad_lines"] == 1
        log = EmbeddedStageLog(told.log.path, "test", (topics.USAGE,))
        messages = [message for _ in range(2) for message in log.poll(5.0).messages]
        log.close()
        assert [decode(message.value)[1].get_column("team").to_list() for message in messages] == [["search"]]
    finally:
        server.stop()
        collection.stop(1)
        appender.close()


@examples(200)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                lambda row: json.dumps(row).encode(),
                st.fixed_dictionaries(
                    {"model_name": st.just("m"), "ts_ms": st.just(NOW_MS), "output_tokens": st.integers()},
                    optional={
                        name: st.one_of(st.text(max_size=5), st.integers(), st.none())
                        for name in ("event_id", "team", "tier", "input_tokens", "source", "x")
                    },
                ),
            ),
        ),
        max_size=5,
    ),
    st.text(max_size=130),
)
def test_no_body_ends_the_server(parts: list[bytes], key: str) -> None:
    """Whatever is sent is taken or refused with a reason, and what is taken can be written."""
    shelf = Shelf()
    usage_post = UsagePost("hall", Sink(shelf, 1.0).store, lambda: NOW_MS, MinuteLog())
    answer = usage_post.take(Request("", {"idempotency-key": key}, b"\n".join(parts)))
    if answer.status == 202:
        assert answer.content["accepted"] == len(shelf.rows()) > 0
    else:
        assert answer.status == 400
        assert answer.content["errors"]
        assert not shelf.records
    assert json.loads(answer.body)
