"""Which rows of a record are spikes and which are calm, and whether the norms have a level at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BEFORE = 32  # rows before a row, whose median a spike is compared with
BURST = 64  # rows whose median it is compared with too: 16 spikes in a row would move that of 32 rows
FIRST = 8  # the first row that may be a spike
AROUND = 50  # rows on each side, whose median is the level
SPIKE = 5.0
CALM = 2.0
CAUGHT = 3.3  # levels: a spike let through at less is caught
TOUCHED = 0.999  # a norm that is made smaller than this part of it is touched
RISE = 3.0  # how much a lasting rise multiplies the level by
SHORT = 64  # finite norms below which a record is too short to choose by
NOISE = 0.8  # robust standard deviation of log(norm / level) above which there is no level


class Rows(NamedTuple):
    """What each row of a record is.

    Attributes:
      level: float64 `(rows,)`, the median of the finite norms of the 101 rows around a row; NaN where there are none.
      spike: `(rows,)`, finite norms above 5 times the median of the 32 rows before, or of the 64 rows before, from row
        8 on, and of at least 3.3 levels: after a lasting rise, the rows of the new level are none.
      calm: `(rows,)`, finite norms of at most 5 times the median of the 32 rows before, and below 2 levels.
      rise: the first row of the largest lasting rise of the level, by 3 times or more; None without one.
      noise: robust standard deviation of log(norm / level): 1.48 times the median of its absolute value.
    """

    level: np.ndarray
    spike: np.ndarray
    calm: np.ndarray
    rise: int | None
    noise: float


def judged(norms: np.ndarray) -> Rows:
    """Return what each row is, by its norm and its neighbours.

    Medians are of finite norms other than 0, so that neither a spike nor NaN moves them, nor a step without a norm.
    """
    level = _medians(norms, AROUND, AROUND + 1)
    sudden = spikes_of(norms)
    finite = np.isfinite(norms)
    spike = (sudden | spikes_of(norms, BURST)) & (norms >= CAUGHT * level)
    calm = finite & ~sudden & ~spike & (norms < CALM * level)
    usual = finite & (norms > 0) & (level > 0)
    distance = np.abs(np.log(norms[usual] / level[usual]))
    return Rows(
        level, spike, calm, _rise(norms), 1.4826 * float(np.median(distance)) if distance.size else float("nan")
    )


def why_unfit(norms: np.ndarray, rows: Rows) -> list[str]:
    """Return why no rule can be chosen by these norms; nothing if one can."""
    finite = np.isfinite(norms)
    reasons = []
    if finite.sum() < SHORT:
        reasons.append(f"too short: {finite.sum()} finite norms, where at least {SHORT} are needed to choose by")
    if not (norms[finite] > 0).any():
        return [*reasons, "every finite norm is 0"]
    if np.mean(norms[finite] == 0) > 0.5:
        reasons.append("most norms are 0: log a row only where there is a norm")
    last = max(1, norms.size // 10)
    start = _median(norms[: max(FIRST, norms.size // 4)])
    end = norms[-last:]
    if np.mean(~np.isfinite(end)) > 0.5:
        reasons.append(
            "diverged: most of the last tenth of the norms is not finite; clipping may not have saved the run"
        )
    elif start > 0 and _median(end) > 1e3 * start:
        reasons.append(f"diverged: the norms end {_median(end) / start:.0e} times as large as they began")
    if rows.noise > NOISE:
        reasons.append(
            f"no level: half of the norms differ from the median around them by a factor of more than "
            f"{np.exp(rows.noise / 1.4826):.2g}"
        )
    return reasons


def spikes_of(norms: np.ndarray, before: int = BEFORE) -> np.ndarray:
    """Return which norms are above 5 times the median of that many rows before them."""
    rows = np.arange(norms.size)
    return (rows >= FIRST) & np.isfinite(norms) & (norms > SPIKE * _medians(norms, before, 0))


def _medians(norms: np.ndarray, before: int, after: int) -> np.ndarray:
    """Return for each row the median of the rows around it, of the finite norms other than 0.

    Args:
      norms: the norms.
      before: how many rows before a row count.
      after: how many count from the row on.
    """
    known = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    padded = np.concatenate([np.full(before, np.nan), known, np.full(max(after - 1, 0), np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, before + after)[: norms.size]
    # NaN is sorted last, so that the finite norms of a window are its first ones.
    ordered, count = np.sort(windows, axis=1), np.isfinite(windows).sum(axis=1)
    rows = np.arange(norms.size)
    return (
        ordered[rows, np.maximum(count - 1, 0) // 2] + ordered[rows, np.minimum(count // 2, before + after - 1)]
    ) / 2


def _median(norms: np.ndarray) -> float:
    finite = norms[np.isfinite(norms) & (norms > 0)]
    return float(np.median(finite)) if finite.size else float("nan")


def _rise(norms: np.ndarray) -> int | None:
    """Return the row with the largest quotient of the median of the rows after and before it, if it is a rise."""
    rows = np.arange(BEFORE, norms.size - BEFORE + 1)
    if not rows.size:
        return None
    before, after = (
        _medians(norms, BEFORE, 0)[rows[0] :][: rows.size],
        _medians(norms, 0, BEFORE)[rows[0] :][: rows.size],
    )
    quotients = np.where(before > 0, after / np.where(before > 0, before, 1), 0)
    best = int(np.argmax(np.nan_to_num(quotients)))
    return int(rows[best]) if quotients[best] >= RISE else None
