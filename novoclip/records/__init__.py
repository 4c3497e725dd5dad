"""Read recorded gradient norms from the log of a training run."""

from novoclip.records.read import read_record
from novoclip.records.record import Record, RecordError

__all__ = ["Record", "RecordError", "read_record"]
