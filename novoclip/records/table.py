"""Table: the numbers of one run by column, before it is decided what each column is."""

from __future__ import annotations

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
      series: for each metric its values, as (step, time, value). A row holds the n-th value of each metric at one step,
        and rows are ordered by time.
    """
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    times: dict[tuple[int, int], float] = {}
    for metric, values in series.items():
        seen: dict[int, int] = {}
        for step, time, value in values:
            seen[step] = seen.get(step, -1) + 1
            key = (step, seen[step])
            rows.setdefault(key, {"step": step})[metric] = number(value)
            times[key] = min(time, times.get(key, time))
    return table_of_rows(name, (rows[key] for key in sorted(rows, key=times.__getitem__)))


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
