"""What a writer needs from the place that its rows go to."""

from __future__ import annotations

from typing import Protocol

Row = tuple[int, dict[str, float]]


class Sink(Protocol):
    """A place for rows: a file, a folder, or another library's logger."""

    def write(self, rows: list[Row]) -> None:
        """Write all rows, and remove from the list each row that is written."""

    def flush(self) -> None:
        """Hand everything written so far to the operating system or the library."""

    def close(self) -> None:
        """Release what this sink opened itself."""
