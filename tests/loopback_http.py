"""HTTP servers on loopback that answer as a test tells them, rightly or wrongly."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

Answer = Callable[[socket.socket, bytes], None]


def page(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer with its length."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def says(*answers: bytes) -> Answer:
    """Answers the first request with the first of them, and so on; the last one is repeated."""
    left = list(answers)

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return answer


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class LoopbackServer:
    """Calls `answer(connection, request head)` for each request; the connection stays open until it is closed."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.connections = 0
        self.requests: list[bytes] = []
        self.ending = threading.Event()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.address}/metrics"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.ending.set()
        # a blocked accept would take one more
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.close()

    def trickle(self, connection: socket.socket, data: bytes, pause_s: float = 0.02) -> None:
        """Send byte by byte until the client or the test has had enough."""
        for byte in data:
            if self.ending.wait(pause_s):
                return
            connection.sendall(bytes([byte]))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            head = b""
            while received := connection.recv(65_536):
                head += received
                if head.endswith(b"\r\n\r\n"):
                    self.requests.append(head)
                    self.answer(connection, head)
                    head = b""


@contextlib.contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[LoopbackServer]:
    """A server for the time of a with block."""
    server = LoopbackServer(answer, tls)
    try:
        yield server
    finally:
        server.close()
