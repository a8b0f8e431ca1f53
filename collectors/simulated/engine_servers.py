"""One real HTTP server per simulated engine, on 127.0.0.1, each on its own free port."""

import contextlib
import selectors
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from idlewatt.collectors.simulated.clocked import ClockedFactory
from idlewatt.collectors.simulated.hall import SimulatedEngine
from idlewatt.collectors.simulated.outages import PAGE_HANGS, PAGE_REFUSES
from idlewatt.collectors.simulated.vllm_page import page

_LOOK_AGAIN_S: Final = 0.2


class _EngineServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    # handle_request only takes what is there
    timeout = 0

    def __init__(self, clocked: ClockedFactory, engine: SimulatedEngine, closing: threading.Event) -> None:
        self.clocked = clocked
        self.engine = engine
        self.closing = closing
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client that hangs up is no news
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _EngineServer
    # a client that sends no request
    timeout = 30

    def do_GET(self) -> None:
        with self.server.clocked.now() as now_ms:
            wrong = self.server.engine.page
            body = b"" if wrong else page(self.server.engine.model, now_ms)
        if wrong == PAGE_REFUSES:
            return  # the connection closes without an answer
        if wrong == PAGE_HANGS:
            self._hang()
        elif wrong or self.path.partition("?")[0] != "/metrics":
            self._answer(404, "application/json", b'{"detail":"Not Found"}')
        else:
            self._answer(200, "text/plain; version=0.0.4; charset=utf-8", body)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang(self) -> None:
        """Answer nothing until the client gives up or the servers close."""
        self.connection.settimeout(_LOOK_AGAIN_S)
        while not self.server.closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(4096):
                    return

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape is no event."""


class EngineServers:
    """Serves `http://127.0.0.1:PORT/metrics` for every engine until closed; `urls` is keyed by engine name.

    During outages a page closes the connection without an answer, answers nothing at all, or answers 404.
    """

    def __init__(self, clocked: ClockedFactory) -> None:
        self._closing = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._servers = [_EngineServer(clocked, one, self._closing) for one in clocked.factory.engines]
        self.urls = {
            server.engine.name: f"http://127.0.0.1:{server.server_port}/metrics" for server in self._servers
        }
        for server in self._servers:
            self._selector.register(server, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        # one thread accepts for all; each connection has its own
        self._thread = threading.Thread(target=self._accept, name="simulated-engines", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select():
                if isinstance(key.fileobj, _EngineServer):
                    key.fileobj.handle_request()

    def close(self) -> None:
        """Stop answering; hanging connections end too."""
        self._closing.set()
        self._wake.send(b"\0")
        self._thread.join()
        self._selector.close()
        for server in self._servers:
            server.server_close()
        self._wake.close()
        self._woken.close()
