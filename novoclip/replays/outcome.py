"""What a rule did to a record, in figures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from novoclip.replays.judge import CAUGHT, TOUCHED, Rows
from novoclip.replays.run import Course

STEADY = 3.0  # levels: norms below are steady
SETTLED = 8  # calm rows in a row that are let through whole: the rule has adapted


class Outcome(NamedTuple):
    """What a rule did to a record.

    Attributes:
      line: what one writes in Python.
      guard: whether it wraps the optimizer.
      clipped: fraction of the finite rows that were made smaller, or skipped.
      skipped: number of steps that a guard skipped.
      spikes: number of spikes.
      caught: number of spikes that were skipped, or let through at less than 3.3 levels.
      calm: number of calm rows.
      touched: number of calm rows that were made smaller by more than 0.1 %, or skipped.
      largest: the largest norm let through, in levels; NaN without finite norms.
      largest_row: the row of that norm, from 0.
      spike_level: mean over the spikes of the norm let through, in levels, 0 where it was skipped; 0 without spikes.
      above: fraction of the finite rows that were let through at 3 levels or more.
      shrinkage: mean of the norm let through over the norm, over all finite rows: 1 if nothing is clipped.
      adapts: rows after the largest lasting rise until 8 calm rows in a row are let through whole; None without a rise,
        and infinite if that does not happen.
      course: the norms let through, row by row, with the limits and the skipped steps.
    """

    line: str
    guard: bool
    clipped: float
    skipped: int
    spikes: int
    caught: int
    calm: int
    touched: int
    largest: float
    largest_row: int
    spike_level: float
    above: float
    shrinkage: float
    adapts: float | None
    course: Course

    @property
    def missed(self) -> float:
        """The fraction of spikes that were let through; 0 without spikes."""
        return 1 - self.caught / self.spikes if self.spikes else 0.0

    @property
    def touching(self) -> float:
        """The fraction of calm rows that were touched."""
        return self.touched / max(self.calm, 1)


def outcome(line: str, course: Course, norms: np.ndarray, rows: Rows, *, guard: bool = False) -> Outcome:
    """Return the figures of what a rule let through."""
    finite = np.isfinite(norms)
    smaller = course.after < TOUCHED * norms
    positive = finite & (norms > 0)
    with np.errstate(over="ignore"):
        share = course.after[positive] / norms[positive]
        levels = np.where(positive & (rows.level > 0), course.after / np.where(rows.level > 0, rows.level, 1), -np.inf)
    return Outcome(
        line=line,
        guard=guard,
        clipped=float(np.mean(smaller[finite])) if finite.any() else 0.0,
        skipped=int(course.skipped.sum()),
        spikes=int(rows.spike.sum()),
        caught=int((rows.spike & (course.after < CAUGHT * rows.level)).sum()),
        calm=int(rows.calm.sum()),
        touched=int((rows.calm & smaller).sum()),
        largest=float(np.max(levels)) if np.isfinite(levels).any() else float("nan"),
        largest_row=int(np.argmax(levels)) if levels.size else 0,
        spike_level=float(np.mean(course.after[rows.spike] / rows.level[rows.spike])) if rows.spike.any() else 0.0,
        above=float(np.sum(levels >= STEADY) / max(finite.sum(), 1)),
        shrinkage=float(np.mean(np.minimum(share, 1))) if share.size else 1.0,
        adapts=_adapts(smaller, rows),
        course=course,
    )


def _adapts(smaller: np.ndarray, rows: Rows) -> float | None:
    if rows.rise is None:
        return None
    whole = 0
    for row in range(rows.rise, smaller.size):
        if rows.calm[row]:
            whole = 0 if smaller[row] else whole + 1
        if whole == SETTLED:
            return float(max(0, row - rows.rise + 1 - SETTLED))
    return float("inf")
