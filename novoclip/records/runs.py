"""Choose one of several runs, of which some may follow each other in one file."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np

from novoclip.records.record import RecordError

LISTED = 8  # how many runs an error message lists
FEWEST = 8  # rows after which a run counts as one, and not as the lost start of the next
NEAR_START = 0.1  # of the range of steps
PART = "part "
ALL = "all"  # instead of the number of a part
EPOCHS = "; if they are epochs of one run, run='all' (--run all) joins them"


class Rows(NamedTuple):
    """The rows of one run that have a norm.

    Attributes:
      name: the name of the run, "" if it has none.
      steps: int64 of shape (rows,), in the order of the log.
      values: "norms", "losses" and "learning_rates", each float64 of shape (rows,).
      tensors: the norms of single tensors by name, each float64 of shape (rows,).
      notes: sentences for the user.
      counted: whether the log has no steps, so that these are counted rows.
      epochs: the epoch of each row, float64 of shape (rows,), NaN where the log has none.
      parts: how many parts the log has, of which these are one; 1 if the steps never begin again.
    """

    name: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]
    counted: bool
    epochs: np.ndarray
    parts: int = 1

    def take(self, chosen: slice | np.ndarray) -> Rows:
        """Return some of the rows."""
        values = {key: value[chosen] for key, value in self.values.items()}
        tensors = {key: value[chosen] for key, value in self.tensors.items()}
        return self._replace(steps=self.steps[chosen], values=values, tensors=tensors, epochs=self.epochs[chosen])


def join(rows: Rows) -> Rows:
    """Return one log as one run, with steps that count on at each place where they begin again near the start."""
    again = _restarts(rows.steps)
    what = "epochs" if all(_rises(rows, row) for row in again) else "parts"
    return _joined(rows, again, what) if again else rows


def split(rows: Rows) -> list[Rows]:
    """Split where the steps begin again near the start: these are different runs in one file.

    If the epoch rises there, they are epochs of one run, and the steps of the latter count on.
    """
    again = _restarts(rows.steps)
    epochs = [row for row in again if _rises(rows, row)]
    starts = [0]
    for row in again:
        if row not in epochs and row - starts[-1] >= FEWEST:
            starts.append(row)
    parts = []
    for part, (start, end) in enumerate(itertools.pairwise([*starts, len(rows.steps)]), start=1):
        inside = [row - start for row in epochs if start < row < end]
        one = rows.take(slice(start, end))._replace(parts=len(starts))
        if len(starts) > 1:
            one = one._replace(name=f"{rows.name} {PART}{part}".strip())
        parts.append(_joined(one, inside, "epochs") if inside else one)
    return parts


def _rises(rows: Rows, row: int) -> bool:
    return bool(rows.epochs[row] > rows.epochs[row - 1])


def _restarts(steps: np.ndarray) -> list[int]:
    """Return the rows in which the steps begin again near the start."""
    found = []
    first = high = steps[0] if len(steps) else 0
    for row, (before, step) in enumerate(itertools.pairwise(steps), start=1):
        if step < before and step <= first + NEAR_START * (high - first):
            found.append(row)
            first = high = step
        high = max(high, step)
    return found


def _joined(rows: Rows, starts: Sequence[int], what: str) -> Rows:
    pieces: list[np.ndarray] = []
    end = 0
    for start, stop in itertools.pairwise([0, *starts, len(rows.steps)]):
        steps = rows.steps[start:stop]
        forward = np.diff(steps)[np.diff(steps) > 0]
        stride = max(1, round(float(np.median(forward)))) if len(forward) else 1
        pieces.append(steps - steps[0] + end + stride if pieces else steps)
        end = int(pieces[-1].max())
    note = f"the steps begin again in each of {len(starts) + 1} {what}: these were joined, and the steps count on"
    return rows._replace(steps=np.concatenate(pieces), notes=(*rows.notes, note))


def choose(logs: Sequence[Rows], run: str | int | None, where: str) -> Rows:
    """Return the run with a name or a number from 1, or with "all" the parts of one log joined; else the only one.

    Raises:
      RecordError: if there are several, if none has the name or number, or if several have the name.
    """
    runs = [part for rows in logs for part in split(rows)]
    if run is None and len(runs) == 1:
        return runs[0]
    named = [i for i, one in enumerate(runs, start=1) if run is not None and one.name == str(run)]
    if len(named) == 1:
        return _noted(runs[named[0] - 1])
    if named and isinstance(run, str):
        msg = f"{where} holds {len(named)} runs named {run!r}: "
        msg += f"write {_either('run=', named)} ({_either('--run ', named)})"
        raise RecordError(msg)
    if run is not None and str(run).isdecimal() and 1 <= int(run) <= len(runs):
        return _noted(runs[int(run) - 1])
    if run == ALL and len(logs) == 1:
        return join(logs[0])
    raise RecordError(_which(runs, run, where, EPOCHS if len(logs) == 1 else ""))


def _which(runs: Sequence[Rows], run: str | int | None, where: str, epochs: str) -> str:
    """Return the message that lists the runs."""
    listed = ", ".join(f"{i}: {one.name!r} ({len(one.steps)} rows)" for i, one in enumerate(runs[:LISTED], start=1))
    more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    if run is None:
        return f"{where} holds {len(runs)} runs, {listed}{more}: choose one with run=NUMBER or run=NAME (--run){epochs}"
    if len(runs) == 1 and not runs[0].name:
        return f"{where} has no run {run!r}: it holds one run, which has no name; omit run= (--run)"
    return f"{where} has no run {run!r}; it holds {listed}{more}"


def _either(option: str, numbers: Sequence[int]) -> str:
    shown = [f"{option}{number}" for number in numbers[:LISTED]]
    return " or ".join(shown) + (" or a later one" if len(numbers) > LISTED else "")


def _noted(one: Rows) -> Rows:
    if one.parts == 1:
        return one
    note = f"this is one of {one.parts} parts, since the steps begin again{EPOCHS}"
    return one._replace(notes=(*one.notes, note))
