import gzip
import re
import socket
import ssl
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_http import LoopbackServer, page, reset, says, serving

from idlewatt.collectors.http_page import HttpPage
from idlewatt.stream.errors import ConfigError, SourceError

LIMIT = 1024 * 1024
TLS = Path(__file__).parent / "testdata" / "tls"
GOOD = page(b"up 1\n")


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(says(GOOD)) as server:
        yield server


def fetch_fails(server: LoopbackServer, timeout_s: float = 5.0) -> tuple[SourceError, float]:
    """The error of one fetch, how long it took; and that the next fetch of a mended server is good."""
    client = HttpPage(server.url, timeout_s, LIMIT)
    started = time.monotonic()
    with pytest.raises(SourceError) as failed:
        client.fetch()
    took_s = time.monotonic() - started
    server.answer = says(GOOD)
    assert client.fetch() == b"up 1\n"
    client.close()
    assert server.address in str(failed.value)
    return failed.value, took_s


def test_asks_for_plain_unencoded_text(server: LoopbackServer) -> None:
    """The request names the text format, refuses encodings, and carries the URL's path and query."""
    client = HttpPage(server.url + "?model=m", 5, LIMIT)
    assert client.fetch() == b"up 1\n"
    [request] = server.requests
    assert request.startswith(b"GET /metrics?model=m HTTP/1.1\r\n")
    assert b"\r\nAccept: text/plain;version=0.0.4\r\n" in request
    assert b"\r\nAccept-Encoding: identity\r\n" in request
    client.close()


def test_sends_credentials_of_the_url_and_never_shows_them(server: LoopbackServer) -> None:
    """User and password in the URL become basic authentication and stand in no error."""
    client = HttpPage(server.url.replace("//", "//user:secr%40t@"), 5, LIMIT)
    client.fetch()
    assert b"authorization: Basic dXNlcjpzZWNyQHQ=\r\n" in server.requests[0]
    server.answer = says(page(b"", status="401 Unauthorized"))
    with pytest.raises(SourceError) as failed:
        client.fetch()
    assert "secr" not in str(failed.value)
    assert f"{client.host}:{client.port}" == server.address
    client.close()


def test_keeps_the_connection(server: LoopbackServer) -> None:
    """A hundred fetches take one connection, with and without chunks."""
    client = HttpPage(server.url, 5, LIMIT)
    for _ in range(50):
        assert client.fetch() == b"up 1\n"
    server.answer = says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nup \r\n2\r\n1\n\r\n0\r\n\r\n"
    )
    for _ in range(50):
        assert client.fetch() == b"up 1\n"
    assert server.connections == 1
    client.close()


def test_a_connection_that_idled_out_is_no_failure(server: LoopbackServer) -> None:
    """Whether the server closes the kept connection before or just as the next request comes, that one succeeds."""

    def once_then_close(connection: socket.socket, request: bytes) -> None:
        connection.sendall(GOOD)
        connection.close()

    server.answer = once_then_close
    client = HttpPage(server.url, 5, LIMIT)
    for _ in range(3):
        assert client.fetch() == b"up 1\n"
    assert server.connections == 3

    def close_when_asked_again(connection: socket.socket, request: bytes) -> None:
        if len(server.requests) == 5:
            reset(connection)
        else:
            connection.sendall(GOOD)

    server.answer = close_when_asked_again
    assert client.fetch() == b"up 1\n"
    assert client.fetch() == b"up 1\n"
    assert len(server.requests) == 6
    client.close()


@pytest.mark.parametrize(
    "status", ["404 Not Found", "500 Internal Server Error", "204 No Content", "799 Odd"]
)
def test_any_status_but_200_is_told(server: LoopbackServer, status: str) -> None:
    """The error has the reason http_status and the code in its text."""
    server.answer = says(page(b"", status=status))
    error, _ = fetch_fails(server)
    assert error.reason == "http_status"
    assert status[:3] in str(error)


@pytest.mark.parametrize(
    "encoding", ["chunked ", "identity, chunked", "chunked, chunked", "chunked;q=1", "gzip, chunked"]
)
def test_chunks_that_nobody_takes_apart_are_refused(server: LoopbackServer, encoding: str) -> None:
    """A number that a chunk's border cuts would be believed as far as it goes."""
    chunks = b"5\r\nup 12\r\n3\r\n34\n\r\n0\r\n\r\n"
    server.answer = says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n%b" % (encoding.encode(), chunks))
    error, _ = fetch_fails(server)
    assert error.reason == "bad_http"
    assert encoding.split()[0] in str(error)


def test_redirects_are_not_followed(server: LoopbackServer) -> None:
    """A redirect is an error that says where it points, and nothing is asked there."""
    with serving(says(GOOD)) as elsewhere:
        server.answer = says(page(b"", f"Location: {elsewhere.url}/", status="307 Temporary Redirect"))
        error, _ = fetch_fails(server)
        assert error.reason == "http_status"
        assert "307" in str(error)
        assert f"{elsewhere.url}/" in str(error)
        assert not elsewhere.requests


