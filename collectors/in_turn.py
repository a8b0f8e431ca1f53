"""Calls that may hang, one after the other on a thread that is left behind with the one that does."""

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InTurn:
    """Makes calls by name. One that is still out is not made again before it has come back. Used from one thread."""

    def __init__(self) -> None:
        # kept from turn to turn: to start one for each costs more than all calls of a reading
        self._worker: _Worker | None = None
        self._out: dict[str, threading.Thread] = {}

    @property
    def out(self) -> Mapping[str, threading.Thread]:
        """The threads of the calls that are still out, by name."""
        self._out = {name: thread for name, thread in self._out.items() if thread.is_alive()}
        return self._out

    def answers(self, calls: Mapping[str, Callable[[], T]], patience_s: float) -> dict[str, T | Exception]:
        """What each call returned or raised, in their order; nothing of those that are out, from before or since now.

        `patience_s`: how long one may take.
        """
        answers: dict[str, T | Exception] = {}
        out = self.out
        left = [name for name in calls if name not in out]
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
                self._out[left.pop(0)] = worker
                self._worker = None
        return answers

    def close(self) -> None:
        """End the thread, once it is idle."""
        if self._worker is not None:
            self._worker.turns.put(None)
            self._worker = None


class _Turn(Generic[T]):
    def __init__(self, calls: Sequence[Callable[[], T]]) -> None:
        self._calls = calls
        self._answers: list[T | Exception] = []
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
