"""The answer of a replay in words, and as a table in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from novoclip.replays.outcome import Outcome

HEADINGS = ("rule", "spikes caught", "calm touched", "clipped", "skipped", "largest", "shrinkage", "adapts")


def cells(each: Outcome) -> tuple[str, ...]:
    """Return an outcome as the cells of a row of the table."""
    return (
        each.line,
        f"{each.caught}/{each.spikes}",
        f"{100 * each.touching:.2f} %",
        f"{100 * each.clipped:.1f} %",
        str(each.skipped),
        f"{each.largest:.3g} levels",
        f"{each.shrinkage:.3f}",
        "-" if each.adapts is None else "never" if each.adapts == float("inf") else f"{each.adapts:.0f} rows",
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    rows = [HEADINGS, *map(cells, outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def told(answer: Any) -> str:
    """Return the recommendation, the notes and the warnings, one line each."""
    lines = [f"Recommended: {answer.recommended.line}"] if answer.recommended is not None else []
    lines += sentences(answer)
    if answer.runner_up is not None:
        lines.append(f"Runner-up: {answer.runner_up.line}")
    return "\n".join([*lines, *(f"- {each}" for each in (*answer.warnings, *answer.record.notes))])


def sentences(answer: Any) -> list[str]:
    """Return what is said of the recommendation, without its line of Python."""
    reasons = ["Nothing is recommended."] if answer.recommended is None else _reasons(answer.recommended)
    return [
        *reasons,
        "The run would have gone differently after the first step that is clipped: this compares rules only.",
    ]


def _reasons(best: Outcome) -> list[str]:
    if not best.spikes:
        first = "This run has no spike, so nothing needs clipping; the rule is a precaution."
    else:
        first = f"It catches {best.caught} of {best.spikes} spikes. The largest norm that it lets through, in row "
        first += f"{best.largest_row}, is {best.largest:.2g} levels."
    return [first, f"It touches {best.touched} of {best.calm} calm rows, and skips {best.skipped} steps."]
