"""POST /v1/usage: agents and home-made gateways tell what they spent, a line of JSON for each event."""

import http
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from idlewatt.stream.clock import HOUR_MS, Clock
from idlewatt.stream.http_routes import Answer, Request, Route, error
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.records import UsageRow
from idlewatt.stream.topics import EVENT_HORIZON_MS

PATH: Final = "/v1/usage"
MAX_BODY_BYTES: Final = 1024 * 1024
# the longest names, of characters that JSON escapes by 12 bytes, come to 12 kB; of a megabyte of unknown names each would
# be an error of its own
MAX_LINE_BYTES: Final = 16 * 1024
_KEY: Final = "idempotency-key"
# less than the 15 s that processors take, whose clocks may be behind
_AHEAD_MS: Final = 10_000
# in milliseconds early in 1973, in seconds the year 5138
_NO_SECONDS_MS: Final = 10**11
# who sends worse than this is told so far; to read on cost seconds and 180 MB for a body of short lines
_MOST_ERRORS: Final = 20
_RETRY_AFTER_S: Final = 5


def _plain(text: str) -> str:
    if any(character < " " for character in text):
        raise ValueError("there are no control characters in it, such as tabs and line ends")
    return text


def _not_ours(name: str) -> str:
    if name.startswith("(") and name.find(")") == len(name) - 1:
        raise ValueError("names in brackets are Idlewatt's own, such as (other)")
    return name


_Text = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_plain)]
_Name = Annotated[_Text, AfterValidator(_not_ours)]
_Tokens = Annotated[int, Field(ge=0, le=10**12)]


class UsageLine(BaseModel):
    """One line: what one event spent, and who spent it."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    event_id: _Text | None = None
    ts_ms: Annotated[int, Field(ge=0, lt=1 << 63)]
    source: _Text = "api"
    function: _Name | None = None
    team: _Name | None = None
    agent_family: _Name | None = None
    engineer: _Name | None = None
    model_name: _Name
    tier: _Name | None = None
    output_tokens: _Tokens
    input_tokens: _Tokens = 0
    cached_input_tokens: _Tokens = 0


class UsagePost:
    """Takes usage over HTTP. Of a request with a wrong line nothing is taken; of one that is answered with 503 the log
    may have some lines or all, for it did not say in time."""

    def __init__(
        self, site: str, store: Callable[[Sequence[UsageRow]], bool], clock: Clock, minute_log: MinuteLog
    ) -> None:
        """`store` returns True when rows are where no crash takes them. It is called from several threads.

        `minute_log` is the caller's to flush.
        """
        self._site = site
        self._store = store
        self._clock = clock
        self._minute_log = minute_log
        self._refused: Counter[str] = Counter()

    @property
    def route(self) -> Route:
        return Route("POST", PATH, self.take, MAX_BODY_BYTES)

    @property
    def refused(self) -> Mapping[str, int]:
        """Requests by the reason for which they were refused."""
        return dict(self._refused)

    def take(self, request: Request) -> Answer:
        """202 if all is taken, 400 with the first lines that are wrong, 503 if it is not sure that all is kept."""
        rows, errors = self._rows(request.body, request.headers.get(_KEY, ""))
        if errors:
            self._refuse("bad_lines", line=errors[0]["line"], error=errors[0]["error"])
            return Answer(http.HTTPStatus.BAD_REQUEST, {"accepted": 0, "errors": errors})
        if not self._store(rows):
            self._refuse("not_stored", mend="see why the log takes nothing, and send it again")
            return error(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                "it is not sure that all of it is kept: send the same again, with the same ids or Idempotency-Key",
                Retry_After=str(_RETRY_AFTER_S),
            )
        return Answer(http.HTTPStatus.ACCEPTED, {"accepted": len(rows)})

    def _refuse(self, reason: str, **details: Any) -> None:
        self._refused[reason] += 1
        self._minute_log.error("usage_refused", 1, reason=reason, **details)

    def _rows(self, body: bytes, key: str) -> tuple[list[UsageRow], list[dict[str, Any]]]:
        rows: list[UsageRow] = []
        errors: list[dict[str, Any]] = []
        for number, line in enumerate(io.BytesIO(body), start=1):
            if not line.strip():
                continue
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(
                        f"the line has {len(line)} bytes, at most {MAX_LINE_BYTES} are taken: is it one event?"
                    )
                told = UsageLine.model_validate_json(line.rstrip(b"\n"))
                rows.append(self._row(told, key, number))
            except ValidationError as invalid:
                errors.append({"line": number, "error": _said(invalid)})
            except ValueError as wrong:
                errors.append({"line": number, "error": str(wrong)})
            if len(errors) == _MOST_ERRORS:
                break
        if not rows and not errors:
            errors.append({"line": 1, "error": "there is no line: send a JSON object on each"})
        return rows, errors

    def _row(self, line: UsageLine, key: str, number: int) -> UsageRow:
        """Raises ValueError, which says what is wrong."""
        if line.event_id is None and not key:
            raise ValueError(
                "event_id is missing: give each line one, or the request an Idempotency-Key, so that what is "
                "sent again counts once"
            )
        if len(key) > 120:
            raise ValueError("the Idempotency-Key has more than 120 characters")
        now_ms = self._clock()
        if line.ts_ms > now_ms + _AHEAD_MS:
            raise ValueError(f"ts_ms is {(line.ts_ms - now_ms) / 1000:.0f} s ahead of this host's clock")
        if line.ts_ms <= now_ms - EVENT_HORIZON_MS:
            why = "whether it was counted is forgotten"
            if line.ts_ms < _NO_SECONDS_MS:
                why = f"it is milliseconds since 1970, and {line.ts_ms} looks like seconds"
            raise ValueError(f"ts_ms is more than {EVENT_HORIZON_MS // HOUR_MS} hours ago: {why}")
        told = line.model_dump() | {"event_id": line.event_id or f"{key}/{number}"}
        return UsageRow(site=self._site, **told)


def _said(invalid: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in invalid.errors(include_url=False, include_context=False, include_input=False)[:3]
    )
