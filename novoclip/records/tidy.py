"""Make a Record of the rows of one run: order the steps, check the norms, and note what was noticed."""

from __future__ import annotations

import numpy as np

from novoclip.records.record import Record, RecordError
from novoclip.records.runs import Rows

FEW = 16  # finite norms
FLAT = 1e-4  # relative distance from the largest norm
FLAT_FRACTION = 0.05
FLAT_ROWS = 8


def tidy(rows: Rows, name: str, where: str) -> Record:
    """Return the Record of one run.

    Args:
      rows: the rows with a norm, in the order of the log.
      name: the Record's name.
      where: the source, for error messages.

    Returns:
      The Record, with one note for each thing that was noticed or done.

    Raises:
      RecordError: if a norm is negative, if none is finite, or if they were recorded after a clip.
    """
    rows, notes = _ordered(rows)
    norms = rows.values["norms"]
    _check(norms, where)
    distance = np.median(np.diff(rows.steps)) if len(rows.steps) > 1 and not rows.counted else 1
    stride = max(1, round(float(distance)))
    if rows.counted:
        notes.append(
            "the log has no steps: its rows are counted from 0, and how many steps lie between them is unknown"
        )
    if stride > 1:
        notes.append(f"logged every {stride} steps: windows of rules count rows, and spikes between rows are not seen")
    notes += _about(norms)
    losses, rates = rows.values["losses"], rows.values["learning_rates"]
    return Record(name, rows.steps, norms, losses, rates, rows.tensors, stride, (*rows.notes, *notes))


def _ordered(rows: Rows) -> tuple[Rows, list[str]]:
    """Keep the last row of each step, in the order of steps."""
    if np.all(np.diff(rows.steps) > 0):
        return rows, []
    last = {step: index for index, step in enumerate(rows.steps.tolist())}
    kept = np.array([last[step] for step in sorted(last)])
    replaced = len(rows.steps) - len(kept)
    if replaced:
        what = f"{_rows(replaced)} replaced by a later row of the same step, as when a run is resumed"
    else:
        what = "the steps were not in order: the rows were sorted by step"
    return rows.take(kept), [what]


def _check(norms: np.ndarray, where: str) -> None:
    finite = norms[np.isfinite(norms)]
    if np.any(norms < 0):
        count = int(np.sum(norms < 0))
        msg = f"{where}: {count} of the norms are negative, the first is {norms[norms < 0][0]:g}; a norm never is: "
        msg += 'name the column of the norms with norm="..." (--norm NAME)'
        raise RecordError(msg)
    if not len(finite):
        msg = f"{where}: no norm is finite (there are {len(norms)} rows)"
        raise RecordError(msg)
    top = finite.max()
    flat = int(np.sum(finite >= top * (1 - FLAT)))
    if top > 0 and flat >= max(FLAT_ROWS, FLAT_FRACTION * len(finite)):
        limit, percent = float(f"{top:.6g}"), 100 * flat / len(finite)
        msg = f"{where}: the norms are flat at {limit} in {percent:.0f} % of the rows: they were "
        msg += "recorded after a clip, which hides what it cut; log the norm before clipping "
        msg += "(novoclip.record() first in the chain, or the return value of clip_grad_norm_)"
        raise RecordError(msg)


def _about(norms: np.ndarray) -> list[str]:
    notes = []
    nan, infinite, zero = (int(np.sum(test)) for test in (np.isnan(norms), np.isinf(norms), norms == 0))
    if nan or infinite:
        are = "is" if nan + infinite == 1 else "are"
        notes.append(f"{nan + infinite} of {len(norms)} norms {are} not finite ({nan} NaN, {infinite} inf)")
    if zero:
        one = "norm is" if zero == 1 else "norms are"
        notes.append(f"{zero} {one} exactly 0: the gradient vanished there, or the norm was not computed at that step")
    finite = len(norms) - nan - infinite
    if finite < FEW:
        notes.append(f"only {finite} finite {'norm' if finite == 1 else 'norms'}: too short to judge a rule by")
    return notes


def _rows(count: int) -> str:
    return f"{count} row was" if count == 1 else f"{count} rows were"
