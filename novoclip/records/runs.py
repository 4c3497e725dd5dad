"""Choose one of several runs, of which some may follow each other in one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from novoclip.records.record import RecordError

LISTED = 8  # how many runs an error message lists
FEWEST = 8  # rows after which a run counts as one, and not as the lost start of the next
NEAR_START = 0.1  # of the range of steps


class Rows(NamedTuple):
    """The rows of one run that have a norm.

    Attributes:
      name: the name of the run, "" if it has none.
      steps: int64 of shape (rows,), in the order of the log.
      values: "norms", "losses" and "learning_rates", each float64 of shape (rows,).
      tensors: the norms of single tensors by name, each float64 of shape (rows,).
      notes: sentences for the user.
      counted: whether the log has no steps, so that these are counted rows.
    """

    name: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]
    counted: bool

    def take(self, chosen: slice | np.ndarray) -> Rows:
        """Return some of the rows."""
        values = {key: value[chosen] for key, value in self.values.items()}
        tensors = {key: value[chosen] for key, value in self.tensors.items()}
        return self._replace(steps=self.steps[chosen], values=values, tensors=tensors)


def split(rows: Rows) -> list[Rows]:
    """Split where the steps begin again near the start: these are different runs in one file."""
    starts = [0]
    first = high = rows.steps[0] if len(rows.steps) else 0
    for index, step in enumerate(rows.steps[1:], start=1):
        back = step < rows.steps[index - 1] and step <= first + NEAR_START * (high - first)
        if back and index - starts[-1] >= FEWEST:
            starts.append(index)
            first = high = step
        high = max(high, step)
    if len(starts) == 1:
        return [rows]
    ends = [*starts[1:], len(rows.steps)]
    name = f"{rows.name} " if rows.name else ""
    return [
        rows.take(slice(start, end))._replace(name=f"{name}part {part}")
        for part, (start, end) in enumerate(zip(starts, ends, strict=True), start=1)
    ]


def choose(runs: Sequence[Rows], run: str | int | None, where: str) -> Rows:
    """Return the run with a name or a number from 1; without either, the only one.

    Raises:
      RecordError: if there are several, or if none has the name or number.
    """
    if run is None and len(runs) == 1:
        return runs[0]
    for one in runs:
        if run is not None and one.name == str(run):
            return one
    if run is not None and str(run).isdecimal() and 1 <= int(run) <= len(runs):
        return runs[int(run) - 1]
    listed = ", ".join(f"{i}: {one.name!r} ({len(one.steps)} rows)" for i, one in enumerate(runs[:LISTED], start=1))
    more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    if run is None:
        msg = f"{where} holds {len(runs)} runs, {listed}{more}: choose one with run=NUMBER or run=NAME (--run)"
    else:
        msg = f"{where} has no run {run!r}; it holds {listed}{more}"
    raise RecordError(msg)
