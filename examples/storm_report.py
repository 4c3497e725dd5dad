"""What train_lm.py shows of its trainings: a line of statistics, a table, a CSV file and a picture."""

import csv

import matplotlib as mpl
import numpy as np
from rich.table import Table

mpl.use("Agg")
import matplotlib.pyplot as plt

# In the optimizer's chain the rule stands between two records. A rule with many blocks reports the largest;
# one per element keeps no norms, so that the first record stands in for it.
NORM = ("clip/rule/norm", "clip/rule/norm_max", "spikes/rule/norm", "clip/seen/norm")
LIMIT = ("clip/rule/limit", "clip/rule/limit_max", "spikes/rule/limit")
CLIPPED = ("clip/rule/clipped", "spikes/rule/skipped", "guard/rule/nonfinite")
SEEN, LET_THROUGH = ("clip/seen/norm",), ("clip/passed/norm",)

HEADER = ("run", "step", "gradient_times", "random_targets", "loss", "norm_seen", "norm_let_through")
HEADER += ("rule_norm", "rule_limit", "rule_clipped_so_far")


def pretty(norm):
    return f"{norm:,.0f}" if norm >= 100 else f"{norm:.3g}"


def statistics_line(run, i, width):
    line = (
        f"{run.label:<{width}}  step {i + 1:>5}  loss {run.column('loss')[i]:.3f}  norm {pretty(run.column(*NORM)[i])}"
    )
    if (limits := run.column(*LIMIT)) is not None:
        line += f"  limit {pretty(limits[i])}"
    if (clipped := run.column(*CLIPPED)) is not None:
        line += f"  clipped {clipped[i]} so far"
    return line


def result_table(runs):
    table = Table(
        "optimizer", title="Validation loss in nats a character, and what the storm did", title_justify="left"
    )
    for heading in ("clean", "stormed", "steps\nclipped", "largest norm\nseen", "largest norm\nlet through"):
        table.add_column(heading, justify="right")
    for clean in (run for run in runs if not run.stormed):
        stormed = next(run for run in runs if run.stormed and run.name == clean.name)
        row = [clean.name, validation_cell(clean), validation_cell(stormed)]
        if stormed.chunks:
            clipped = stormed.column(*CLIPPED)
            # A rule per element may not count its steps; Adam alone has nothing to count.
            row.append(str(clipped[-1]) if clipped is not None else "not counted" if has_rule(stormed) else "-")
            row += [largest(stormed.column(*SEEN)), largest(stormed.column(*LET_THROUGH))]
        table.add_row(*row)
    return table


def has_rule(run):
    return any(name.split("/")[1] == "rule" and not name.startswith("optimizer/") for name in run.chunks[0])


def validation_cell(run):
    if run.validation is None:
        return "not measured"
    return f"{run.validation:.3f}" if np.isfinite(run.validation) else f"{run.validation} (did not survive)"


def largest(norms):
    if norms is None:
        return "-"
    finite = norms[np.isfinite(norms)]
    return pretty(finite.max()) if finite.size else "none finite"


def write_history(runs, path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for run in (run for run in runs if run.chunks):
            columns = [run.column(*names) for names in (["loss"], SEEN, LET_THROUGH, NORM, LIMIT, CLIPPED)]
            for i in range(len(columns[0])):
                weather = [run.weather.scale[i], int(run.weather.corrupt[i])]
                measured = ["" if column is None else column[i] for column in columns]
                writer.writerow([run.label, i + 1, *weather, *measured])


def draw(runs, rule_text, path):
    """Draw the stormed runs: their losses above, and what the rule saw and allowed below."""
    alone, ruled = (run for run in runs if run.stormed)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 8), sharex=True, layout="constrained")
    figure.suptitle(f"A gradient storm, met by {alone.name} and by {ruled.name}\n{rule_text}", fontsize=13)
    draw_loss(top, alone, color="tab:orange", linewidth=2)  # wider, to be seen where the two are the same
    draw_loss(top, ruled, color="tab:blue", linewidth=1)
    draw_norms(bottom, ruled)
    measured = max(len(run.column("loss")) for run in (alone, ruled) if run.chunks)
    top.set(xlim=(-measured / 50, measured * 1.02), ylabel="training loss\n(nats a character)")
    bottom.set(xlabel="step", ylabel=f"norm of the gradient\n({ruled.name})")
    for panel in (top, bottom):
        shade_storm(panel, ruled.weather)
        # Above the panel: storms leave no corner free.
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_loss(panel, run, **style):
    if run.chunks:
        loss = run.column("loss")
        lost = np.flatnonzero(~np.isfinite(loss))
        label = f"{run.name} ({loss[lost[0]]} from step {lost[0] + 1})" if lost.size else run.name
        panel.plot(np.arange(1, len(loss) + 1), loss, label=label, **style)


def draw_norms(panel, run):
    if not run.chunks:
        return
    norms, limits, clipped = run.column(*NORM), run.column(*LIMIT), run.column(*CLIPPED)
    steps = np.arange(1, len(norms) + 1)
    many = run.column("clip/rule/norm_max") is not None
    if np.isfinite(drawable(norms)).any():
        panel.set_yscale("log")
    panel.plot(steps, drawable(norms), color="0.6", linewidth=1, label="norm of the largest block" if many else "norm")
    if limits is not None:
        label = "largest limit of a block" if many else "limit"
        panel.plot(steps, drawable(limits), color="tab:blue", linewidth=1.5, zorder=4, label=label)
    if clipped is not None:
        at = np.diff(clipped, prepend=0) > 0
        label = f"clipped ({at.sum()} steps)"
        panel.scatter(steps[at], drawable(norms)[at], color="tab:red", s=6, zorder=3, label=label)


def drawable(norms):
    return np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)


def shade_storm(panel, weather):
    kinds = {
        "gradient 1000 times too large": (weather.scale > 1, "tab:purple"),
        "random targets": (weather.corrupt, "tab:olive"),
        "NaN gradient": (np.isnan(weather.scale), "black"),
    }
    margin = len(weather.step) / 250  # a single step of a thousand would be too thin to see
    for label, (happens, color) in kinds.items():
        steps = np.flatnonzero(happens) + 1
        groups = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1) if steps.size else []
        for count, group in enumerate(groups):
            own = "_" if count else label  # the legend leaves out names that begin so
            panel.axvspan(group[0] - margin, group[-1] + margin, color=color, alpha=0.3, linewidth=0, label=own)
