"""Plain tables for screens and pipes: as wide as they need to be, numbers to the right."""

from collections.abc import Iterator, Sequence


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> Iterator[str]:
    """Lines; the first `names` columns stand to the left."""
    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(headings))]
    for row in cells:
        yield "  ".join(
            cell.ljust(width) if at < names else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def printable(text: str) -> str:
    """Names come from others: what would move a terminal's cursor is shown as U+FFFD."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
