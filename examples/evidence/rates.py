"""Tables and pictures of how the loss depends on the learning rate, and how wide the range of good rates is."""

from matplotlib.figure import Figure
import numpy as np
from shared import mean_and_interval, mean_cell

DISTANCE = 0.1  # nats
MEANING = (
    "Values are means over the seeds with 95 % intervals. "
    f"Near means at most {DISTANCE} nats above the best; the decades are counted in halves, one for each such rate. "
    "A training diverged if its held-out loss ended not finite or above that of the initial parameters. "
    "The largest gradient norm is before clipping, in all trainings of the row."
)
# The colors of Okabe and Ito, which color-blind people can tell apart.
COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = "osD^vPX*"


def decades(losses, target):
    """Return how many decades of rates around the best have a loss of at most `target`.

    The rates are half a decade apart, and each stands for half a decade: one good rate gives 0.5, none 0.

    Args:
      losses: one loss for each rate, in order.
      target: the largest loss that counts as good.
    """
    good = losses <= target
    best = np.nanargmin(np.where(good, losses, np.inf))
    if not good[best]:
        return 0.0
    bad = np.flatnonzero(~good)
    below, above = bad[bad < best], bad[bad > best]
    first = below[-1] + 1 if below.size else 0
    end = above[0] if above.size else len(losses)
    return (end - first) / 2


def capped(outcome):
    """Return the final losses, with the loss before training in the place of a diverged training's."""
    return np.where(outcome.diverged, outcome.first_loss, outcome.final["loss"])


def summaries(outcomes, rates, about):
    """Return one row for each Outcome: the best loss, its rate, and the decades of good rates.

    Args:
      outcomes: Outcomes by name.
      rates: the learning rates.
      about: by name, a dict of the cells that the row starts with.
    """
    losses = {name: capped(outcome) for name, outcome in outcomes.items()}
    overall = min(loss.mean(axis=0).min() for loss in losses.values())
    rows = []
    for name, loss in losses.items():
        outcome, best = outcomes[name], loss.mean(axis=0).argmin()
        rows.append(
            about[name]
            | {"best loss": mean_cell(loss[:, best])}
            | {key: mean_cell(value[:, best]) for key, value in outcome.final.items() if key != "loss"}
            | {
                "at rate": f"{rates[best]:.2g}",
                "decades near its best": mean_cell([decades(each, each.min() + DISTANCE) for each in loss], 1),
                "decades near the best of all": mean_cell([decades(each, overall + DISTANCE) for each in loss], 1),
                "diverged": f"{outcome.diverged.sum()} of {loss.size}",
                "largest gradient norm": f"{outcome.largest_norm.max():.2g}",
            }
        )
    return rows


def losses_by_rate(outcomes, rates, about):
    """Return one row for each Outcome with the final loss at every rate, or how many trainings diverged."""
    rows = []
    for name, outcome in outcomes.items():
        diverged = outcome.diverged.sum(axis=0)
        cells = [
            f"{count} of {len(outcome.diverged)} diverged" if count else mean_cell(loss, 2)
            for count, loss in zip(diverged, outcome.final["loss"].T, strict=True)
        ]
        rows.append(about[name] | dict(zip((f"{rate:.2g}" for rate in rates), cells, strict=True)))
    return rows


def figure_of(panels, rates, *, columns):
    """Return a Figure of the loss over the rate, one line for each Outcome, with its 95 % interval.

    Args:
      panels: Outcomes by label, by panel title.
      rates: the learning rates of each panel, by panel title.
      columns: how many panels stand side by side.
    """
    many = any(len(outcomes) > 4 for outcomes in panels.values())  # then the legend stands beside the panel
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=((8 if many else 5.5) * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for (title, outcomes), axis in zip(panels.items(), axes, strict=True):
        for (label, outcome), color, marker in zip(outcomes.items(), COLORS, MARKERS, strict=False):
            mean, half = mean_and_interval(capped(outcome))
            bars = {"yerr": half, "elinewidth": 0.7, "capsize": 2} if many else {}
            axis.errorbar(rates[title], mean, color=color, marker=marker, markersize=4, label=label, **bars)
            if not many:
                axis.fill_between(rates[title], mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        axis.set(xscale="log", title=title, xlabel="learning rate", ylabel="held-out loss (nats)")
        shown = np.concatenate([capped(outcome).ravel() for outcome in outcomes.values()])
        axis.set_ylim(0.95 * shown.min(), 1.05 * shown.max())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}))
    return figure
