"""Writers of metrics: CSV, JSON Lines, TensorBoard, and the loggers of other libraries."""

from __future__ import annotations

from novoclip.writers.choice import writer as writer
from novoclip.writers.metrics_writer import Writer as Writer

__all__ = ["Writer", "writer"]
