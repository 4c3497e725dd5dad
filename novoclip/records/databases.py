"""Tables of SQLite files: those of trackio, one for each project, and those of MLflow's tracking server."""

from __future__ import annotations

from contextlib import closing
import json
from pathlib import Path
import sqlite3
from typing import Any

from novoclip.records.record import RecordError
from novoclip.records.table import Table, flatten, table_of_rows, table_of_series

MAGIC = b"SQLite format 3\0"
TRACKIO = {"run_name", "step", "metrics"}
MLFLOW = {"run_uuid", "key", "value", "step", "timestamp", "is_nan"}
HIGHEST = 1.7976931348623157e308  # MLflow stores infinity as the largest finite number


def read_database(path: Path) -> list[Table]:
    """Read the metrics of all runs of a SQLite file.

    Raises:
      RecordError: if it has no table of metrics as trackio or MLflow have it, or is damaged.
    """
    try:
        # Read only: a training may be writing to it.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            # A damaged byte in a text is no reason to refuse the file.
            connection.text_factory = lambda text: text.decode("utf-8", "replace")
            columns = {row[1] for row in connection.execute("PRAGMA table_info(metrics)")}
            if columns >= TRACKIO:
                # Rows of older versions of trackio have no run_id.
                run = "COALESCE(run_id, run_name)" if "run_id" in columns else "run_name"
                return _trackio(connection, run, path)
            if columns >= MLFLOW:
                return _mlflow(connection, path)
    except sqlite3.Error as error:
        msg = f"{path}: SQLite cannot read it ({error})"
        raise RecordError(msg) from error
    msg = f"{path}: a database without a table of metrics as trackio or MLflow write it; export the run to a CSV file"
    raise RecordError(msg)


def _trackio(connection: sqlite3.Connection, run: str, path: Path) -> list[Table]:
    runs: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    rows = connection.execute(f"SELECT {run}, run_name, id, step, metrics FROM metrics ORDER BY id")
    for key, name, row, step, text in rows:
        # The step of trackio stands first and last: a metric may have its name, or one that is much like it.
        metrics = {"step": step} | flatten(_json_object(text, row, path)) | {"step": step}
        runs.setdefault(key, (name or key or "", []))[1].append(metrics)
    return [table_of_rows(name if len(runs) > 1 else "", rows) for name, rows in runs.values()]


def _json_object(text: Any, row: Any, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        found, reason = None, " ".join(str(error).split())
    else:
        reason = f"it is {type(found).__name__}"
    if isinstance(found, dict):
        return found
    msg = f"{path}: the metrics of the row with id {row} are no JSON object ({reason}); delete the row in a copy of it"
    raise RecordError(msg)


def _mlflow(connection: sqlite3.Connection, path: Path) -> list[Table]:
    runs: dict[str, dict[str, list[tuple[int, float, Any]]]] = {}
    rows = connection.execute(
        "SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics ORDER BY timestamp, step"
    )
    for run, metric, step, time, value, is_nan in rows:
        _check(metric, run, {"step": step, "timestamp": time, "value": 0.0 if is_nan else value}, path)
        number = float("nan") if is_nan else value * 10 if abs(value) == HIGHEST else value
        runs.setdefault(run, {}).setdefault(metric, []).append((step, time, number))
    names = dict(connection.execute("SELECT run_uuid, name FROM runs")) if len(runs) > 1 else {}
    return [table_of_series(names.get(run) or (run if names else ""), metrics) for run, metrics in runs.items()]


def _check(metric: Any, run: Any, cells: dict[str, Any], path: Path) -> None:
    """Raise if a cell is no number: SQLite stores a text or NULL in a column of any type."""
    wrong = [f"{name} {cell!r}" for name, cell in cells.items() if not isinstance(cell, int | float)]
    if wrong:
        step = "" if "step" in wrong[0] else f" at step {cells['step']}"
        msg = f"{path}: a damaged row of the metric {metric!r} of run {run!r}{step} has the {' and the '.join(wrong)}, "
        msg += "which is no number; delete the row in a copy of the file"
        raise RecordError(msg)
