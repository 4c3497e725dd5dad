"""What to keep in mind of a rule that is recommended: rows that it touches and that are neither spikes nor calm."""

from __future__ import annotations

import numpy as np

from novoclip.replays.judge import CALM, SPIKE, TOUCHED, Rows
from novoclip.replays.outcome import Outcome

MOST = 0.01  # fraction of the finite rows
MANY = 0.05  # fraction of the finite rows that are spikes
ALIKE = 0.35  # robust standard deviation of log(spike / level) below which spikes are alike


def cautions(best: Outcome, norms: np.ndarray, rows: Rows) -> list[str]:
    """Return one sentence for each thing that the figures of a recommended rule do not show.

    Args:
      best: the outcome that is recommended.
      norms: the norms of the record.
      rows: what each row is.
    """
    finite = np.isfinite(norms)
    touched = finite & ((best.course.after < TOUCHED * norms) | best.course.skipped)
    other = finite & ~rows.spike & ~rows.calm
    new = other & (norms < CALM * rows.level)  # calm but for the lower level before
    high = other & ~new
    count = max(int(finite.sum()), 1)
    found = []
    for some, why in (
        (new, f"they belong to a new level, more than {SPIKE:g} times the old one, which looks like spikes at first"),
        (high, f"they have {CALM:g} levels or more, as with a heavy tail or a second level"),
    ):
        fraction = (touched & some).sum() / count
        if fraction > MOST:
            found.append(f"it also clips or skips rows that are no spikes, {100 * fraction:.1f} % of all: {why}")
    return [*found, *_alike(norms, rows, count)]


def _alike(norms: np.ndarray, rows: Rows, count: int) -> list[str]:
    if rows.spike.sum() <= MANY * count:
        return []
    distances = np.log(norms[rows.spike] / rows.level[rows.spike])
    middle = float(np.median(distances))
    if 1.4826 * float(np.median(np.abs(distances - middle))) > ALIKE:
        return []
    percent = 100 * rows.spike.sum() / count
    return [
        f"{percent:.0f} % of the rows are spikes, near {np.exp(middle):.2g} levels: if these are batches of another "
        "kind, a guard skips them all; log the norms of each kind by itself"
    ]
