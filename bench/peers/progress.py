"""How far a peer's program has come, as running.py reads it. Runs in the peers' environments."""


class Progress:
    def __init__(self, total: int) -> None:
        self.seen, self.total = 0, total

    def add(self, rows: int) -> None:
        before, self.seen = self.seen, self.seen + rows
        for mark, name in ((self.total // 3, "warm"), (self.total, "done")):
            if before < mark <= self.seen:
                print(name, self.seen, flush=True)
