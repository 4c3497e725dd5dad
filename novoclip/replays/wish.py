"""What a user wishes for, and which rule fulfils it best."""

from __future__ import annotations

from collections.abc import Sequence
import numbers

import numpy as np

from novoclip.arguments import check_choice
from novoclip.replays.outcome import Outcome

WANTS = ("spikes", "steady")
MOST_TOUCHED = 0.01  # fraction of calm rows
LEAST_CAUGHT = 0.95  # fraction of spikes
MOST_ABOVE = 0.005  # fraction of rows at 3 levels or more, for "steady"


def check_wish(want: str, max_clipped: float | None) -> None:
    """Raise a ValueError unless the wish is known and the fraction is one."""
    check_choice("want", want, WANTS)
    number = isinstance(max_clipped, numbers.Real) and not isinstance(max_clipped, bool)
    if max_clipped is not None and not (number and 0 < max_clipped <= 1):
        msg = f"max_clipped must be a fraction in (0, 1], such as 0.05 for 5 %; got {max_clipped!r}"
        raise ValueError(msg)


def ranked(outcomes: Sequence[Outcome], want: str, max_clipped: float | None) -> list[Outcome]:
    """Return the outcomes, the best first; those that are equal stay in their order."""
    return sorted(outcomes, key=lambda each: _cost(each, want, max_clipped))


def fits(each: Outcome, want: str, max_clipped: float | None) -> bool:
    """Whether an outcome fulfils a wish.

    "spikes": at least 95 % of spikes are caught, and at most 1 % of calm rows touched. "steady": as many are caught,
    and at most 0.5 % of the rows are let through at 3 levels or more. With `max_clipped`, no larger fraction of rows is
    clipped.
    """
    if max_clipped is not None and each.clipped > max_clipped:
        return False
    if want == "steady":
        return each.above <= MOST_ABOVE and each.missed <= 1 - LEAST_CAUGHT
    return each.missed <= 1 - LEAST_CAUGHT and each.touching <= MOST_TOUCHED


def _cost(each: Outcome, want: str, max_clipped: float | None) -> tuple[float, ...]:
    over = 0.0 if max_clipped is None else float(each.clipped > max_clipped)
    largest = each.largest if np.isfinite(each.largest) else float("inf")
    adapts = each.adapts or 0.0
    if want == "steady":
        unsteady = float(not fits(each, want, None))
        return over, unsteady, round(each.missed, 2), round(1 - each.shrinkage, 3), round(each.above, 4), largest
    # To miss all spikes weighs as much as to touch a tenth of the calm rows, and as to let spikes through at 20 levels:
    # of rules that catch all, those are better that leave less of them.
    unfit, left = float(not fits(each, want, None)), min(each.spike_level, 1e3) / 20
    cost = each.missed + 10 * max(each.touching - 0.001, 0.0) + left
    return over, unfit, round(cost, 3), round(min(adapts, 1e6) / 64), 0.0
