"""What the exit code of `idlewatt` says; scripts and service managers go by it."""

import enum
from typing import Final

from idlewatt.stream.errors import IdlewattError, LogUnavailableError, SourceError


class ExitCode(enum.IntEnum):
    OK = 0
    UNEXPECTED = 1
    WRONG_USE = 2
    UNREACHABLE = 3


MEANINGS: Final = {
    ExitCode.OK: "done, or stopped by SIGINT or SIGTERM after the last checkpoint",
    ExitCode.UNEXPECTED: "something happened that nobody foresaw: please report it",
    ExitCode.WRONG_USE: "wrong arguments or settings, or something else that a person must mend",
    ExitCode.UNREACHABLE: "a part that is needed (Kafka, the log's file, an engine, the driver) does not answer",
}


def exit_code_of(error: IdlewattError) -> ExitCode:
    """The code to end with after an error that a person must mend."""
    unreachable = isinstance(error, LogUnavailableError | SourceError)
    return ExitCode.UNREACHABLE if unreachable else ExitCode.WRONG_USE
