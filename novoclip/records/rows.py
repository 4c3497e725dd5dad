"""The rows of each run that have a norm, with the columns that were recognized or named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import math
from typing import NamedTuple

import numpy as np

from novoclip.records import columns as by_name
from novoclip.records.delimited import BETWEEN
from novoclip.records.record import RecordError
from novoclip.records.runs import Rows
from novoclip.records.same_step import SameStep
from novoclip.records.table import Cells, Table

WHOLE = "grad_norm"  # the column that is added where there are norms of tensors only
NAMED = 6  # how many other columns a note lists


class Named(NamedTuple):
    """The columns that a user named, None where they are to be recognized."""

    norm: str | None
    loss: str | None
    step: str | None
    learning_rate: str | None


def rows_of_tables(tables: list[Table], named: Named, where: str) -> list[Rows]:
    """Return the rows with a norm of each run that has any.

    Raises:
      RecordError: if no run has norms, or has no column that was named.
    """
    found: list[Rows] = []
    empty: list[str] = []
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    if not names:
        msg = f"{where}: no numbers with names were found in it: a log is a CSV file whose first line is "
        msg += (
            "'step,grad_norm' and whose further lines hold numbers, or has one of the formats that docs/replay.md lists"
        )
        raise RecordError(msg)
    for table in map(_with_whole, tables) if named.norm is None else tables:
        norms = _norm_columns(table, named.norm)
        if norms and any(cell is not None for cell in table.columns[norms[0]]):
            found.append(_rows(table, norms, named, where))
        else:
            empty += norms
    if found:
        return found
    if empty:
        msg = f"{where}: the column {empty[0]!r} is empty"
        raise RecordError(msg)
    if named.norm is None:
        msg = f"{where}: no column of gradient norms was recognized; the nearest are "
    else:
        msg = f"{where}: no norms in a column {named.norm!r}; the nearest are "
    msg += by_name.nearest(names, named.norm or "grad_norm")
    msg += ': name the column with norm="..." (on a command line --norm NAME)'
    raise RecordError(msg)


def _with_whole(table: Table) -> Table:
    """Return a run that has norms of tensors only with the norm of the whole, computed from them."""
    tensors = by_name.find_tensors(list(table.columns))
    if by_name.find_norms(list(table.columns)) or not tensors:
        return table
    rows = zip(*(table.columns[name] for name in tensors.values()), strict=True)
    whole: Cells = [None if None in row else math.hypot(*(cell for cell in row if cell is not None)) for row in rows]
    note = f"there is no norm of the whole gradient: it was computed from the norms of {len(tensors)} tensors"
    return table._replace(columns={**table.columns, WHOLE: whole}, notes=(*table.notes, note))


def _norm_columns(table: Table, wanted: str | None) -> list[str]:
    if wanted is None:
        return by_name.find_norms(list(table.columns))
    name = by_name.find_named(table.columns, wanted.removeprefix(f"{table.name}{BETWEEN}"))
    return [] if name is None else [name]


def _rows(table: Table, norms: list[str], named: Named, where: str) -> Rows:
    all_columns = table.columns
    kept = [row for row, cell in enumerate(all_columns[norms[0]]) if cell is not None]
    notes = list(table.notes)
    if len(norms) > 1:
        others = ", ".join(map(repr, norms[1 : NAMED + 1])) + (" and more" if len(norms) > NAMED + 1 else "")
        notes.append(f"the norms were read from {norms[0]!r}; {others} would fit too (norm=, --norm)")
    empty = len(all_columns[norms[0]]) - len(kept)
    if empty:
        notes.append(f"{empty} {'row' if empty == 1 else 'rows'} without a norm were skipped")

    step = _step(all_columns, kept, named.step, where, notes)
    if step is not None:
        unknown = sum(all_columns[step][row] is None for row in kept)
        kept = [row for row in kept if all_columns[step][row] is not None]
        if unknown:
            notes.append(f"{unknown} {'row' if unknown == 1 else 'rows'} with a norm but without a step were skipped")
        steps = _whole(all_columns[step], kept, f"{where}: the column {step!r}")
    else:
        steps = np.arange(len(kept))
    nearest = None if step is None else SameStep(all_columns[step], all_columns[norms[0]])

    def column(name: str | None) -> np.ndarray:
        return _values(all_columns[name] if name is not None else [], kept, nearest)

    loss = _column(all_columns, named.loss, by_name.find_loss, "loss", where)
    rate = _column(all_columns, named.learning_rate, by_name.find_learning_rate, "learning_rate", where)
    values = {"norms": column(norms[0]), "losses": column(loss), "learning_rates": column(rate)}
    tensors = {tensor: column(name) for tensor, name in by_name.find_tensors(list(all_columns)).items()}
    epochs = column(by_name.find_epoch(all_columns))
    return Rows(table.name, steps.astype(np.int64), values, tensors, tuple(notes), step is None, epochs)


def _step(columns: dict[str, Cells], kept: list[int], wanted: str | None, where: str, notes: list[str]) -> str | None:
    """Return the column of steps; one that is the same in all rows, as MLflow writes without `step=`, is none."""
    with_norm = [name for name, cells in columns.items() if any(cells[row] is not None for row in kept)]
    step = _column(with_norm, wanted, by_name.find_step, "step", where)
    if step is None or (same := _same(columns[step], kept)) is None:
        return step
    rows, value = same
    notes.append(f"all {rows} rows with a norm have the step {value:g} in {step!r}, which is therefore not used")
    while step is not None and _same(columns[step], kept) is not None:
        with_norm.remove(step)
        step = by_name.find_step(with_norm)
    return step


def _same(cells: Cells, kept: list[int]) -> tuple[int, float] | None:
    """Return how many of the rows hold a number, and the number, if there are several that are all equal."""
    found = [cell for row in kept if (cell := cells[row]) is not None]
    return (len(found), found[0]) if len(found) > 1 and all(cell == found[0] for cell in found) else None


def _column(
    names: Iterable[str],
    wanted: str | None,
    find: Callable[[Iterable[str]], str | None],
    argument: str,
    where: str,
) -> str | None:
    names = list(names)
    if wanted is None:
        return find(names)
    name = by_name.find_named(names, wanted)
    if name is None:
        option = argument.replace("_", "-")
        msg = f"{where}: {argument}={wanted!r} is no column with numbers; the nearest are "
        msg += f"{by_name.nearest(names, wanted)} (on a command line --{option} NAME)"
        raise RecordError(msg)
    return name


def _whole(cells: Cells, kept: list[int], what: str) -> np.ndarray:
    steps = np.array([cells[row] for row in kept], np.float64)
    if not np.all(np.isfinite(steps)) or np.any(steps != np.rint(steps)):
        wrong = steps[~(np.isfinite(steps) & (steps == np.rint(steps)))][0]
        msg = f"{what} must hold the steps, whole numbers; it holds {wrong:g}: "
        msg += 'name another with step="..." (on a command line --step NAME)'
        raise RecordError(msg)
    return steps


def _values(cells: Cells, kept: list[int], nearest: SameStep | None) -> np.ndarray:
    """Return a column's numbers in the kept rows, taking empty cells from the nearest row of the same step."""
    if not cells:
        return np.full(len(kept), np.nan)
    if nearest is None:
        return np.array([cells[row] for row in kept], np.float64)
    return np.array(nearest.fill(cells, kept), np.float64)
