"""The answer of a replay in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from novoclip.commands.terminal import console
from novoclip.replays import Replay
from novoclip.replays.report_words import read_summary
from novoclip.replays.text import HEADINGS, cells, sentences

WIDE = 150  # columns of a terminal that has room for the whole table
NARROW = 4  # headings that are shown in one that has not


def show(answer: Replay, written: Sequence[str]) -> None:
    """Print what was read, the rules in order, the recommendation, and which files were written."""
    out = console()
    # Names and notes come from a file: as Text, and without control characters, they cannot change the terminal.
    out.print(Text.assemble((_clean(answer.record.name), "bold"), ": ", read_summary(answer)))
    for note in answer.record.notes:
        out.print(Text(f"- {_clean(note)}"))
    narrow = out.width < WIDE
    out.print(_table(answer, NARROW if narrow else len(HEADINGS)))
    if narrow:
        out.print(Text("A wider terminal, --json and --report show more figures.", "dim"))
    for text in _answer(answer):
        # A line of Python is for pasting: no break in it, even where it is wider than the terminal.
        out.print(text, soft_wrap=True)
    for path in written:
        out.print(Text(f"Written: {path}"), soft_wrap=True)


def _table(answer: Replay, columns: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(HEADINGS[0], overflow="fold")
    for heading in HEADINGS[1:columns]:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in answer.outcomes:
        table.add_row(*map(Text, cells(each)[:columns]), style="bold green" if each is answer.recommended else "")
    return table


def _answer(answer: Replay) -> list[Text]:
    found = []
    if answer.recommended is not None:
        found.append(Text.assemble("Recommended: ", (answer.recommended.line, "bold green")))
    found += [Text(sentence) for sentence in sentences(answer)]
    if answer.runner_up is not None:
        found.append(Text(f"Runner-up: {answer.runner_up.line}"))
    return [*found, *(Text(f"- {_clean(warning)}", "yellow") for warning in answer.warnings)]


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
