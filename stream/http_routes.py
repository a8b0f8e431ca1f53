"""What is served over HTTP beside /metrics: routes that answer in JSON, each only to those who know the token."""

import hmac
import http
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

_BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler is given. Header names are in small letters."""

    # what follows the route's path, percent-escapes resolved
    rest: str
    headers: Mapping[str, str]
    body: bytes
    # what follows the question mark; the last of keys that come twice
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and what is sent as JSON with it."""

    status: http.HTTPStatus
    content: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return json.dumps(self.content, ensure_ascii=False).encode(errors="replace") + b"\n"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path, or of all that begin with it where it ends in a slash.

    `handle` is called from several threads at once.
    """

    method: Literal["GET", "POST"]
    path: str
    handle: Callable[[Request], Answer]
    max_body_bytes: int = 0

    def rest_of(self, path: str) -> str | None:
        """What of the path is the handler's to read; None if the route is another."""
        if self.path.endswith("/"):
            return path.removeprefix(self.path) if path.startswith(self.path) else None
        return "" if path == self.path else None


def error(status: http.HTTPStatus, text: str, **headers: str) -> Answer:
    """An answer that says what is wrong; `_` in a header's name stands for `-`."""
    return Answer(status, {"error": text}, {name.replace("_", "-"): value for name, value in headers.items()})


def refusal(authorization: str, token: str | None) -> Answer | None:
    """Why a request with this Authorization header is not answered; None if it is."""
    if not token:
        return error(
            http.HTTPStatus.FORBIDDEN, "this is off: set serve.token (IDLEWATT_SERVE__TOKEN) to turn it on"
        )
    given = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else ""
    # takes as long for a wrong token as for a nearly right one
    if hmac.compare_digest(given.encode(errors="replace"), token.encode(errors="replace")):
        return None
    return error(
        http.HTTPStatus.UNAUTHORIZED,
        "send the header 'Authorization: Bearer TOKEN' with the token of serve.token",
        WWW_Authenticate="Bearer",
    )


def choose(
    routes: Sequence[Route] | None, token: str | None, method: str, path: str, headers: Mapping[str, str]
) -> tuple[Route, str, int] | Answer | None:
    """The route of a request, what is left of its path, and the length of its body; or why it is refused.

    None where no route has the path. `routes` is None while they are not served yet.
    """
    if routes is None and path.startswith("/v1/"):
        return error(http.HTTPStatus.SERVICE_UNAVAILABLE, "starting up: ask again", Retry_After="1")
    found = [(route, rest) for route in routes or () if (rest := route.rest_of(path)) is not None]
    if not found:
        return None
    if refused := refusal(headers.get("authorization", ""), token):
        return refused
    asked = "GET" if method == "HEAD" else method
    chosen = next((one for one in found if one[0].method == asked), None)
    if chosen is None:
        allowed = ", ".join(route.method for route, _ in found)
        return error(http.HTTPStatus.METHOD_NOT_ALLOWED, f"ask with {allowed}", Allow=allowed)
    route, rest = chosen
    length = body_length(headers)
    if length is None:
        if method == "POST":
            return error(
                http.HTTPStatus.LENGTH_REQUIRED, "send the body in one piece, with its Content-Length"
            )
        length = 0
    if length > route.max_body_bytes:
        return error(
            http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has {length} bytes, at most {route.max_body_bytes} are taken: send it in parts",
        )
    return route, rest, length


def body_length(headers: Mapping[str, str]) -> int | None:
    """What Content-Length says; None where the length is not known beforehand."""
    length = headers.get("content-length", "")
    # no more digits than any length has: int() of a million of them takes long
    return int(length) if length.isascii() and length.isdecimal() and len(length) <= 18 else None