@pytest.mark.parametrize(
    "framing", ["Content-Length: 200000000", "Transfer-Encoding: chunked", "Connection: close"]
)
def test_200_megabytes_are_refused_within_the_limit(server: LoopbackServer, framing: str) -> None:
    """However the length is told or not, no more than the limit is ever in memory."""
    megabyte = b"x" * 1_000_000

    def endless(connection: socket.socket, request: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        for _ in range(200):
            connection.sendall(b"f4240\r\n%b\r\n" % megabyte if "chunked" in framing else megabyte)
        connection.close()

    server.answer = endless
    client = HttpPage(server.url, 20, LIMIT)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError) as failed:
            client.fetch()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        client.close()
    assert failed.value.reason == "too_large"
    assert str(LIMIT) in str(failed.value)
    # the server's own piece, the body's buffer with its room to grow, a chunk
    assert peak < 2 * len(megabyte) + 1.2 * LIMIT + 300_000


def test_a_page_of_exactly_the_limit_is_taken(server: LoopbackServer) -> None:
    """The limit itself is allowed, one byte more is not."""
    server.answer = says(page(b"x" * LIMIT), page(b"x" * (LIMIT + 1)))
    client = HttpPage(server.url, 5, LIMIT)
    assert len(client.fetch()) == LIMIT
    with pytest.raises(SourceError, match="larger than"):
        client.fetch()
    client.close()


def test_a_gzip_bomb_is_refused_unread(server: LoopbackServer) -> None:
    """An encoded answer has reason encoded_body and is never unpacked."""
    bomb = gzip.compress(b"\0" * 50_000_000)
    server.answer = says(page(bomb, "Content-Encoding: gzip"))
    client = HttpPage(server.url, 5, LIMIT)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError) as failed:
            client.fetch()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        client.close()
    assert failed.value.reason == "encoded_body"
    assert peak < 500_000


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 90,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"up 1\n" * 2_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nup 1\n\r\n" * 1_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 1_000,
    ],
    ids=["silence", "long header", "many headers", "continues", "body", "chunks", "trailers"],
)
def test_the_deadline_holds_against_a_byte_at_a_time(server: LoopbackServer, sent: bytes) -> None:
    """However slowly the answer trickles, the fetch ends when its time is up."""
    # the head at once where the slow part comes later: only 25 bytes fit into the time
    at_once = sent.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in sent and b"100 " not in sent else 0

    def trickle(connection: socket.socket, request: bytes) -> None:
        connection.sendall(sent[:at_once])
        server.trickle(connection, sent[at_once:])
        server.ending.wait(10)

    server.answer = trickle
    error, took_s = fetch_fails(server, timeout_s=0.5)
    assert error.reason == "timeout"
    assert "0.5 s" in str(error)
    assert 0.45 < took_s < 1.5


def test_a_reset_or_refused_connection_is_unreachable(server: LoopbackServer) -> None:
    """Before, within and instead of an answer."""
    server.answer = lambda connection, request: reset(connection)
    assert fetch_fails(server)[0].reason == "unreachable"

    def half(connection: socket.socket, request: bytes) -> None:
        connection.sendall(GOOD[:-3])
        connection.close()

    server.answer = half
    assert fetch_fails(server)[0].reason == "unreachable"
    server.close()
    with pytest.raises(SourceError) as failed:
        HttpPage(server.url, 5, LIMIT).fetch()
    assert failed.value.reason == "unreachable"


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"]
)
def test_what_is_not_http_is_told(server: LoopbackServer, answer: bytes) -> None:
    """Another protocol, or more headers than HTTP clients take, has the reason bad_http."""
    server.answer = says(answer)
    assert fetch_fails(server)[0].reason == "bad_http"


def test_the_deadline_holds_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trusted server is read over TLS, a trickling one ends on time, an untrusted one is unreachable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    with serving(says(GOOD), context) as server:
        with pytest.raises(SourceError, match=re.compile("certificate", re.IGNORECASE)) as untrusted:
            HttpPage(server.url, 5, LIMIT).fetch()
        assert untrusted.value.reason == "unreachable"

        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
        client = HttpPage(server.url, 0.5, LIMIT)
        assert client.fetch() == client.fetch() == b"up 1\n"
        assert server.connections == 2
        server.answer = lambda connection, request: server.trickle(
            connection, b"HTTP/1.1 200 OK\r\n" + b"x" * 999
        )
        started = time.monotonic()
        with pytest.raises(SourceError) as slow:
            client.fetch()
        assert slow.value.reason == "timeout"
        assert time.monotonic() - started < 1.5
        client.close()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/metrics", "http://", "http://[::1/metrics", "metrics"])
def test_a_url_that_is_none_is_a_config_error(url: str) -> None:
    """It is named when the source is made, not at the first reading."""
    with pytest.raises(ConfigError, match=re.escape(url)):
        HttpPage(url, 5, LIMIT)


def test_credentials_that_no_header_holds_are_not_shown() -> None:
    """The error over them would quote them."""
    with pytest.raises(ConfigError, match="Latin-1") as error:
        HttpPage("http://ada:\u043f\u0430\u0440\u043e\u043b\u044c@127.0.0.1:8000/metrics", 1.0, 1000)
    assert "ada" not in str(error.value)
    assert "http://127.0.0.1:8000/metrics" in str(error.value)
