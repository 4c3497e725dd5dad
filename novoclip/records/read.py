"""read_record: the gradient norms of a recorded training run, from a file, a folder or arrays."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from novoclip.records import arrays, event_files
from novoclip.records.console import read_console
from novoclip.records.delimited import read_delimited
from novoclip.records.json_files import read_json
from novoclip.records.record import Record, RecordError
from novoclip.records.rows import Named, rows_of_tables
from novoclip.records.runs import choose, split
from novoclip.records.table import Table
from novoclip.records.tidy import tidy

STATE = "trainer_state.json"


def read_record(
    source: Any,
    *,
    norm: str | None = None,
    loss: str | None = None,
    step: str | None = None,
    learning_rate: str | None = None,
    run: str | int | None = None,
) -> Record:
    """Read the recorded gradient norms of a training run.

    The format is recognized by content: CSV and TSV, also as W&B exports it; JSONL; NPZ; TensorBoard's event files;
    `trainer_state.json` of Hugging Face's Trainer; and what CLU, Megatron-LM, torchtitan and others print. Columns are
    recognized by name. Of a norm before and one after clipping, the one before is read.

    Args:
      source: a path of a file or folder, a 1-D array or list of norms, or a mapping of column names to 1-D arrays.
      norm: the name of the column of norms, if it is not recognized.
      loss: the name of the column of losses.
      step: the name of the column of steps.
      learning_rate: the name of the column of learning rates.
      run: which of several runs to read: its name, or its number from 1.

    Returns:
      A Record. Its notes say what was noticed and done.

    Raises:
      RecordError: if the source cannot be used. The message is one line that says why.

    Example:
      >>> import numpy as np
      >>> from novoclip.records import read_record
      >>> steps = np.arange(0, 2000, 100)
      >>> record = read_record({"step": steps, "train/grad_norm": 1.0 + steps / 1000})
      >>> print(len(record.norms), record.norms.max(), record.stride)
      20 2.9 100
      >>> print(record.notes[0])
      logged every 100 steps: windows of rules count rows, and spikes between rows are not seen
    """
    named = Named(norm=norm, loss=loss, step=step, learning_rate=learning_rate)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        tables, where, name = _tables(path), str(path), path.stem
    elif isinstance(source, Mapping):
        tables, where, name = arrays.tables_of_mapping(source), "the mapping", "norms"
    else:
        tables, where, name = arrays.tables_of_array(source), "the array", "norms"
    with_norms = rows_of_tables(tables, named, where)
    runs = [part for rows in with_norms for part in split(rows)]
    chosen = choose(runs, run, where)
    if len(tables) > len(with_norms) == 1:
        note = f"of {len(tables)} runs, only {with_norms[0].name!r} has norms"
        chosen = chosen._replace(notes=(note, *chosen.notes))
    return tidy(chosen, f"{name}/{chosen.name}" if chosen.name else name, where)


def _tables(path: Path) -> list[Table]:
    if path.is_dir():
        if event_files.event_folders(path):
            return event_files.read_events(path)
        if (path / STATE).is_file():
            return _tables(path / STATE)
        msg = f"{path}: the folder holds neither event files of TensorBoard (*tfevents*) nor a {STATE}; name a file"
        raise RecordError(msg)
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise RecordError(msg) from error
    if not content.strip():
        msg = f"{path}: the file is empty"
        raise RecordError(msg)
    if b"brain.Event:" in content[:64] or event_files.IN_NAME in path.name:
        return event_files.read_events(path)
    if content.startswith((b"PK\x03\x04", b"\x93NUMPY")):
        return arrays.read_npz(path)
    # PowerShell writes UTF-16.
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = content.decode(encoding, errors="replace")
    try:
        return read_json(text) or read_delimited(text) or read_console(text)
    except RecordError as error:
        msg = f"{path}: {error}"
        raise RecordError(msg) from error
