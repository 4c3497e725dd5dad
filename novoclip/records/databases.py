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
            columns = {row[1] for row in connection.execute("PRAGMA table_info(metrics)")}
            if columns >= TRACKIO:
                return _trackio(connection, "run_id" if "run_id" in columns else "run_name")
            if columns >= MLFLOW:
                return _mlflow(connection)
    except sqlite3.Error as error:
        msg = f"{path}: SQLite cannot read it ({error})"
        raise RecordError(msg) from error
    msg = f"{path}: a database without a table of metrics as trackio or MLflow write it; export the run to a CSV file"
    raise RecordError(msg)


def _trackio(connection: sqlite3.Connection, run: str) -> list[Table]:
    runs: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for key, name, step, text in connection.execute(f"SELECT {run}, run_name, step, metrics FROM metrics ORDER BY id"):
        runs.setdefault(key, (name, []))[1].append({"step": step} | flatten(json.loads(text)))
    return [table_of_rows(name if len(runs) > 1 else "", rows) for name, rows in runs.values()]


def _mlflow(connection: sqlite3.Connection) -> list[Table]:
    runs: dict[str, dict[str, list[tuple[int, float, Any]]]] = {}
    rows = connection.execute(
        "SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics ORDER BY timestamp, step"
    )
    for run, metric, step, time, value, is_nan in rows:
        number = float("nan") if is_nan else value * 10 if abs(value) == HIGHEST else value
        runs.setdefault(run, {}).setdefault(metric, []).append((step, time, number))
    names = dict(connection.execute("SELECT run_uuid, name FROM runs")) if len(runs) > 1 else {}
    return [table_of_series(names.get(run) or (run if names else ""), metrics) for run, metrics in runs.items()]
