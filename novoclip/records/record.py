"""What is read from the log of a training run, and the error for input that cannot be used."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RecordError(ValueError):
    """A recorded log that cannot be used. The message is one line that says why, and what to do."""


class Record(NamedTuple):
    """The gradient norms of one training run, as they were logged.

    Attributes:
      name: the name of the file, or of the run within it.
      steps: the step of each row, int64 of shape (rows,), ascending and without repeats.
      norms: the gradient norm of each row before clipping, float64 of shape (rows,). It may hold NaN and inf.
      losses: the training loss of each row, NaN where the log has none.
      learning_rates: the learning rate of each row, NaN where the log has none.
      tensors: the norms of single tensors by name, each of shape (rows,). It is empty if the log has none.
      stride: the usual distance between the steps of two rows, 1 if it is unknown.
      notes: one sentence for each thing that was noticed or done while reading.
    """

    name: str
    steps: np.ndarray
    norms: np.ndarray
    losses: np.ndarray
    learning_rates: np.ndarray
    tensors: dict[str, np.ndarray]
    stride: int
    notes: tuple[str, ...]
