"""The text of a page whose values move: it is the text of a page made anew."""

import polars as pl
import pytest

from idlewatt.processors.families import Family, family
from idlewatt.processors.page import Page
from idlewatt.stream import metric_names as names


def _watts(*series: tuple[tuple[str, ...], float]) -> list[Family]:
    return [family(names.POWER, series), family(names.GPUS, ())]


POOLS = ["a", "b\nc", 'd"e\\f']
STEPS = {
    "values move": [
        ((("x", pool, "serving", "draw"), n + at) for n, pool in enumerate(POOLS)) for at in (0, 9)
    ],
    "a label changes": [((("x", "a", state, "draw"), 1.0),) for state in ("serving", "dark")],
    "a label needs escaping": [((("x", pool, "dark", "draw"), 1.0),) for pool in ("a", 'a"', "a\n")],
    "labels change places": [
        ((("x", one, "dark", "draw"), 1.0), (("x", other, "dark", "draw"), 2.0))
        for one, other in (("a", "b"), ("b", "a"))
    ],
    "series come and go": [((("x", "a", "dark", "draw"), 1.5),) * times for times in (1, 2, 0, 1)],
}


@pytest.mark.parametrize("step", STEPS)
def test_what_a_page_keeps_of_the_lines_before_never_shows(step: str) -> None:
    page = Page({})
    for series in STEPS[step]:
        families = _watts(*series)
        page.put(0, families)
        fresh = Page({})
        fresh.put(0, families)
        assert page.text() == fresh.text()


def test_lines_have_labels_escaped_and_values_as_they_are() -> None:
    page = Page({})
    for value in (0.25, 1e21):
        page.put(0, _watts((("x", 'd"e\\f\n', "dark", "draw"), value)))
    lines = [line for line in page.text().splitlines() if not line.startswith(b"#")]
    assert lines == [b'idlewatt_power_watts{site="x",pool="d\\"e\\\\f\\n",state="dark",part="draw"} 1e+21']


def test_a_family_without_labels_has_one_line() -> None:
    page = Page({})
    for value in (0.0, 1.0):
        page.put(0, [Family(names.BOOK_VALID, pl.DataFrame({"value": [value]}))])
    assert page.text().endswith(b"\nidlewatt_book_valid 1.0\n")
