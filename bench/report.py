"""What a part of the benchmark found: tables for people, named values for machines."""

from dataclasses import dataclass, field


class Table:
    """A Markdown table that is also readable as it is."""

    def __init__(self, *columns: str) -> None:
        self._rows: list[tuple[str, ...]] = [columns]

    def add(self, *cells: str) -> None:
        if len(cells) != len(self._rows[0]):
            raise ValueError(f"{len(cells)} cells for {len(self._rows[0])} columns")
        self._rows.append(cells)

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in self._rows) for i in range(len(self._rows[0]))]
        lines = []
        for n, row in enumerate(self._rows):
            # the first column names the row, the others are mostly figures
            cells = [
                cell.rjust(w) if i and n else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(f"| {' | '.join(cells)} |")
            if n == 0:
                rules = ["-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths)]
                lines.append(f"| {' | '.join(rules)} |")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Part:
    """One part's tables, the sentences under them, and its values; the last value printed is the first here."""

    name: str
    tables: list[Table | str]
    values: dict[str, float]
    notes: list[str] = field(default_factory=list)
