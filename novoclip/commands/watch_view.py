"""The last rows of a record in a few lines of text."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.text import Text

from novoclip.records import Record
from novoclip.replays.judge import AROUND, spikes_of

LATEST = 128  # rows, of which the fraction of spikes is shown
WIDTH = 64  # rows in the sparkline, one character for each
BARS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-=+*#@"  # where the terminal has no Unicode
NOT_FINITE = "!"


def view(record: Record, out: Console) -> Text:
    """Return the last norm, the level, the spikes, the loss and a sparkline of the norms."""
    norms, spikes = record.norms, spikes_of(record.norms)
    level = _median(norms[-1 - AROUND :])
    last = f"last norm {norms[-1]:.4g}"
    if np.isfinite(norms[-1]) and level > 0:
        last += f" ({norms[-1] / level:.3g} levels)"
    known = record.losses[np.isfinite(record.losses)]
    name = "".join(letter if letter.isprintable() else " " for letter in record.name)
    lines = [
        f"{name}  step {record.steps[-1]}  {norms.size} rows",
        f"{last}  level {level:.4g}  loss {f'{known[-1]:.4g}' if known.size else '-'}",
        f"spikes {int(spikes.sum())}  in the last {min(LATEST, norms.size)} rows {100 * spikes[-LATEST:].mean():.1f} %"
        f"  not finite {int((~np.isfinite(norms)).sum())}",
        sparkline(norms[-min(WIDTH, out.width) :], BARS if out.encoding.startswith("utf") else PLAIN),
    ]
    return Text("\n".join(lines))


def sparkline(norms: np.ndarray, bars: str = BARS) -> str:
    """Return one character for each norm, by its logarithm; "!" for one that is not finite."""
    usual = norms[np.isfinite(norms) & (norms > 0)]
    if not usual.size:
        return "".join(bars[0] if norm == 0 else NOT_FINITE for norm in norms)
    low, high = np.log(usual.min()), np.log(usual.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        heights = (np.log(norms) - low) / max(high - low, 1e-9) * (len(bars) - 1)
    return "".join(
        bars[int(np.clip(np.round(height), 0, len(bars) - 1))] if np.isfinite(norm) else NOT_FINITE
        for norm, height in zip(norms, heights, strict=True)
    )


def _median(norms: np.ndarray) -> float:
    finite = norms[np.isfinite(norms)]
    return float(np.median(finite)) if finite.size else float("nan")
