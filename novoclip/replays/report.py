"""A Replay as one HTML file that works offline, and as a picture for a paper."""

from __future__ import annotations

from collections.abc import Callable
import importlib
import os
from pathlib import Path

from novoclip.replays.replay import Replay


def write_report(answer: Replay, path: str | os.PathLike[str]) -> None:
    """Write a Replay as one HTML file with everything in it, for a browser, also without a network.

    It holds the norms with the limit of each rule and what it let through, the losses, the table, the recommendation,
    the tensors that exploded first, and how far norms are from their level.

    Args:
      answer: what `replay` returned.
      path: the file. One that is there is replaced at once, when the new one is complete.

    Raises:
      ModuleNotFoundError: if plotly is not installed.
      FileNotFoundError: if the folder does not exist.
    """
    # Plotly and matplotlib are imported when they are used: the library itself needs neither.
    text = importlib.import_module("novoclip.replays.report_page").page(answer)
    _replace(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def write_png(answer: Replay, path: str | os.PathLike[str]) -> None:
    """Write the norms, the limit of the recommended rule and the spikes as a PNG file of 2000 x 1000 pixels.

    Args:
      answer: what `replay` returned.
      path: the file. One that is there is replaced at once, when the new one is complete.

    Raises:
      ModuleNotFoundError: if matplotlib is not installed.
      FileNotFoundError: if the folder does not exist.
    """
    figure = importlib.import_module("novoclip.replays.report_picture").picture(answer)
    _replace(Path(path), lambda part: figure.savefig(part, format="png"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    if not path.parent.is_dir():
        msg = f"{path}: the folder {path.parent} does not exist"
        raise FileNotFoundError(msg)
    if path.is_dir():
        msg = f"{path} is a folder; name a file in it"
        raise IsADirectoryError(msg)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
