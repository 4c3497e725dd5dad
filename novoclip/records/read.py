"""read_record: the gradient norms of a recorded training run, from a file, a folder or arrays."""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from novoclip.records import arrays
from novoclip.records.record import Record
from novoclip.records.rows import Named, rows_of_tables
from novoclip.records.runs import choose
from novoclip.records.sources import tables_of_path
from novoclip.records.tidy import tidy


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
    `trainer_state.json` of Hugging Face's Trainer; the database of trackio; the folder or database of MLflow; and what
    CLU, Megatron-LM, torchtitan and others print. Columns are recognized by name. Of a norm before and one after
    clipping, the one before is read.

    Steps that go back, as when a run is resumed, replace the rows before. Steps that begin again are several runs, or
    one if a column "epoch" rises there: then the steps count on.

    Args:
      source: a path of a file or folder, a 1-D array or list of norms, or a mapping of column names to 1-D arrays.
      norm: the name of the column of norms, if it is not recognized.
      loss: the name of the column of losses.
      step: the name of the column of steps.
      learning_rate: the name of the column of learning rates.
      run: which of several runs to read: its name, or its number from 1, which is needed where two have one name. "all"
        joins all parts of a log whose steps begin again, as at each epoch of one run.

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
        tables, where, name = tables_of_path(path), str(path), path.stem
    elif isinstance(source, Mapping):
        tables, where, name = arrays.tables_of_mapping(source), "the mapping", "norms"
    else:
        tables, where, name = arrays.tables_of_array(source), "the array", "norms"
    with_norms = rows_of_tables(tables, named, where)
    chosen = choose(with_norms, run, where)
    if len(tables) > len(with_norms) == 1:
        note = f"of {len(tables)} runs, only {with_norms[0].name!r} has norms"
        chosen = chosen._replace(notes=(note, *chosen.notes))
    return tidy(chosen, f"{name}/{chosen.name}" if chosen.name else name, where)
