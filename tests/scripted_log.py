"""A stage's log that is played from a list."""

from dataclasses import dataclass, field

from idlewatt.stream.errors import RewindError
from idlewatt.stream.log import Commit, Poll


@dataclass
class ScriptedLog:
    """Plays polls from a list and keeps what is committed."""

    polls: list[Poll | Exception]
    commits: list[Commit] = field(default_factory=list)
    failing: int = 0
    closed: bool = False
    unconfirmed: float = 0.0

    def unconfirmed_s(self) -> float:
        return self.unconfirmed

    def poll(self, timeout_s: float) -> Poll:
        poll = self.polls.pop(0) if self.polls else Poll()
        if isinstance(poll, Exception):
            raise poll
        return poll

    def commit(self, commit: Commit) -> None:
        if self.failing:
            self.failing -= 1
            raise RewindError("the broker went away")
        self.commits.append(commit)

    def close(self) -> None:
        self.closed = True
