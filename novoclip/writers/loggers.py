"""Loggers of other libraries, and TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Callable
import importlib
import inspect
from pathlib import Path
from typing import Any

from novoclip.writers.sink import Row


def _write_scalars(target: Any, step: int, values: dict[str, float]) -> None:
    target.write_scalars(step, values)


def _log_metrics(target: Any, step: int, values: dict[str, float]) -> None:
    target.log_metrics(values, step=step)


def _add_scalar(target: Any, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        target.add_scalar(name, value, step)


def _log(target: Any, step: int, values: dict[str, float]) -> None:
    target.log(values, step=step)


def _scalar(target: Any, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        target.scalar(name, value, step=step)


# How each method is called, in the order in which they are looked for: what takes a whole row comes before what
# takes one value, except for `log`, a name that objects also have for other things.
METHODS: dict[str, tuple[Callable[[Any, int, dict[str, float]], None], tuple[Any, ...], dict[str, Any]]] = {
    "write_scalars": (_write_scalars, (0, {}), {}),
    "log_metrics": (_log_metrics, ({},), {"step": 0}),
    "add_scalar": (_add_scalar, ("", 0.0, 0), {}),
    "log": (_log, ({},), {"step": 0}),
    "scalar": (_scalar, ("", 0.0), {"step": 0}),
}


class Logger:
    """A logger of another library. It is used as given and stays open."""

    def __init__(self, target: Any) -> None:
        method = next((name for name in METHODS if _takes(target, name)), None)
        if method is None or isinstance(target, type):
            msg = (
                "target must be a path that ends in .csv or .jsonl, a path of a folder, or an object with "
                "write_scalars(step, dict), log_metrics(dict, step=), add_scalar(name, value, step), log(dict, step=) "
                f"or scalar(name, value, step=), got {target!r}"
            )
            raise TypeError(msg)
        self._target = target
        self._send = METHODS[method][0]

    def write(self, rows: list[Row]) -> None:
        """Send the rows one by one, and remove each from the list once it is sent."""
        while rows:
            self._send(self._target, *rows[0])
            del rows[0]

    def flush(self) -> None:
        """Flush the logger, if it can."""
        flush = getattr(self._target, "flush", None)
        if callable(flush):
            flush()

    def close(self) -> None:
        """Leave the logger open: who opened it closes it."""


class EventFolder:
    """A folder of TensorBoard event files, written by tensorboardX."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: Any = None
        self._make = _import("tensorboardX").SummaryWriter

    def write(self, rows: list[Row]) -> None:
        """Write the rows. The first write hides what an earlier run wrote from that step on."""
        if self._opened is None and rows:
            earlier = len(list(Path(self._path).glob("events.out.tfevents.*")))
            # Files are named by the second, and read in the order of their names: without a number of its own, a run
            # that starts within the same second would overwrite the file before.
            suffix = f".{earlier:06d}"
            purge = rows[0][0] if earlier else None
            self._opened = self._make(self._path, purge_step=purge, filename_suffix=suffix)
        Logger(self._opened).write(rows)

    def flush(self) -> None:
        """Flush the event file."""
        if self._opened is not None:
            self._opened.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._opened is not None:
            self._opened.close()


def _takes(target: Any, method: str) -> bool:
    """Return whether the target has a method of this name that can be called as METHODS says."""
    call = getattr(target, method, None)
    if not callable(call):
        return False
    _, arguments, keywords = METHODS[method]
    try:
        signature = inspect.signature(call)
        # `wandb.log` before `wandb.init` shows the signature of the method, with self.
        self_too = (None,) if "self" in signature.parameters else ()
        signature.bind(*self_too, *arguments, **keywords)
    except (TypeError, ValueError):
        return False
    return True


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"to write TensorBoard event files, {name} is needed: pip install 'novoclip[writers]'"
        raise ImportError(msg) from error
