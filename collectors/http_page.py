"""One page over HTTP, within a deadline and a size limit, whatever the server does."""

import http
import http.client
import ipaddress
import logging
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from idlewatt.stream.errors import ConfigError, SourceError

_CHUNK_BYTES: Final = 65_536
_HEADERS: Final = {
    # OpenMetrics would escape the ':' in names
    "Accept": "text/plain;version=0.0.4",
    "Accept-Encoding": "identity",
    "User-Agent": "idlewatt",
}

# each node has its own; those of containers are the machine they run on
_THIS_NODE: Final = frozenset(
    ("localhost", "localhost.localdomain", "host.docker.internal", "host.containers.internal")
)

# It warns of odd headers at every answer; what matters comes as an exception.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


class _DeadlineSocket(socket.socket):
    """A socket that receives nothing after `deadline` (monotonic seconds).

    A timeout counts for each receive alone: a byte a second would never meet it, not even in the headers.
    """

    deadline: float

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("deadline passed")
        self.settimeout(remaining_s)
        return super().recv_into(*args, **kwargs)


class _DeadlineTlsSocket(_DeadlineSocket, ssl.SSLSocket):
    """The same over TLS."""


class HttpPage:
    """A page that is fetched again and again over a connection that is kept. Used from one thread."""

    def __init__(self, url: str, timeout_s: float, max_bytes: int) -> None:
        """Raises ConfigError if the URL cannot be read."""
        try:
            parsed = urllib3.util.parse_url(url)
        except HTTPError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"{url!r} is not a URL such as http://127.0.0.1:8000/metrics")
        # an IPv6 address keeps its brackets
        self.host = parsed.host
        self.port = parsed.port or (443 if parsed.scheme == "https" else 80)
        # without the credentials a URL may hold: it stands in logs
        self._connection_to = f"{parsed.scheme}://{self.host}:{self.port}"
        self._shown = f"{self._connection_to}{parsed.path or '/'}"
        self._target = parsed.request_uri
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._headers = dict(_HEADERS)
        if parsed.auth:
            try:
                self._headers |= urllib3.make_headers(basic_auth=urllib.parse.unquote(parsed.auth))
            except UnicodeEncodeError:
                # the error itself would show them
                raise ConfigError(f"{self._shown}: user and password of the URL must be Latin-1") from None
        host, port = self.host.strip("[]"), self.port
        self._connection: HTTPConnection
        if parsed.scheme == "https":
            context = ssl.create_default_context()
            context.sslsocket_class = _DeadlineTlsSocket
            self._connection = HTTPSConnection(host, port, timeout=timeout_s, ssl_context=context)
        else:
            self._connection = HTTPConnection(host, port, timeout=timeout_s)

    @property
    def address(self) -> str:
        """Where it is, written in one way, without credentials."""
        return f"{self._connection_to}{self._target}"

    def name_seen_from(self, node: str, name: str | None = None) -> str:
        """`name`, or host:port; with the node's name for a host that is another one on each node."""
        # Two nodes of a pool would both have a 127.0.0.1:8000, and their counters would be taken for one's.
        if _is_of_this_node(self.host):
            return f"{node}:{name or self.port}"
        return name or f"{self.host}:{self.port}"

    def fetch(self, token: str | None = None) -> bytearray:
        """The page's body, at most `max_bytes` of it ever in memory. `token` is sent as a bearer token.

        Raises SourceError with reason unreachable, timeout, http_status, encoded_body, too_large or bad_http.
        """
        headers = self._headers if token is None else self._headers | {"Authorization": f"Bearer {token}"}
        try:
            return self._fetch(time.monotonic() + self._timeout_s, headers)
        except BaseException as error:
            # what is left of the answer would be taken for the next one
            self.close()
            if _is_timeout(error):
                raise SourceError(
                    "timeout", f"{self._shown} had not answered in full after {self._timeout_s:g} s"
                ) from error
            if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
                raise SourceError("bad_http", f"{self._shown} does not speak HTTP: {error!r}") from error
            if isinstance(error, HTTPError | OSError):
                # urllib3's own texts name its objects, their causes name what happened
                what = error.__cause__ or error
                raise SourceError("unreachable", f"{self._shown} cannot be read: {what}") from error
            raise

    def close(self) -> None:
        """Close the connection; the next fetch opens another."""
        self._connection.close()

    def _fetch(self, deadline: float, headers: Mapping[str, str]) -> bytearray:
        kept = self._connection.is_connected
        if not kept:
            self._connection.close()
        try:
            response = self._ask(deadline, headers)
        except ConnectionError:
            if not kept:
                raise
            # The server closed the idle connection just as we asked; that says nothing about the server.
            self._connection.close()
            response = self._ask(deadline, headers)
        try:
            self._check(response)
            return self._body(response)
        except BaseException:
            response.close()
            raise

    def _ask(self, deadline: float, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        connection = self._connection
        if connection.sock is None:
            connection.timeout = max(deadline - time.monotonic(), 0.001)
            connection.connect()
        sock = connection.sock
        assert sock is not None
        if not isinstance(sock, _DeadlineSocket):
            sock = connection.sock = _DeadlineSocket(fileno=sock.detach())
        sock.deadline = deadline
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        connection.request("GET", self._target, headers=headers, preload_content=False, decode_content=False)
        return connection.getresponse()

    def _check(self, response: urllib3.BaseHTTPResponse) -> None:
        if response.status != http.HTTPStatus.OK:
            raise SourceError("http_status", f"{self._shown} answered {_status(response)}")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise SourceError(
                "encoded_body", f"{self._shown} sends {encoding[:40]!r} though it was asked for plain text"
            )
        # http.client takes chunks apart where it says just this, and else leaves their lengths among the figures
        transfer = response.headers.get("Transfer-Encoding", "chunked")
        if transfer.lower() != "chunked":
            raise SourceError(
                "bad_http", f"{self._shown} sends its page as {transfer[:40]!r}, not as chunked"
            )
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _body(self, response: urllib3.BaseHTTPResponse) -> bytearray:
        body = bytearray()
        while chunk := response.read(min(_CHUNK_BYTES, self._max_bytes + 1 - len(body))):
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large()
        return body

    def _too_large(self) -> SourceError:
        return SourceError(
            "too_large", f"{self._shown} is larger than {self._max_bytes} bytes (collect.max_body_bytes)"
        )


def _is_of_this_node(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.startswith("127.") or host.lower().rstrip(".") in _THIS_NODE
    mapped = getattr(address, "ipv4_mapped", None)
    # to connect to 0.0.0.0 is to connect to oneself
    return any(one.is_loopback or one.is_unspecified for one in (address, mapped) if one is not None)


def _is_timeout(error: BaseException) -> bool:
    if isinstance(error, NewConnectionError):
        # a refused connection; urllib3 derives it from its ConnectTimeoutError
        return False
    return isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError)


def _status(response: urllib3.BaseHTTPResponse) -> str:
    status = response.status
    try:
        text = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        text = str(status)
    location = response.headers.get("Location")
    if 300 <= status < 400 and location:
        return f"{text}: put {location[:200]!r} in the configuration, redirects are not followed"
    return text
