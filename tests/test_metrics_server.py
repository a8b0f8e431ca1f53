import gzip
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import structlog
import urllib3

from idlewatt.stream.errors import ConfigError
from idlewatt.stream.metrics_server import MetricsServer, PortTakenError

BODY = b'idlewatt_gpus{site="s"} 8\n' * 100


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1", 0, lambda: BODY)
    server.start()
    yield server
    server.stop()


def get(url: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.request(method, url, headers=fields, decode_content=False, timeout=5, retries=False)


def test_serves_the_metrics(server: MetricsServer) -> None:
    """A scrape gets the body in the text format; the URL is whole and has the port that was free."""
    assert server.port > 0
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"
    response = get(server.url)
    assert (response.status, response.data) == (200, BODY)
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "Content-Encoding" not in response.headers
    assert get(server.url + "?name[]=x").data == BODY


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("xgzip", False),
    ],
)
def test_zips_for_those_who_ask(server: MetricsServer, accepted: str, zipped: bool) -> None:
    """Prometheus asks for gzip and gets it; who does not ask gets the text."""
    response = get(server.url, Accept_Encoding=accepted)
    assert response.headers.get("Content-Encoding") == ("gzip" if zipped else None)
    assert (gzip.decompress(response.data) if zipped else response.data) == BODY
    assert int(response.headers["Content-Length"]) == len(response.data)


def test_answers_head_health_and_other_paths(server: MetricsServer) -> None:
    """HEAD has the length and no body, /healthz is ok, everything else is not found."""
    root = server.url.removesuffix("/metrics")
    head = get(server.url, "HEAD")
    assert (head.status, head.headers["Content-Length"], head.data) == (200, str(len(BODY)), b"")
    assert (get(f"{root}/healthz").status, get(f"{root}/healthz").data) == (200, b"ok\n")
    assert [get(f"{root}{path}").status for path in ("/", "/metrics/x", "/../etc/passwd")] == [404] * 3
    assert get(server.url, "POST").status == 404
    assert get(server.url, "DELETE").status == 501


def test_a_taken_port_is_named_with_the_setting() -> None:
    """The error says which port, and both ways to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"port {port} .*serve\.port.*IDLEWATT_PORT"):
            MetricsServer("127.0.0.1", port, lambda: BODY).start()


def test_an_address_of_another_host_is_a_config_error() -> None:
    """The error names the setting."""
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(ConfigError, match=r"serve\.host"):
            MetricsServer(host, 0, lambda: BODY).start()


def test_a_port_is_free_again_after_stop() -> None:
    """Stopping and starting at the same port works at once, also after connections."""
    server = MetricsServer("127.0.0.1", 0, lambda: BODY)
    for _ in range(3):
        server.start()
        assert get(server.url).status == 200
        server.stop()
    with pytest.raises(urllib3.exceptions.HTTPError):
        get(server.url)
    server.stop()


def test_the_url_is_one_that_can_be_opened() -> None:
    """A server that listens on all addresses is shown with one of them."""
    assert MetricsServer("0.0.0.0", 9477, lambda: BODY).url == "http://127.0.0.1:9477/metrics"
    assert MetricsServer("::", 9477, lambda: BODY).url == "http://[::1]:9477/metrics"


def test_slow_clients_block_nobody(server: MetricsServer) -> None:
    """Beside two hundred clients that never finish their request, a scrape is answered at once."""
    slow = []
    try:
        for _ in range(200):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            client.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
            slow.append(client)
        started = time.monotonic()
        assert get(server.url).data == BODY
        assert time.monotonic() - started < 2
        assert threading.active_count() < 120
    finally:
        for client in slow:
            client.close()


def test_a_slow_body_blocks_no_other_request() -> None:
    """While one scrape is being rendered, health is still answered."""
    release, entered = threading.Event(), threading.Event()

    def body() -> bytes:
        entered.set()
        release.wait(20)
        return BODY

    server = MetricsServer("127.0.0.1", 0, body)
    server.start()
    try:
        answers: list[bytes] = []
        scrape = threading.Thread(target=lambda: answers.append(get(server.url).data))
        scrape.start()
        assert entered.wait(5)
        assert get(server.url.replace("/metrics", "/healthz")).status == 200
        release.set()
        scrape.join(5)
        assert answers == [BODY]
    finally:
        release.set()
        server.stop()


def test_a_body_that_fails_is_a_500_and_logged_once() -> None:
    """The server lives on, and says so once a minute however often it is asked."""
    failures = [ValueError("no"), ValueError("no")]

    def body() -> bytes:
        if failures:
            raise failures.pop()
        return BODY

    server = MetricsServer("127.0.0.1", 0, body)
    server.start()
    try:
        with structlog.testing.capture_logs() as logged:
            assert [get(server.url).status for _ in range(3)] == [500, 500, 200]
        assert [event["event"] for event in logged] == ["metrics_failed"]
    finally:
        server.stop()


def test_garbage_and_broken_connections_harm_nothing(
    server: MetricsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no HTTP is refused, who hangs up is forgotten, and nothing is printed."""
    for sent in (b"\x16\x03\x01\x02\x00" * 10 + b"\r\n\r\n", b"GET\r\n\r\n", b"", b"G" * 100_000 + b"\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(sent)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/metrics")
    connection.close()
    assert get(server.url).status == 200
    assert capsys.readouterr() == ("", "")
