"""Tables of TensorBoard's event files, with the package tensorboard, which must be installed."""

from __future__ import annotations

import importlib
from pathlib import Path

from novoclip.records.record import RecordError
from novoclip.records.table import Table, table_of_series

IN_NAME = "tfevents"


def event_folders(folder: Path) -> list[Path]:
    """Return the folders with event files, at any depth: each is a run."""
    return sorted({file.parent for file in folder.rglob(f"*{IN_NAME}*") if file.is_file()})


def read_events(source: Path) -> list[Table]:
    """Read an event file, or all runs of a folder.

    Raises:
      RecordError: if the package tensorboard is not installed, or cannot read the files.
    """
    try:
        accumulators = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        tensor_util = importlib.import_module("tensorboard.util.tensor_util")
    except ImportError as error:
        msg = f"{source}: TensorBoard's event files need the package tensorboard: pip install 'novoclip[replay]'"
        raise RecordError(msg) from error

    def read(path: Path, name: str) -> Table:
        # All events; none are discarded when a run was resumed, since later rows replace earlier ones anyway.
        accumulator = accumulators.EventAccumulator(str(path), {"scalars": 0, "tensors": 0}, purge_orphaned_data=False)
        accumulator.Reload()
        tags = accumulator.Tags()
        events = {tag: [(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
        for tag in tags["tensors"]:
            if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
                values = ((e, tensor_util.make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag))
                events[tag] = [(e.step, e.wall_time, value.item()) for e, value in values if value.size == 1]
        return table_of_series(name, events)

    folders = [source] if source.is_file() else event_folders(source)
    try:
        return [read(path, "" if len(folders) == 1 else _name(path, source)) for path in folders]
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        msg = f"{source}: tensorboard cannot read it ({reason})"
        raise RecordError(msg) from error


def _name(path: Path, source: Path) -> str:
    return path.name if path == source else path.relative_to(source).as_posix()
