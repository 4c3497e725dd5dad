"""Numbers of one step that stand in several rows of a log, as where the loss and the norm have lines of their own."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from novoclip.records.table import Cells


class SameStep:
    """Finds the row that an empty cell is taken from: the nearest of the same step, and of the same pass.

    A pass ends where the steps go back: at each epoch, in another run, or where a run is resumed. A row without a norm
    belongs to the nearest row of its step that has one.

    Args:
      steps: the step of each row.
      norms: the norm of each row.
    """

    def __init__(self, steps: Cells, norms: Cells) -> None:
        self._steps = steps
        self._with_norm = _by_step(steps, norms)
        self._passes: list[int] = []
        last: float | None = None
        passes = 0
        for step in steps:
            if step is not None:
                passes += last is not None and step < last
                last = step
            self._passes.append(passes)

    def fill(self, cells: Cells, kept: Sequence[int]) -> Cells:
        """Return the cells of the kept rows, each of which has a norm."""
        known = _by_step(self._steps, cells)

        def value(row: int) -> float | None:
            if cells[row] is not None:
                return cells[row]
            near = [other for other in _near(known.get(self._steps[row], []), row) if self._belongs(other, row)]
            return cells[near[0]] if near else None

        return [value(row) for row in kept]

    def _belongs(self, other: int, row: int) -> bool:
        owner = _near(self._with_norm[self._steps[row]], other)[0]
        return self._passes[owner] == self._passes[row]


def _near(rows: Sequence[int], row: int) -> list[int]:
    """Return the last of ascending rows up to a row and the first after it: the nearer first, or else the later."""
    after = bisect.bisect(rows, row)
    return sorted(rows[max(0, after - 1) : after + 1], key=lambda other: (abs(other - row), -other))


def _by_step(steps: Cells, cells: Cells) -> dict[float | None, list[int]]:
    """Return the rows of each step in which the cells are not empty."""
    found: dict[float | None, list[int]] = {}
    for row, step in enumerate(steps):
        if cells[row] is not None:
            found.setdefault(step, []).append(row)
    return found
