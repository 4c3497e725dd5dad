"""What `novoclip.replay` recommends for recorded trainings, and for made records: the tables of docs/replay_records.md.

    python benchmarks/replays.py RECORDS [--want spikes steady]
    python benchmarks/replays.py --made [--seed 0]

RECORDS is a folder of CSV files, one for each training, with the columns step, loss, grad_norm and learning_rate. The
made records are those of replays_made.py, in which the spikes are known, since they were planted.
"""

import argparse
from pathlib import Path
import sys

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.replays_made import HARMLESS, Made, made
import novoclip
from novoclip.records import RecordError
from novoclip.replays.outcome import Outcome
from novoclip.replays.text import HEADINGS, cells

CAUGHT, TOUCHED = 0.95, 0.01  # the goal


def main() -> None:
    """Print the table of the real records, or that of the made ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", help="a folder of CSV files")
    parser.add_argument("--want", nargs="+", default=["spikes", "steady"])
    parser.add_argument("--made", action="store_true", help="made records in place of a folder")
    parser.add_argument("--seed", type=int, default=0, help="of the made records (%(default)s)")
    options = parser.parse_args()
    if options.made:
        of_made(made(options.seed))
    elif options.records:
        of_trainings(options.records, options.want)
    else:
        parser.error("name a folder of records, or --made")


def of_made(records: list[Made]) -> None:
    """Print for each made record what is recommended, and what it does to the rows as they were planted."""
    counts = dict.fromkeys(("met", "warned", "missed"), 0)
    print("| record | recommended | planted spikes caught | other rows touched | goal | warning |")
    print("|---|---|---|---|---|---|")
    for each in records:
        try:
            answer = novoclip.replay({"grad_norm": each.norms, "step": each.steps})
        except RecordError as error:
            counts["warned"] += 1
            print(f"| {each.name} | - | - | - | warned | {str(error).partition(': ')[2]} |", flush=True)
            continue
        best, figures, goal = answer.recommended, "- | -", "warned"
        if best is not None:
            caught, touched = truth(best, each)
            figures = f"{caught}/{each.spikes.sum()} | {100 * touched:.2f} %"
            met = caught >= CAUGHT * each.spikes.sum() and touched <= TOUCHED
            goal = "met" if met else "warned" if answer.warnings else "missed"
        counts[goal] += 1
        line = f"`{best.line}`" if best else "nothing"
        print(f"| {each.name} | {line} | {figures} | {goal} | {'; '.join(answer.warnings)} |", flush=True)
    print(f"\nOf {len(records)} records: {', '.join(f'{goal} {count}' for goal, count in counts.items())}.")


def truth(best: Outcome, each: Made) -> tuple[int, float]:
    """Return how many planted spikes a rule caught, and the fraction of the other rows that it touched."""
    after = best.course.after
    caught = each.spikes & ((after < HARMLESS * each.levels) | best.course.skipped)
    touched = each.calm & (after < 0.999 * each.norms)
    return int(caught.sum()), float(touched.sum() / max(np.sum(each.calm), 1))


def of_trainings(folder: Path, wants: list[str]) -> None:
    """Print the recommendation for each record and wish, then what every rule does to each record."""
    answers = {
        path.stem: {want: novoclip.replay(path, want=want) for want in wants} for path in sorted(folder.glob("*.csv"))
    }
    print("| record | wish | recommended | spikes caught | calm touched | runner-up |\n|---|---|---|---|---|---|")
    for name, by_want in answers.items():
        for want, answer in by_want.items():
            best, second = answer.recommended, answer.runner_up
            if best is None:
                print(f"| {name} | {want} | nothing: {'; '.join(answer.warnings)} | | | |")
                continue
            figures = cells(best)[1:3]
            print(
                f"| {name} | {want} | `{best.line}` | {' | '.join(figures)} | {f'`{second.line}`' if second else '-'} |"
            )
    for name, by_want in answers.items():
        answer = by_want[wants[0]]
        print(f"\n## {name}\n\n| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|")
        for each in answer.outcomes:
            line, *figures = cells(each)
            print(f"| `{line}` | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
