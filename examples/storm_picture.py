"""The picture that train_lm.py draws of its runs."""

import textwrap

import matplotlib as mpl
import numpy as np
from storm_report import CLIP_LIMIT, NORM, SKIP_LIMIT, SKIPPED, by_label, clipped, happens, validation_text

mpl.use("Agg")
import matplotlib.pyplot as plt

# One style per run, in their order, in colours of Okabe and Ito, which colour-blind people can tell apart.
STYLES = (
    {"color": "0.75", "linewidth": 7},  # a broad line, so that one sees which runs follow it
    {"color": "#D55E00", "linewidth": 1.8},
    {"color": "#009E73", "linewidth": 2.2},
    {"color": "#0072B2", "linewidth": 2.2, "linestyle": (0, (3, 2))},
)
SMOOTH = 10  # steps that each point of a training loss averages


def draw(runs, title, caption, path):
    """Draw the validation losses as bars, the training losses, and the gradient norms of the last run."""
    groups = by_label(runs)
    figure, panels = plt.subplots(3, 1, figsize=(10, 10.5), height_ratios=(1.1, 2.6, 2.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, hspace=0.03)
    figure.suptitle(title, fontsize=17, fontweight="bold")
    figure.supxlabel(caption, fontsize=10)
    draw_bars(panels[0], groups)
    draw_losses(panels[1], groups)
    draw_norms(panels[2], list(groups.values())[-1])
    for panel in panels[1:]:
        shade_faults(panel, runs[-1].faults, groups)
    if panels[1].get_legend_handles_labels()[0]:
        # The faults are the same in both panels: one legend is enough.
        panels[1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_bars(panel, groups):
    panel.set_title("Validation loss at the end (nats per character, lower is better)", loc="left", fontsize=12)
    for place, ((label, group), style) in enumerate(zip(groups.items(), STYLES, strict=True)):
        losses = [run.validation for run in group if run.validation is not None]
        finite = bool(losses) and np.all(np.isfinite(losses))
        if finite:
            panel.barh(place, np.mean(losses), color=style["color"], height=0.72)
        if finite and len(losses) > 1:
            panel.plot(losses, [place] * len(losses), "k.", markersize=5)
        # Beside its bar, a run's name needs no margin, and the panels can be aligned.
        text = textwrap.indent(textwrap.fill(f"{validation_text(group)}   {label}", 66), "  ")
        color = "black" if finite else style["color"]
        panel.text(max(losses) if finite else 0, place, text, color=color, va="center", fontsize=11)
    width = max(panel.get_xlim()[1], 1e-3) * 1.9
    panel.set(xticks=[], yticks=[], xlim=(0, width), ylim=(len(groups) - 0.5, -0.5))
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def draw_losses(panel, groups):
    panel.set_title(f"Training loss (mean of {SMOOTH} steps)", loc="left", fontsize=12)
    panel.set(ylabel="nats per character")
    for group, style in zip(groups.values(), STYLES, strict=True):
        curves = [smoothed(run.column("loss")) for run in group if len(run.steps) >= SMOOTH]
        if curves:
            # Of an interrupted demo, only the seeds that came furthest.
            shared = np.stack([curve for curve in curves if len(curve) == max(map(len, curves))])
            steps = SMOOTH + np.arange(shared.shape[1])
            panel.plot(steps, shared.mean(axis=0), **style)
            if len(curves) > 1:
                panel.fill_between(steps, shared.min(axis=0), shared.max(axis=0), color=style["color"], alpha=0.2)
    clean = [smoothed(run.column("loss")) for run in next(iter(groups.values())) if len(run.steps) >= SMOOTH]
    low, high = (of(np.concatenate(clean)) if clean else np.nan for of in (np.min, np.max))
    if panel.get_ylim()[1] > 2 * high:
        # A loss that explodes leaves the panel, and the others stay readable.
        panel.set_ylim(0.9 * low, 2 * high)


def smoothed(loss):
    return np.lib.stride_tricks.sliding_window_view(loss.astype(np.float64), SMOOTH).mean(axis=1)


def draw_norms(panel, group):
    run = group[0]
    seed = f", seed {run.seed}" if len(group) > 1 else ""
    quantity = "update" if run.rule.place == "updates" else "gradient"
    title = textwrap.fill(f"Norm of the {quantity} in the run “{run.label}”{seed}", 90)
    panel.set_title(title, loc="left", fontsize=12)
    panel.set(xlabel="step", ylabel=f"{quantity} norm")
    if not run.steps:
        return
    norms, steps = drawable(run.column(*NORM)), np.arange(1, len(run.steps) + 1)
    many = run.column("clip/rule/norm_max") is not None
    if np.isfinite(norms).any():
        panel.set_yscale("log")
    panel.plot(steps, norms, color="0.6", linewidth=1, label="largest norm of a block" if many else "norm")
    for name, names, style in (("clip limit", CLIP_LIMIT, "-"), ("skip limit", SKIP_LIMIT, ":")):
        limits = run.column(*names)
        if limits is not None and np.isfinite(drawable(limits)).any():
            label = f"{name}{', largest of a block' if many else ''}"
            panel.plot(steps, drawable(limits), linestyle=style, color="#0072B2", linewidth=1.6, zorder=4, label=label)
    skipped = run.column(*SKIPPED)
    # skip_spikes and protect are given the loss too.
    reason = ", for the norm or the loss" if run.column(*SKIP_LIMIT) is not None else ""
    for name, at, style in (
        ("clipped", clipped(run), {"color": "#E69F00", "marker": "o", "s": 14}),
        (f"skipped{reason}", None if skipped is None else happens(skipped), {"color": "black", "marker": "x", "s": 36}),
    ):
        if at is not None and at.any():
            label = f"{name} ({at.sum()} step{'s' if at.sum() > 1 else ''})"
            panel.scatter(steps[at], norms[at], zorder=5, label=label, **style)
    panel.legend(loc="upper left")


def drawable(norms):
    return np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)


def shade_faults(panel, faults, groups):
    measured = max(len(run.steps) for group in groups.values() for run in group)
    kinds = {
        "gradient 1000 times too large": (faults.scale > 1, "#CC79A7"),
        "random targets": (faults.random_targets, "#E8C600"),
        "gradient NaN": (np.isnan(faults.scale), "black"),
    }
    margin = measured / 250  # a single step of a thousand would be too thin to see
    for label, (at, color) in kinds.items():
        steps = np.flatnonzero(at[:measured]) + 1
        spans = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1) if steps.size else []
        for span in spans:
            own = label if span is spans[0] else "_"  # the legend leaves out names that begin so
            panel.axvspan(span[0] - margin, span[-1] + margin, color=color, alpha=0.35, linewidth=0, label=own)
    panel.set_xlim(-measured / 50, measured * 1.02)
    panel.grid(alpha=0.3)
