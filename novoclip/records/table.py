"""Table: the numbers of one run by column, before it is decided what each column is."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Cells = list[float | None]


class Table(NamedTuple):
    """The numbers of one run.

    Attributes:
      name: the name of the run, "" if the file holds only one.
      columns: the cells of each column, all of the same length; None is an empty cell, which NaN is not.
      notes: sentences for the user.
    """

    name: str
    columns: dict[str, Cells]
    notes: tuple[str, ...] = ()


def number(value: Any) -> float | None:
    """Return a cell as a number, or None if it holds none. The words nan, inf and Infinity are numbers."""
    if value is None or isinstance(value, (bool, list, tuple, dict)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def table_of_rows(name: str, rows: Iterable[Mapping[str, Any]], notes: tuple[str, ...] = ()) -> Table:
    """Return the Table of rows that need not have the same keys. Columns without a number are dropped."""
    columns: dict[str, Cells] = {}
    listed = list(rows)
    for index, row in enumerate(listed):
        for key, value in row.items():
            cell = number(value)
            if cell is not None:
                columns.setdefault(str(key), [None] * len(listed))[index] = cell
    return Table(name, columns, notes)


def table_of_series(name: str, series: Mapping[str, Iterable[tuple[int, float, Any]]]) -> Table:
    """Return the Table of metrics that were logged each by itself.

    Args:
      name: the name of the run.
      series: for each metric its values, as (step, time, value). A row holds one value of each metric at one step, and
        where a step repeats, as after a restart, those that are nearest in time. Rows are ordered by time. A metric
        called "step" is not read, unless all values have the same step, as MLflow writes without `step=`.
    """
    ordered = {metric: sorted(values, key=lambda each: each[1]) for metric, values in series.items()}
    passes: dict[int, list[float]] = {}  # for each step the times of the metric that has most values there
    steps_of = {metric: _times(values) for metric, values in ordered.items()}
    for steps in steps_of.values():
        for step, times in steps.items():
            if len(times) > len(passes.get(step, ())):
                passes[step] = times
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    begun: dict[tuple[int, int], float] = {}
    for metric, values in ordered.items():
        within = {step: iter(_matched(times, passes[step])) for step, times in steps_of[metric].items()}
        for step, time, value in values:
            key = (step, next(within[step]))
            row = rows.setdefault(key, {"step": step})
            if metric != "step" or len(passes) == 1:
                row[metric] = number(value)
            begun[key] = min(time, begun.get(key, time))
    return table_of_rows(name, (rows[key] for key in sorted(rows, key=begun.__getitem__)))


def _times(values: Iterable[tuple[int, float, Any]]) -> dict[int, list[float]]:
    """Return the times of the values of each step."""
    times: dict[int, list[float]] = {}
    for step, time, _ in values:
        times.setdefault(step, []).append(time)
    return times


def _matched(times: list[float], passes: list[float]) -> list[int]:
    """Return for each time the index of the nearest pass; both are in order, and no pass is given twice."""
    found: list[int] = []
    for index, time in enumerate(times):
        after = bisect.bisect_left(passes, time)
        before = max(0, after - 1)
        nearest = after if after < len(passes) and passes[after] - time < time - passes[before] else before
        # Each later time needs a pass too.
        found.append(min(max(nearest, found[-1] + 1 if found else 0), len(passes) - len(times) + index))
    return found


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of paths, such as "train/grad_norm"."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        path = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{path}/")
        else:
            flat[path] = inner
    return flat
