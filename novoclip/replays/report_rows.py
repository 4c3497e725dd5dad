"""What the pictures of a report show, as numbers: which rows, the distances from the level, and the first tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from novoclip.records import Record
from novoclip.replays.judge import BEFORE, Rows

MOST = 4000  # rows that are drawn
EVENTS = 3  # spikes whose tensors are shown
TENSORS = 5  # tensors that are shown of each
BINS = 60
TAIL = 400  # points of the tail


class Exploded(NamedTuple):
    """A tensor at a spike.

    Attributes:
      step: the step of the spike.
      name: the tensor.
      norm: its norm.
      times: its norm over the median of its own 32 norms before; infinite for a norm that is not finite.
    """

    step: int
    name: str
    norm: float
    times: float


def positive(values: np.ndarray) -> np.ndarray:
    """Return values with NaN where a logarithmic axis has no place for them."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def drawn(norms: np.ndarray, rows: Rows, most: int = MOST) -> np.ndarray:
    """Return the indices of the rows to draw: all, or of a long record every spike and the extremes of parts."""
    if norms.size <= most:
        return np.arange(norms.size)
    special = np.flatnonzero(rows.spike | ~np.isfinite(norms))
    chosen = [special[:most], np.array([0, norms.size - 1])]
    for part in np.array_split(np.arange(norms.size), most // 2):
        here = positive(norms[part])
        if np.isfinite(here).any():
            chosen.append(np.array([part[np.nanargmin(here)], part[np.nanargmax(here)]]))
    return np.unique(np.concatenate(chosen))


def distances(norms: np.ndarray, rows: Rows) -> np.ndarray:
    """Return the norms in levels, in ascending order."""
    usual = np.isfinite(norms) & (norms > 0) & (rows.level > 0)
    return np.sort(norms[usual] / rows.level[usual])


def tail(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distances from 1 level on, and the fraction of rows at or above each."""
    start = int(np.searchsorted(ascending, 1.0))
    count = ascending.size
    # Far points are few and matter most, so that the points are evenly spaced in the logarithm of their rank.
    ranks = np.unique(np.geomspace(1, max(count - start, 1), TAIL).astype(int))
    ranks = ranks[ranks <= count - start][::-1]
    return ascending[count - ranks], ranks / max(count, 1)


def exploded(record: Record, rows: Rows) -> list[list[Exploded]]:
    """Return for each of the first spikes the tensors that grew most, the most first. Spikes in a row count once."""
    first = np.flatnonzero(rows.spike & ~np.roll(rows.spike, 1))[:EVENTS]
    return [_at(record, int(row)) for row in first] if record.tensors else []


def _at(record: Record, row: int) -> list[Exploded]:
    found = []
    for name, norms in record.tensors.items():
        before = norms[max(0, row - BEFORE) : row]
        before = before[np.isfinite(before)]
        usual = float(np.median(before)) if before.size else 0.0
        norm = float(norms[row])
        if not np.isfinite(norm):
            found.append(Exploded(int(record.steps[row]), name, norm, float("inf")))
        elif usual > 0:
            found.append(Exploded(int(record.steps[row]), name, norm, norm / usual))
    return sorted(found, key=lambda each: -each.times)[:TENSORS]
