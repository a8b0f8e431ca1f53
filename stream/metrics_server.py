"""Serves /metrics and /healthz over HTTP, and the routes of whoever runs beside them."""

import contextlib
import errno
import gzip
import http
import http.server
import socket
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from idlewatt.stream.errors import ConfigError
from idlewatt.stream.http_routes import Request, Route, body_length, choose, error
from idlewatt.stream.minute_log import MinuteLog

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Prometheus opens one, a browser a few; more at once are slow or forgotten ones.
_MAX_CONNECTIONS: Final = 64
_IDLE_TIMEOUT_S: Final = 10.0
# of a body that is refused: an answer would be lost if the connection closed before its client had sent so much
_DISCARD_BYTES: Final = 4 * 1024 * 1024

_log = structlog.get_logger()


class PortTakenError(ConfigError):
    """Another process listens on the port already."""


class MetricsServer:
    """Serves what `body` returns at /metrics, and "ok" at /healthz, each request on a thread of its own.

    `body` is called for each request and from several threads at once.
    """

    def __init__(self, host: str, port: int, body: Callable[[], bytes], token: str | None = None) -> None:
        """Port 0 takes a free one. `token` is asked of those who use a route; without one the routes are off."""
        self._host = host
        self.port = port
        self._body = body
        self._token = token
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Address of the metrics page as seen from this host; the real port once started."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def start(self) -> None:
        """Listen. Raises PortTakenError, or ConfigError for an address that is not this host's."""
        try:
            self._server = _Server(self._host, self.port, self._body, self._token)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(
                    f"port {self.port} on {self._host} is taken: set serve.port in the configuration or "
                    "IDLEWATT_PORT in the environment to another, or to 0 for any free one"
                ) from error
            raise ConfigError(
                f"cannot listen on {self._host} port {self.port} ({error}): "
                "set serve.host and serve.port (IDLEWATT_PORT) to an address of this host"
            ) from error
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="metrics server",
            daemon=True,
        )
        self._thread.start()

    def open(self, routes: Sequence[Route]) -> None:
        """Serve the routes from now on; until then whoever asks is told to come again."""
        assert self._server is not None
        self._server.routes = tuple(routes)

    def stop(self) -> None:
        """Stop listening and cut what is still being answered."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server.cut_connections()
            self._server = self._thread = None


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, body: Callable[[], bytes], token: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.body = body
        self.token = token
        # None: what serves them is not up yet
        self.routes: tuple[Route, ...] | None = None
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, None] = {}
        self._minute_log = MinuteLog()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            # a client that keeps its connection busy for ever makes room for one that does not
            if len(self._connections) >= _MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                _cut(oldest)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            self.log_exception()

    def log_exception(self) -> None:
        """Log the exception being handled, once a minute."""
        if self._minute_log.is_due("metrics_failed"):
            _log.exception("metrics_failed")


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "idlewatt"
    sys_version = ""
    timeout = _IDLE_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            try:
                body = self.server.body()
            except Exception:
                self.server.log_exception()
                self._answer(http.HTTPStatus.INTERNAL_SERVER_ERROR, b"the metrics cannot be rendered\n")
            else:
                self._answer(http.HTTPStatus.OK, body)
        elif path == "/healthz":
            self._answer(http.HTTPStatus.OK, b"ok\n")
        else:
            self._answer_route(path)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer_route(self.path.partition("?")[0])

    def _answer_route(self, path: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        chosen = choose(self.server.routes, self.server.token, self.command, path, headers)
        if isinstance(chosen, tuple):
            route, rest, length = chosen
            body = self.rfile.read(length)
            if len(body) < length:
                return  # the client has left
            try:
                query = dict(urllib.parse.parse_qsl(self.path.partition("?")[2], keep_blank_values=True))
                chosen = route.handle(Request(urllib.parse.unquote(rest), headers, body, query))
            except Exception:
                self.server.log_exception()
                chosen = error(http.HTTPStatus.INTERNAL_SERVER_ERROR, "this failed here: see the log")
        else:
            self._discard(body_length(headers) or 0)
        if chosen is None:
            paths = ["/metrics", "/healthz", *(route.path for route in self.server.routes or ())]
            self._answer(http.HTTPStatus.NOT_FOUND, f"there are {', '.join(paths)}\n".encode())
        else:
            self._send(chosen.status, chosen.body, {"Content-Type": "application/json", **chosen.headers})

    def _discard(self, count: int) -> None:
        left = min(count, _DISCARD_BYTES)
        with contextlib.suppress(OSError):
            while left > 0 and (read := self.rfile.read(min(left, 65_536))):
                left -= len(read)

    def _answer(self, status: http.HTTPStatus, body: bytes) -> None:
        self._send(status, body, {"Content-Type": CONTENT_TYPE})

    def _send(self, status: http.HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Vary", "Accept-Encoding")
        if _takes_gzip(self.headers.get("Accept-Encoding", "")):
            self.send_header("Content-Encoding", "gzip")
            # level 1 is a third of the default's time for a tenth more bytes
            body = gzip.compress(body, compresslevel=1)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: a scrape is no event."""


def _takes_gzip(accepted: str) -> bool:
    for coding in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        if name == "gzip":
            return not any(
                parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000")
                for parameter in parameters
            )
    return False
