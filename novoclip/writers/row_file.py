"""A file of rows, CSV or JSON Lines, that is continued after a restart and never holds half a row."""

from __future__ import annotations

from collections.abc import Iterator
import csv
import io
import json
import os
from pathlib import Path
import shutil
from typing import Any

from novoclip.writers.sink import Row


class RowFile:
    """A CSV or JSON Lines file with one row for each step.

    The first write replaces the file by its rows before the first new step, followed by the new ones. Later writes
    append, except where a CSV file gets a new column: then it is replaced by one with the longer header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_csv = path.suffix.lower() == ".csv"
        self._columns: list[str] = []
        if path.exists():
            # Fails before training if the file is something else.
            next(self._kept(None), None)

    def write(self, rows: list[Row]) -> None:
        """Write the rows, all or none, and remove them from the list."""
        named = dict.fromkeys(name for _, values in rows for name in values)
        if not self._columns or not self.path.exists() or (self._is_csv and not named.keys() <= set(self._columns)):
            self._replace(rows, named)
        else:
            self._append("".join(self._line({"step": step} | values, self._columns) for step, values in rows))
        rows.clear()

    def flush(self) -> None:
        """Do nothing: each write is complete."""

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _append(self, text: str) -> None:
        left = memoryview(text.encode())
        with self.path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[file.write(left) :]
            except BaseException:
                file.truncate(size)
                raise

    def _replace(self, rows: list[Row], named: dict[str, None]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys((*(self._header() or ["step"]), *named)))
        # Always the same name, so that what a killed process left is overwritten.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                if self._is_csv:
                    file.write(self._line({name: name for name in columns}, columns))
                if self.path.exists():
                    file.writelines(self._line(row, columns) for row in self._kept(rows[0][0]))
                file.writelines(self._line({"step": step} | values, columns) for step, values in rows)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                shutil.copymode(self.path, temporary)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._columns = columns

    def _header(self) -> list[str]:
        """Return the columns of the CSV file as it is, or nothing."""
        if not self._is_csv or not self.path.exists():
            return []
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(_complete(file)), [])

    def _kept(self, before: int | None) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file with a smaller step, or all."""
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            lines = _complete(file)
            reader = csv.DictReader(lines, restval="") if self._is_csv else None
            if reader is not None and reader.fieldnames and "step" not in reader.fieldnames:
                msg = f"{self.path} has no column 'step', so that a writer cannot continue it: give another path"
                raise ValueError(msg)
            for number, row in enumerate(reader or map(_parsed, lines), start=1):
                try:
                    step = int(row["step"])
                except (TypeError, KeyError, ValueError) as error:
                    msg = (
                        f"{self.path}, row {number}, has no integer 'step', so that a writer cannot continue the "
                        "file: give another path, or repair the row"
                    )
                    raise ValueError(msg) from error
                if before is None or step < before:
                    yield row

    def _line(self, row: dict[str, Any], columns: list[str]) -> str:
        if not self._is_csv:
            return json.dumps(row) + "\n"
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row.get(name, "") for name in columns])
        return line.getvalue()


def _complete(lines: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines up to the last that ends: a process that was killed may have left a part of one."""
    return (line for line in lines if line.endswith("\n"))


def _parsed(line: str) -> dict[str, Any]:
    """Return the object in a line of JSON, or nothing."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}
