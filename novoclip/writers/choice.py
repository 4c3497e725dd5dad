"""The writer for a target: a file, a folder, or another library's logger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from novoclip.writers.loggers import EventFolder, Logger
from novoclip.writers.metrics_writer import Writer
from novoclip.writers.row_file import RowFile
from novoclip.writers.sink import Sink

# Endings of files that a folder of TensorBoard would be mistaken for.
FILES = (".json", ".txt", ".tsv", ".log", ".gz", ".zip", ".parquet", ".npz", ".npy", ".db", ".yaml", ".toml", ".html")


def writer(target: Any, *, every: int = 1) -> Writer:
    """Open a writer of metrics for a CSV or JSON Lines file, TensorBoard, Weights & Biases, MLflow and others.

    A file or folder that exists is continued: the first row that is written removes the rows with its step and later
    ones, so that a run that resumes from a checkpoint has each step once. Files are appended in one piece or replaced
    as a whole. In a run of several processes, only process 0 writes to a path, and each process uses the object that
    it gives: call this after `jax.distributed.initialize`.

    Args:
      target: one of

        - a path that ends in `.csv` or `.jsonl`. A metric that first comes at a later step adds a column to the CSV.
          NaN and infinity are `nan` and `inf` in CSV, `NaN` and `Infinity` in JSON Lines, as Python's json has them.
        - another path: a folder of TensorBoard event files, written by tensorboardX.
        - an object with `write_scalars(step, dict)` (clu), `log_metrics(dict, step=)` (the module mlflow, loggers of
          Lightning), `add_scalar(name, value, step)` (SummaryWriter of tensorboardX and torch), `log(dict, step=)`
          (the module or a run of wandb and of trackio), or `scalar(name, value, step=)` (flax.metrics.tensorboard):
          the first of these that it has. It stays open when the writer is closed.
      every: the number of rows that are kept on the device and written together when the next one comes.

    Returns:
      A Writer: `write(step, metrics)`, `flush()`, `close()`, and a context manager that closes it.

    Raises:
      ImportError: if the target is a folder and tensorboardX is not installed.
      TypeError: if the target is none of these.
      ValueError: if `every` is below 1, or the path is a file that a writer cannot continue.

    Example:
      >>> import csv, jax.numpy as jnp, novoclip, optax, pathlib, tempfile
      >>> optimizer = optax.chain(novoclip.clip_by_global_norm(1.0), optax.adam(1e-3))
      >>> params = {"w": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> path = pathlib.Path(tempfile.mkdtemp(), "monitor.csv")
      >>> with writer(path) as monitor:
      ...     for step in range(2):
      ...         updates, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, state)
      ...         monitor.write(step, novoclip.metrics(state))
      >>> for row in csv.DictReader(path.read_text().splitlines()):
      ...     print(row["step"], row["clip/norm"], row["clip/clipped"])
      0 5.0 1
      1 5.0 2
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        msg = f"every must be an integer of at least 1, got {every!r}"
        raise ValueError(msg)
    if not isinstance(target, str | os.PathLike):
        return Writer(Logger(target), every)
    sink = _open(os.fspath(target))
    return Writer(sink if jax.process_index() == 0 else None, every)


def _open(target: str | bytes) -> Sink:
    name = os.fsdecode(target)
    path = Path(name)
    if path.is_dir() or path.suffix.lower() not in (".csv", ".jsonl"):
        if path.is_file():
            msg = f"{name} is a file that ends in neither .csv nor .jsonl: give another path, or that of a folder"
            raise ValueError(msg)
        if not path.is_dir() and path.suffix.lower() in FILES:
            msg = f"{name} looks like a file: give a path that ends in .csv or .jsonl, or that of a folder"
            raise ValueError(msg)
        return EventFolder(name)
    if "://" in name:
        msg = f"a CSV or JSON Lines file must be on a local disk, got {name}: give a local path, or a logger"
        raise ValueError(msg)
    # A link stays a link: its file is replaced.
    return RowFile(Path(os.path.realpath(path)))
