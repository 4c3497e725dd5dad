"""Tables of the folders of MLflow's file store: `mlruns/EXPERIMENT/RUN/metrics/NAME`, lines of "time value step"."""

from __future__ import annotations

from pathlib import Path
import re

from novoclip.records.record import RecordError
from novoclip.records.table import Table, number, table_of_series

LINE = re.compile(r"(\d+) (\S+) (-?\d+)(?: .*)?")
NAME = Path("tags", "mlflow.runName")


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of runs, at any depth, that hold metrics as MLflow writes them."""
    runs = {metrics.parent for metrics in [folder / "metrics", *folder.rglob("metrics")] if metrics.is_dir()}
    return sorted(run for run in runs if any(_first_line_fits(file) for file in _files(run)))


def read_runs(folder: Path) -> list[Table]:
    """Read all runs of a folder.

    Raises:
      RecordError: if a line before the last one of a file is damaged.
    """
    runs = run_folders(folder)
    return [
        table_of_series("" if len(runs) == 1 else _name(run), {_metric(f, run): _values(f) for f in _files(run)})
        for run in runs
    ]


def _files(run: Path) -> list[Path]:
    return sorted(file for file in (run / "metrics").rglob("*") if file.is_file() and file.name[0] != ".")


def _first_line_fits(file: Path) -> bool:
    with file.open("rb") as opened:
        return LINE.fullmatch(opened.readline(200).decode("utf-8", "replace").rstrip()) is not None


def _metric(file: Path, run: Path) -> str:
    return file.relative_to(run / "metrics").as_posix()


def _name(run: Path) -> str:
    return (run / NAME).read_text(encoding="utf-8", errors="replace").strip() if (run / NAME).is_file() else run.name


def _values(file: Path) -> list[tuple[int, float, str]]:
    lines = file.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    values = []
    for row, line in enumerate(lines, start=1):
        found = LINE.fullmatch(line.rstrip())
        if found and number(found[2]) is not None:
            values.append((int(found[3]), float(found[1]), found[2]))
        elif row < len(lines):  # the last line may still be being written
            msg = f"{file}: line {row} is not 'TIME VALUE STEP': {line[:40]!r}; delete the line in a copy of the folder"
            raise RecordError(msg)
    return values
