"""How long it will take until what waits in the log is read."""

from collections import deque
from typing import Final

# Over which the speed is taken, and the least that tells one: one poll's luck is no speed.
_SPAN_S: Final = 30.0
_LEAST_SPAN_S: Final = 5.0
_STEP_S: Final = 1.0


class CatchUp:
    """Follows one partition of a stage."""

    def __init__(self) -> None:
        # (monotonic seconds, messages behind)
        self._seen: deque[tuple[float, int]] = deque()

    def seconds(self, behind: int, now_s: float) -> float | None:
        """With so many messages behind now: at the speed of the last half minute, what comes in meanwhile included.

        0 when caught up; None while that is not known, or while it gets no nearer.
        """
        if behind == 0:
            self._seen.clear()
            return 0.0
        while self._seen and now_s - self._seen[0][0] > _SPAN_S:
            self._seen.popleft()
        # more than ever before in that time: what was known then was too little to go by
        if self._seen and behind > max(was for _, was in self._seen):
            self._seen.clear()
        if not self._seen or now_s - self._seen[-1][0] >= _STEP_S:
            self._seen.append((now_s, behind))
        since_s, was = self._seen[0]
        if now_s - since_s < _LEAST_SPAN_S or behind >= was:
            return None
        return behind * (now_s - since_s) / (was - behind)
