"""Tables of CSV and TSV, and of the CSV that W&B exports."""

from __future__ import annotations

import csv
import io
import itertools

from novoclip.records.table import Table, number, table_of_rows

BETWEEN = " - "  # stands between the run and the metric in W&B's exports
NOT_METRICS = ("__MIN", "__MAX")  # smallest and largest value within the rows that W&B joined into one


def read_delimited(text: str) -> list[Table] | None:
    """Return the Tables of a CSV or TSV, or None if the text is neither."""
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error:
        return None
    if not rows or not _is_table(rows):
        return None
    if all(number(cell) is not None for cell in rows[0]):
        names = ["grad_norm"] if len(rows[0]) == 1 else [str(index) for index in range(len(rows[0]))]
    else:
        names, rows = [name.strip() for name in rows[0]], rows[1:]
    kept = [index for index, name in enumerate(names) if not name.endswith(NOT_METRICS)]
    named = [{names[index]: row[index] for index in kept if index < len(row)} for row in rows]
    return _runs([names[index] for index in kept], named)


def _delimiter(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max("\t,;", key=first.count) if any(mark in first for mark in "\t,;") else ","


def _is_table(rows: list[list[str]]) -> bool:
    # Lines of a console log may hold commas too, but no cell of theirs is a number and nothing else.
    width = len(rows[0])
    first = list(itertools.islice(rows, 1, 40))
    if len(rows) == 1:
        return all(cell.strip() for cell in rows[0]) and width > 1 and not any("=" in c or ":" in c for c in rows[0])
    fit = [row for row in first if len(row) == width and any(number(cell) is not None for cell in row)]
    return len(fit) > len(first) / 2


def _runs(names: list[str], rows: list[dict[str, str]]) -> list[Table]:
    """Return one Table for each run, where the columns are named as W&B names them."""
    runs = dict.fromkeys(name.rsplit(BETWEEN, 1)[0] for name in names if BETWEEN in name)
    if not runs:
        return [table_of_rows("", rows)]
    tables = []
    for run in runs:
        columns = {n: n.rsplit(BETWEEN, 1)[1] for n in names if BETWEEN in n and n.rsplit(BETWEEN, 1)[0] == run}
        columns |= {n: n for n in names if BETWEEN not in n}
        tables.append(table_of_rows(run, ({new: row.get(old) for old, new in columns.items()} for row in rows)))
    return tables
