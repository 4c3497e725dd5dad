"""The pictures of the gallery, as SVG with the same bytes each time."""

import io
from pathlib import Path
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
import numpy as np

from benchmarks.gallery_card import Card
from benchmarks.gallery_run import PROBES, Shown, record, run
from novoclip.catalog import Entry

# Legible on white and on black: the pictures have no background.
GRAY, BLUE, ORANGE = "#808080", "#3d85d8", "#d9772b"
STYLE = {
    "svg.hashsalt": "novoclip",
    "svg.fonttype": "none",
    "font.size": 8,
    "font.family": "sans-serif",
    "text.color": GRAY,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": GRAY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "legend.frameon": False,
}
BOTTOM = {"response": 1e-3, "record": 5e-3}  # where 0 is drawn


def draw(entry: Entry, card: Card) -> str:
    """Return the picture of a card: the response and the record, or of an optimizer the record alone."""
    line = card.run or card.line
    shown = run(entry, line, card.weight)
    return svg(shown, rate_of(line) if entry.kind == "optimizer" else None)


def rate_of(line: str) -> float:
    """Return the learning rate in a line: its first number."""
    return float(re.findall(r"\(([\d.e-]+)", line)[0])


def svg(shown: Shown, rate: float | None = None) -> str:
    """Return the SVG, without a date, its coordinates rounded; given a learning rate, that of an optimizer."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.3))
        if rate is None:
            left = figure.add_axes((0.08, 0.18, 0.24, 0.70))
            _response(left, shown)
            _record(figure.add_axes((0.40, 0.18, 0.58, 0.70)), shown.record, ("before", "after"))
        else:
            right = figure.add_axes((0.08, 0.18, 0.90, 0.70))
            _record(right, shown.record / rate, ("gradient", "step / learning rate"))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", file.getvalue())
    text = re.sub(r"font-family: [^;]*", "font-family: sans-serif", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def write(folder: Path, entry: Entry, card: Card) -> None:
    """Draw a card's picture into a folder."""
    (folder / f"{entry.name}.svg").write_text(draw(entry, card), encoding="utf-8")


def _response(axes: Axes, found: Shown) -> None:
    bottom = BOTTOM["response"]
    axes.plot(PROBES, PROBES, ":", color=GRAY, linewidth=1)
    axes.plot(PROBES, np.maximum(found.warm, bottom), color=ORANGE, linewidth=1.8, label="warm")
    axes.plot(PROBES, np.maximum(found.fresh, bottom), color=BLUE, linewidth=1.4, dashes=(4, 4), label="fresh")
    axes.set(xscale="log", yscale="log", xlim=(1e-2, 1e3), ylim=(bottom, 1e3))
    axes.set(xlabel="norm of the gradient", ylabel="norm of the result")
    _ticks(axes.xaxis, (0.01, 1, 100))
    _ticks(axes.yaxis, (0.001, 0.1, 10, 1000))
    axes.legend(loc="upper left", borderpad=0, handlelength=2.2)


def _record(axes: Axes, after: np.ndarray, labels: tuple[str, str]) -> None:
    before, rows, bottom = record(), np.arange(after.size), BOTTOM["record"]
    axes.plot(rows, before, color=GRAY, linewidth=0.8, label=labels[0])
    axes.plot(rows, np.where(after > 0, after, np.nan), color=ORANGE, linewidth=1.2, label=labels[1])
    zero, bad = rows[after == 0], rows[~np.isfinite(before)]
    if zero.size:
        marks = {"color": ORANGE, "markersize": 3.5, "clip_on": False, "label": "0"}
        axes.plot(zero, np.full(zero.size, bottom), "v", **marks)
    axes.plot(bad, np.full(bad.size, 100.0), "x", color=GRAY, markersize=4, clip_on=False, label="NaN")
    axes.set(yscale="log", xlim=(0, after.size), ylim=(bottom, 100), xlabel="step", ylabel="norm")
    _ticks(axes.yaxis, (0.01, 0.1, 1, 10, 100))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, handlelength=1.2, columnspacing=1.2)


def _ticks(axis: Axis, numbers: tuple[float, ...]) -> None:
    axis.set_major_locator(FixedLocator(numbers))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
