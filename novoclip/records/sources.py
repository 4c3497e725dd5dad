"""The tables of a file or a folder, whose format is recognized by its content."""

from __future__ import annotations

import codecs
from pathlib import Path

from novoclip.records import arrays, databases, event_files, mlflow_files
from novoclip.records.console import read_console
from novoclip.records.delimited import read_delimited
from novoclip.records.json_files import read_json
from novoclip.records.record import RecordError
from novoclip.records.table import Table

STATE = "trainer_state.json"
FOREIGN = {
    b":W&B": "this is the binary format of W&B: `wandb sync` it, then export a CSV file from the page of the run, or "
    "by wandb.Api().run(PATH).history().to_csv(FILE)",
    b"PAR1": "Parquet is not read: write a CSV file, with pandas.read_parquet(FILE).to_csv(FILE)",
    b"\x89HDF": "HDF5 is not read: write a CSV or an NPZ file",
}


def tables_of_path(path: Path) -> list[Table]:
    """Return the Table of each run in a file or a folder.

    Raises:
      RecordError: if it cannot be read, or is in no format that is known.
    """
    if path.is_dir():
        return _of_folder(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise RecordError(msg) from error
    if not content.strip():
        msg = f"{path}: the file is empty"
        raise RecordError(msg)
    for start, advice in FOREIGN.items():
        if content.startswith(start):
            msg = f"{path}: {advice}"
            raise RecordError(msg)
    return _of_content(path, content)


def _of_folder(path: Path) -> list[Table]:
    if event_files.event_folders(path):
        return event_files.read_events(path)
    if (path / STATE).is_file():
        return tables_of_path(path / STATE)
    if mlflow_files.run_folders(path):
        return mlflow_files.read_runs(path)
    msg = f"{path}: the folder holds no event files of TensorBoard (*tfevents*), no {STATE}, and no metrics of MLflow; "
    msg += "name a file"
    raise RecordError(msg)


def _of_content(path: Path, content: bytes) -> list[Table]:
    if b"brain.Event:" in content[:64] or event_files.IN_NAME in path.name:
        return event_files.read_events(path)
    if content.startswith((b"PK\x03\x04", b"\x93NUMPY")):
        return arrays.read_npz(path)
    if content.startswith(databases.MAGIC):
        return databases.read_database(path)
    # PowerShell writes UTF-16.
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = content.decode(encoding, errors="replace")
    try:
        return read_json(text) or read_delimited(text) or read_console(text)
    except RecordError as error:
        msg = f"{path}: {error}"
        raise RecordError(msg) from error
