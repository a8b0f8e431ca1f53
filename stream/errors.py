"""The errors Idlewatt tells people about: each names the thing and how to mend it."""


class IdlewattError(Exception):
    """Something a person must mend; shown as one line, without a traceback."""


class ConfigError(IdlewattError):
    """A setting is wrong, missing or unknown."""


class SourceError(IdlewattError):
    """A source could not be read this time.

    `reason` is a short snake_case word that becomes a metric label: timeout, http_status, too_large, ...
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnreadableMessageError(IdlewattError):
    """Bytes from a topic are no message of ours; `reason` becomes a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LogUnavailableError(IdlewattError):
    """The log (Kafka or the SQLite file) did not take or give messages in time."""


class RefusedMessageError(IdlewattError):
    """The log answers, and will never take one of the messages it was given."""


class RewindError(Exception):
    """A commit did not happen, or nobody knows whether it did.

    Whoever folds must drop all state: the next poll hands every partition out again, from its last commit.
    """
