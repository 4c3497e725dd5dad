"""What each rule does to the gradient norms of six real trainings, all of them together.

    python examples/evidence/records.py --records ../shared/records

RECORDS is a folder of CSV files, one for each training, with the columns step, loss, grad_norm and learning_rate. The
figures are those of `novoclip.replay`. docs/replay_records.md has more of them, with what is recommended for each
record. A replay has no randomness, so that there are no seeds, and the steps are those of the records.
"""

import argparse
from pathlib import Path
import re

from matplotlib.figure import Figure
import numpy as np
from shared import DOCS, save, table

import novoclip

FACTORS = (1.0, 1.5, 2.0, 3.0)  # of the fixed thresholds, which are multiples of a quantile of the record's calm norms


def names_of(outcome, quantile):
    """Return what a rule is called for all records.

    A fixed threshold is called by its factor, since it is a multiple of the 99 % quantile of the record's own calm
    norms; 1.0 is also tried as such.
    """
    fixed = re.fullmatch(r"novoclip\.clip_by_global_norm\((.*)\)", outcome.line)
    if not fixed:
        return [outcome.line.removeprefix("novoclip.")]
    ratio = float(fixed[1]) / quantile
    names = ["clip_by_global_norm(1.0)"] if float(fixed[1]) == 1.0 else []
    return names + [f"clip_by_global_norm({factor:g} q)" for factor in FACTORS if abs(ratio / factor - 1) < 0.1]


def outcomes_of(path):
    """Return the Outcomes of a record by the rules' names."""
    answer = novoclip.replay(path)
    calm = answer.record.norms[answer.rows.calm]
    quantile = np.quantile(calm[calm > 0], 0.99)
    return {name: each for each in answer.outcomes for name in names_of(each, quantile)}


def summary(rule, outcomes):
    """Return the row of a rule: the sums over the records.

    Args:
      rule: the rule's name.
      outcomes: its Outcomes.
    """
    return {
        "rule": f"`{rule}`",
        "spikes caught": f"{sum(each.caught for each in outcomes)}/{sum(each.spikes for each in outcomes)}",
        "calm touched": f"{100 * touched(outcomes):.2f} %",
        "most of any record": f"{100 * max(each.touching for each in outcomes):.2f} %",
        "skipped": sum(each.skipped for each in outcomes),
    }


def by_record(rule, answers):
    """Return the row of a rule with one cell for each record: spikes caught, and calm rows touched."""
    cells = {name: answer.get(rule) for name, answer in answers.items()}
    return {"rule": f"`{rule}`"} | {
        name.split("_")[0]: f"{each.caught}/{each.spikes}, {100 * each.touching:.2f} %" if each else "-"
        for name, each in cells.items()
    }


def caught(outcomes):
    """Return the fraction of all spikes that were caught."""
    return sum(each.caught for each in outcomes) / max(sum(each.spikes for each in outcomes), 1)


def touched(outcomes):
    """Return the fraction of all calm rows that were touched."""
    return sum(each.touched for each in outcomes) / max(sum(each.calm for each in outcomes), 1)


def draw(together):
    """Draw the spikes caught over the calm rows touched: a marker for each family of rules, a point for each rule."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panel = figure.subplots()
    families = list(dict.fromkeys(rule.split("(")[0] for rule in together))
    for family, marker in zip(families, "os^vDP*X", strict=False):
        color, label = f"C{families.index(family)}", family
        for rule, outcomes in together.items():
            name, _, arguments = rule.rstrip(")").partition("(")
            if name == family:
                place = (100 * touched(outcomes), 100 * caught(outcomes))
                panel.plot(*place, marker, color=color, label=label, markersize=8, alpha=0.7)
                label = "_"  # the legend leaves out names that begin so
                shown = arguments.split(",")[0].removeprefix("optimizer")
                panel.annotate(shown, place, xytext=(6, 4), textcoords="offset points", fontsize=8, color=color)
    panel.set(xscale="symlog", xlabel="calm rows touched (%)", ylabel="spikes caught (%)", ylim=(-5, 108))
    panel.set_xlim(-0.1, 150)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    return figure


def main(argv=None):
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=Path, required=True, metavar="DIR", help="a folder of CSV files")
    arguments.add_argument("--only", nargs="+", metavar="NAME", help="the names of some of the files, without .csv")
    arguments.add_argument("--out", type=Path, default=DOCS, metavar="DIR", help="folder of the table and the picture")
    options = arguments.parse_args(argv)
    paths = sorted(path for path in options.records.glob("*.csv") if not options.only or path.stem in options.only)
    if not paths:
        arguments.error(f"{options.records} holds no such CSV file; give the folder of the records, and their names")
    answers = {path.stem: outcomes_of(path) for path in paths}
    rules = list(dict.fromkeys(rule for answer in answers.values() for rule in answer))
    together = {rule: [answer[rule] for answer in answers.values() if rule in answer] for rule in rules}
    rules.sort(key=lambda rule: (-caught(together[rule]), touched(together[rule])))
    text = (
        f"Sums over {len(paths)} records, in the order of the spikes caught. The thresholds marked with q are "
        "multiples of q, the 99 % quantile of the record's own calm norms, and so were chosen in hindsight.\n\n"
        f"{table([summary(rule, together[rule]) for rule in rules])}\n\n"
        f"For each record, spikes caught and calm rows touched:\n\n"
        f"{table([by_record(rule, answers) for rule in rules])}"
    )
    save("records", text, draw(together), options.out)


if __name__ == "__main__":
    main()
