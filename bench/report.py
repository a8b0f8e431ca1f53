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
        # the first column names the row, the others are mostly figures
        rule = tuple("-" * (width - 1) + (":" if i else "-") for i, width in enumerate(widths))
        lines = [self._rows[0], rule, *self._rows[1:]]
        return "\n".join(f"| {' | '.join(map(_aligned, range(len(row)), row, widths))} |" for row in lines)


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


@dataclass(frozen=True, slots=True)
class Part:
    """One part's tables or blocks of text, the sentences under them, and its values, the chief one first."""

    name: str
    tables: list[Table | str]
    values: dict[str, float]
    notes: list[str] = field(default_factory=list)
    # where something else is better
    losses: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """For the terminal; ends with the chief value."""
        values = "\n".join(f"{name}={value}" for name, value in reversed(self.values.items()))
        return "\n\n".join(["", f"## {self.name}", *map(str, self.tables), *self.notes, *self.losses, values])
