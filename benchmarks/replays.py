"""What `novoclip.replay` recommends for recorded trainings: the tables of docs/replay_records.md.

    python benchmarks/replays.py RECORDS [--want spikes steady]

RECORDS is a folder of CSV files, one for each training, with the columns step, loss, grad_norm and learning_rate.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent))
import novoclip
from novoclip.replays.text import HEADINGS, cells


def main() -> None:
    """Print the recommendation for each record and wish, then what every rule does to each record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="a folder of CSV files")
    parser.add_argument("--want", nargs="+", default=["spikes", "steady"])
    options = parser.parse_args()
    answers = {
        path.stem: {want: novoclip.replay(path, want=want) for want in options.want}
        for path in sorted(options.records.glob("*.csv"))
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
        answer = by_want[options.want[0]]
        print(f"\n### {name}\n\n| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|")
        for each in answer.outcomes:
            line, *figures = cells(each)
            print(f"| `{line}` | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
