"""What train_lm.py reports of its runs: a line of statistics, a table, and a CSV file."""

import csv

import numpy as np
from rich.table import Table

# In the optimizer's chain the rule stands between two records. A rule with many blocks reports the largest;
# one per element keeps no norms, so that the first record stands in for it.
NORM = ("clip/rule/norm", "clip/rule/norm_max", "spikes/rule/norm", "clip/seen/norm")
CLIP_LIMIT = ("clip/rule/limit", "clip/rule/limit_max", "spikes/rule/clip_limit")
SKIP_LIMIT = ("spikes/rule/limit",)
CLIPPED = ("clip/rule/clipped", "spikes/rule/clipped")
SKIPPED = ("spikes/rule/skipped", "guard/rule/nonfinite")
SEEN = ("clip/seen/norm", "clip/rule/norm")
LET_THROUGH = ("clip/passed/norm", "clip/rule/passed/norm")

HEADER = ("run", "seed", "step", "gradient_times", "random_targets", "loss", "norm_seen", "norm_let_through")
HEADER += ("rule_norm", "clip_limit", "skip_limit", "clipped_so_far", "skipped_so_far")


def by_label(runs):
    """Return the runs with each label, one for each seed."""
    return {label: [run for run in runs if run.label == label] for label in dict.fromkeys(run.label for run in runs)}


def happens(counter):
    """Return at which steps a counter rose."""
    return np.diff(counter, prepend=0) > 0


def let_through(run):
    """Return the norm that the optimizer was given at each step, 0 where the step was skipped."""
    norms, skipped = run.column(*LET_THROUGH), run.column(*SKIPPED)
    return norms if norms is None or skipped is None else np.where(happens(skipped), 0, norms)


def clipped(run):
    """Return at which steps the rule clipped, or None if it does not count them and does not act on gradients."""
    counter = run.column(*CLIPPED)
    if counter is not None:
        return happens(counter)
    seen, passed = run.column(*SEEN), let_through(run)
    return None if seen is None or passed is None else (passed > 0) & (passed < seen * (1 - 1e-5))


def pretty(norm):
    return f"{norm:,.0f}" if 100 <= norm < 1e6 else f"{norm:.3g}"


def statistics_line(run, step, width, *, several):
    statistics = run.steps[step - 1]
    seed = f"  seed {run.seed}" if several else ""
    line = f"{run.label:<{width}}{seed}  step {step:>5}  loss {statistics['loss']:.3f}"
    for title, names, style in (
        ("norm", NORM, pretty),
        ("limit", CLIP_LIMIT + SKIP_LIMIT, pretty),
        ("clipped", CLIPPED, str),
        ("skipped", SKIPPED, str),
    ):
        value = next((statistics[name] for name in names if name in statistics), None)
        line += "" if value is None else f"  {title} {style(value)}"
    return line


def result_table(runs, caption):
    title = "Validation loss at the end, in nats per character"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("run", overflow="fold")
    for heading in ("validation\nloss", "steps\nclipped", "steps\nskipped", "largest\nnorm let\nthrough"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, group in by_label(runs).items():
        begun = [run for run in group if run.steps]
        table.add_row(
            label,
            validation_text(group, "{}\n{} to {}"),
            mean_count([clipped(run) for run in begun]),
            mean_count([None if (counter := run.column(*SKIPPED)) is None else happens(counter) for run in begun]),
            largest([let_through(run) for run in begun]),
        )
    return table


def validation_text(group, form="{} ({} to {})"):
    """Return the mean over the seeds; if there are several, also their range, in that form."""
    losses = [run.validation for run in group if run.validation is not None]
    if not losses:
        return "not measured"
    if not np.all(np.isfinite(losses)):
        return "nan (lost)"
    mean = f"{np.mean(losses):.3f}"
    return mean if len(losses) == 1 else form.format(mean, f"{min(losses):.2f}", f"{max(losses):.2f}")


def mean_count(columns):
    if not columns or any(column is None for column in columns):
        return "-"
    return f"{np.mean([column.sum() for column in columns]):.0f}"


def largest(columns):
    if not columns or any(column is None for column in columns):
        return "-"
    norms = np.concatenate(columns)
    finite = norms[np.isfinite(norms)]
    return pretty(finite.max()) if finite.size else "none finite"


def write_history(runs, path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for run in (run for run in runs if run.steps):
            measured = [run.column("loss"), run.column(*SEEN), let_through(run)]
            measured += [run.column(*names) for names in (NORM, CLIP_LIMIT, SKIP_LIMIT, CLIPPED, SKIPPED)]
            for i in range(len(run.steps)):
                faults = [run.faults.scale[i], int(run.faults.random_targets[i])]
                cells = ["" if column is None else column[i] for column in measured]
                writer.writerow([run.label, run.seed, i + 1, *faults, *cells])
