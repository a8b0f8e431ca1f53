"""Rounds figures so that what is shown adds up: the total to the nearest, its parts to one below or above."""

from collections.abc import Sequence


def rounded(amount: int, unit: int) -> int:
    """How many units an amount is, to the nearest; halves go up."""
    return (2 * amount + unit) // (2 * unit)


def rounded_parts(amounts: Sequence[int], unit: int) -> list[int]:
    """Each amount in units, so that they add up to the sum in units; the largest remainders go up."""
    parts = [amount // unit for amount in amounts]
    lacking = rounded(sum(amounts), unit) - sum(parts)
    largest = sorted(range(len(amounts)), key=lambda at: -(amounts[at] % unit))
    for at in largest[:lacking]:
        parts[at] += 1
    return parts
