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
