"""Calls that may hang, one after the other on a thread that is left behind with the one that does."""

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InTurn:
    """Makes calls by name. One that is still out is not made again before it has come back. Used from one thread.

    What comes back late is the answer of the next time: of calls that always take long there would be none.
    """

    def __init__(self) -> None:
        # kept from turn to turn: to start one for each costs more than all calls of a reading
        self._worker: _Worker | None = None
        # left behind with a call, by its name
        self._left: dict[str, tuple[threading.Thread, _Turn[Any] | None]] = {}

    @property
    def out(self) -> Mapping[str, threading.Thread]:
        """The threads of the calls that are still out, by name."""
        return {name: thread for name, (thread, _) in self._left.items() if thread.is_alive()}

    def answers(self, calls: Mapping[str, Callable[[], T]], patience_s: float) -> dict[str, T | Exception]:
        """What each call returned or raised, now or late; nothing of those that are out, from before or since now.

        `patience_s`: how long one may take.
        """
        answers: dict[str, T | Exception] = {}
        out = self.out
        for name in [name for name in calls if name in self._left and name not in out]:
            _, late = self._left.pop(name)
            # in a forked process it never came
            if late is not None and late.late:
                answers[name] = late.late[0]
        left = [name for name in calls if name not in out and name not in answers]
        while left:
            turn = _Turn([calls[name] for name in left])
            worker = self._worker
            # none is in a forked process
            if worker is None or not worker.is_alive():
                worker = self._worker = _Worker()
            worker.turns.put(turn)
            ended = turn.answers_within(patience_s)
            answers.update(zip(left, ended, strict=False))
            left = left[len(ended) :]
            if left:
                self._left[left.pop(0)] = worker, turn
                self._worker = None
        return answers

    def forget(self) -> None:
        """Take no answer any more of calls that are out, or came back late."""
        self._left = {name: (thread, None) for name, (thread, _) in self._left.items()}

    def close(self) -> None:
        """End the thread, once it is idle."""
        if self._worker is not None:
            self._worker.turns.put(None)
            self._worker = None


class _Turn(Generic[T]):
    def __init__(self, calls: Sequence[Callable[[], T]]) -> None:
        self._calls = calls
        self._answers: list[T | Exception] = []
        # of the call that it was left behind with, once that has ended
        self.late: Sequence[T | Exception] = ()
        self._lock = threading.Lock()
        self._is_left_behind = False
        self._ended = threading.Event()

    def answers_within(self, patience_s: float) -> Sequence[T | Exception]:
        """Of the calls before the first that takes longer than that."""
        before = -1
        while not self._ended.is_set() and before < len(self._answers):
            before = len(self._answers)
            self._ended.wait(patience_s)
        with self._lock:
            self._is_left_behind = True
            return self._answers

    def run(self) -> bool:
        """Make the calls; False if left behind with one of them."""
        for call in self._calls:
            answer: T | Exception
            try:
                answer = call()
            except Exception as error:
                answer = error
            with self._lock:
                if self._is_left_behind:
                    self.late = (answer,)
                    return False
                self._answers.append(answer)
        self._ended.set()
        return True


class _Worker(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="in turn", daemon=True)
        self.turns: SimpleQueue[_Turn[Any] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while (turn := self.turns.get()) is not None and turn.run():
            pass
