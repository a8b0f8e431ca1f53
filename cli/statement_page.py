"""A chargeback page: one HTML file that needs no other, fit for paper. Every name on it came from somebody else."""

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from idlewatt.cli.report_formats import notes, shown
from idlewatt.processors.reports.figures import Value
from idlewatt.processors.reports.statement import Statement

_KINDS: Final = {
    "function": "business function",
    "team": "team",
    "agent_family": "family of agents",
    "engineer": "engineer",
}
_LINES: Final = {
    "site": "Site",
    "model": "Model",
    "tier": "Tier",
    "output_tokens": "Output tokens",
    "input_tokens": "Input tokens",
    "cached_input_tokens": "Input from cache",
    "revenue": "Owed",
}
_NAMES: Final = 3
_NOTES: Final = ("unpriced", "unmetered", "unmade", "uncosted", "published")
_TAKEN: Final = {
    "available_kwh": "Available kWh",
    "drawn_kwh": "Drawn kWh",
    "energy_cost": "Electricity",
    "capital_cost": "GPU-hours",
    "cost_usage": "Cost of serving",
    "cost_not_serving": "Cost of idle and other time",
    "cost_allocation": "Cost in all",
    "margin": "Owed less cost",
}
_STYLE: Final = """
body { font: 14px/1.4 system-ui, sans-serif; color: #111; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: 0 } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { padding: .25rem .5rem; text-align: right }
th { border-bottom: 1px solid #111; font-weight: 600 } tfoot td { border-top: 1px solid #111; font-weight: 600 }
.name { text-align: left; overflow-wrap: anywhere } .due { font-size: 1.4rem; font-weight: 600 } .note { color: #444 }
@media print { body { margin: 0; max-width: none; font-size: 11px } tr { break-inside: avoid } }
"""


def page(
    found: Statement, currency: str, month: str, period: str, as_of: str | None, of_ledger: Sequence[str]
) -> str:
    """The whole page; `as_of`: until when the ledger has told, where that is not to the month's end."""
    title = f"Statement {month}: {_KINDS[found.kind]} {found.consumer}"
    total = found.lines.total
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="note">{_text(period)}</p>',
        f'<p class="due">{_text(shown(total["revenue"]))} {_text(currency)}</p>',
        *([f'<p class="note">{_text(f"Not the whole month: as of {as_of}.")}</p>'] if as_of else []),
        *(f'<p class="note">{_text(note)}</p>' for note in (*of_ledger, *notes(found.lines, _NOTES))),
        f"<h2>{_text('What is owed, in ' + currency)}</h2>",
        *_table(list(_LINES.values()), _NAMES, _line_rows(found), ["Total", "", "", *_figures(total)]),
        *_shares(found),
        f"<h2>{_text('What it took, in ' + currency)}</h2>",
        *_table(
            [*list(_LINES.values())[:_NAMES], *_TAKEN.values()],
            _NAMES,
            [[*_line_names(row), *(shown(row[name]) for name in _TAKEN)] for row in found.lines.rows],
            ["Total", "", "", *(shown(total[name]) for name in _TAKEN)],
        ),
        '<p class="note">Watts, GPU-hours and their costs are shared among consumers by their part of each '
        "model's output tokens. Watts that hold no model are in nobody's statement. Amounts are rounded so that "
        "they add up to their totals.</p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _line_rows(found: Statement) -> list[list[str]]:
    return [[*_line_names(row), *_figures(row)] for row in found.lines.rows]


def _line_names(row: dict[str, Value]) -> list[str]:
    return [str(row[name]) or "(none)" for name in list(_LINES)[:_NAMES]]


def _figures(row: dict[str, Value]) -> list[str]:
    return [shown(row[name]) for name in list(_LINES)[_NAMES:]]


def _shares(found: Statement) -> Iterator[str]:
    for kind, shares in found.shares.items():
        if all(share.name == "" for share in shares):
            continue
        rows = [[share.name or "(none)", f"{share.tokens:,}", shown(share.owed)] for share in shares]
        tokens = sum(share.tokens for share in shares)
        owed = shown(found.lines.total["revenue"])
        yield f"<h2>{_text(f'The same by {_KINDS[kind]}')}</h2>"
        yield from _table(
            [_KINDS[kind].capitalize(), "Tokens", "Owed"], 1, rows, ["Total", f"{tokens:,}", owed]
        )


def _table(
    headings: Sequence[str], names: int, rows: Iterable[Sequence[str]], total: Sequence[str]
) -> Iterator[str]:
    yield "<table>"
    yield f"<thead>{_row(headings, names, 'th')}</thead>"
    yield f"<tbody>{''.join(_row(row, names, 'td') for row in rows)}</tbody>"
    yield f"<tfoot>{_row(total, names, 'td')}</tfoot>"
    yield "</table>"


def _row(cells: Sequence[str], names: int, tag: str) -> str:
    name = ' class="name"'
    inner = (f"<{tag}{name if at < names else ''}>{_text(cell)}</{tag}>" for at, cell in enumerate(cells))
    return f"<tr>{''.join(inner)}</tr>"


def _text(text: str) -> str:
    return html.escape(text)
