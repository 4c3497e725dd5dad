"""The writer of metrics: keeps rows on the device until later ones come, then writes them."""

from __future__ import annotations

from collections.abc import Mapping
import operator
from types import TracebackType
from typing import Any, Self

import jax

from novoclip.writers.scalars import keep, numbers
from novoclip.writers.sink import Sink


class Writer:
    """Writes metrics, one row per step, without waiting for the step that was just started.

    `novoclip.writers.writer` makes one. A row is written when `every` rows are kept and the next one comes, at
    `flush()`, and at `close()`. Until then its arrays stay on the device: `float(value)` waits for the device,
    `write` does not wait for the step whose metrics it gets.

    Call `flush()` before a checkpoint is saved. Then the file has all rows before it, and a run that resumes from the
    checkpoint continues the file without a repeated or lost step.

    Args:
      sink: where rows go; None writes nothing.
      every: the number of rows that are kept.

    Example:
      >>> import jax.numpy as jnp, pathlib, tempfile
      >>> from novoclip.writers import writer
      >>> path = pathlib.Path(tempfile.mkdtemp(), "norms.csv")
      >>> with writer(path) as norms:
      ...     norms.write(0, {"clip/norm": jnp.array(0.5)})
      ...     norms.write(1, {"clip/norm": jnp.array(jnp.nan)})
      ...     print(path.read_text().split())  # row 1 waits for the next one
      ['step,clip/norm', '0,0.5']
      >>> print(path.read_text().split())
      ['step,clip/norm', '0,0.5', '1,nan']
    """

    def __init__(self, sink: Sink | None, every: int) -> None:
        self._sink = sink
        self._every = every
        self._kept: list[tuple[int, dict[str, Any]]] = []
        self._last: int | None = None
        self._closed = False

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of a step.

        Args:
          step: the number of the step, an integer on the host, larger than that of the call before.
          metrics: a flat mapping of names to scalars, such as `novoclip.metrics` returns: arrays of one element of JAX
            or NumPy, or numbers. They are copied, so that their buffers may be donated to the next step.

        Raises:
          TypeError: if the step is not an integer on the host, a value is traced, or a name is not a string.
          ValueError: if a value is not one real number (the message names it and its shape), a metric is called
            "step", the step is not larger than the last one, or the writer is closed.

        Example:
          >>> import pathlib, tempfile
          >>> from novoclip.writers import writer
          >>> path = pathlib.Path(tempfile.mkdtemp(), "loss.jsonl")
          >>> with writer(path) as losses:
          ...     losses.write(0, {"loss": 2.5})
          >>> print(path.read_text().strip())
          {"step": 0, "loss": 2.5}
        """
        if self._closed:
            msg = "the writer is closed: make a new one, which continues the file"
            raise ValueError(msg)
        number = _index(step)
        if self._last is not None and number <= self._last:
            msg = (
                f"steps must increase and not go back: got {number} after {self._last}. Write the metrics of one step "
                "in one call; a run that is resumed needs a new writer"
            )
            raise ValueError(msg)
        kept = keep(metrics)
        if self._sink is not None and len(self._kept) >= self._every:
            self._write_kept()
        self._last = number
        if self._sink is not None:
            self._kept.append((number, kept))

    def flush(self) -> None:
        """Write all rows that are kept. Waits for the device.

        Example:
          >>> import pathlib, tempfile
          >>> from novoclip.writers import writer
          >>> path = pathlib.Path(tempfile.mkdtemp(), "loss.csv")
          >>> losses = writer(path)
          >>> losses.write(0, {"loss": 2.5})
          >>> losses.flush()
          >>> print(path.read_text().split())
          ['step,loss', '0,2.5']
        """
        self._write_kept()
        if self._sink is not None and not self._closed:
            self._sink.flush()

    def close(self) -> None:
        """Write all rows that are kept and close what the writer opened. A logger that was given stays open.

        Rows that are kept are lost if the program ends without it: use the writer in a `with` statement.

        Example:
          >>> import pathlib, tempfile
          >>> from novoclip.writers import writer
          >>> path = pathlib.Path(tempfile.mkdtemp(), "loss.csv")
          >>> losses = writer(path)
          >>> losses.write(0, {"loss": 2.5})
          >>> losses.close()
          >>> print(path.read_text().split())
          ['step,loss', '0,2.5']
        """
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._closed = True
            if self._sink is not None:
                self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write_kept(self) -> None:
        if self._sink is None or not self._kept:
            return
        rows = numbers(self._kept)
        try:
            self._sink.write(rows)
        finally:
            # A row that could not be written is tried again.
            del self._kept[: len(self._kept) - len(rows)]


def _index(step: Any) -> int:
    if isinstance(step, jax.Array):
        msg = (
            "step must be an integer on the host, got an array of JAX, which each call would wait for: count the steps "
            "in Python, or write int(step)"
        )
        raise TypeError(msg)
    try:
        return operator.index(step)
    except TypeError as error:
        msg = f"step must be an integer, got {step!r}"
        raise TypeError(msg) from error
