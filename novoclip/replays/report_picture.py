"""The norms, the limit of the recommended rule and the spikes, as a picture by matplotlib."""

from __future__ import annotations

from matplotlib.figure import Figure
import numpy as np

from novoclip.replays.replay import Replay
from novoclip.replays.report_rows import positive

SIZE = (8.0, 4.0)  # inches
DPI = 250
# Colours of Okabe and Ito, which readers without colour vision tell apart.
GREY, BLUE, RED, BLACK = "#999999", "#0072b2", "#d55e00", "#000000"


def picture(answer: Replay) -> Figure:
    """Return the picture."""
    record, rows, best = answer.record, answer.rows, answer.recommended
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(record.steps, positive(record.norms), color=GREY, linewidth=0.7, label="gradient norm")
    axes.plot(record.steps, positive(rows.level), color=BLACK, linewidth=0.8, linestyle="--", label="level")
    if best is not None:
        limits = positive(best.course.limits)
        if np.isfinite(limits).any():
            axes.plot(record.steps, limits, color=BLUE, linewidth=1.0, label=f"limit of {best.line}")
    spikes = rows.spike
    axes.plot(
        record.steps[spikes], record.norms[spikes], color=RED, marker="v", markersize=4, linestyle="", label="spikes"
    )
    if np.isfinite(positive(record.norms)).any():
        axes.set_yscale("log")
    # A name is text: a dollar sign in it begins no formula.
    axes.set_title(record.name, fontsize=10, parse_math=False)
    axes.set_xlabel("step")
    axes.set_ylabel("norm")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(fontsize=7, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
