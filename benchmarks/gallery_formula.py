"""The formula in a docstring: its sentences up to the last one that has an equation."""

from collections.abc import Callable
import inspect
import re
import textwrap
from typing import Any, NamedTuple

import novoclip

WIDTH = 100
EQUATION = re.compile(r" (=|<-|<=) ")
# A sentence ends before a capital, a name in backquotes or an equation; a part of one before two spaces.
END = re.compile(r"(?<=\.)\s+(?=[A-Z`]|\w_t |\w+ = )|(?<=;)(?:  +|\n\s*)")
# The direction of an optimizer, and the limit of a rule, have formulas of their own.
ELSEWHERE = re.compile(r"direction u of `(\w+)`|`limits\.(\w+)`")


class Formula(NamedTuple):
    """What a docstring says of the formula: equations, or without any a paragraph of prose."""

    equations: str
    prose: str = ""


def formula_of(function: Callable[..., Any]) -> Formula:
    """Return the formula of a function, with that of its direction or limit, which has a docstring of its own."""
    paragraphs = _paragraphs(function)
    if not paragraphs:
        return Formula("u = g")
    equations = _equations(paragraphs)
    if not equations:
        return Formula("", paragraphs[0])
    for direction, limit in ELSEWHERE.findall("\n".join(paragraphs[:2])):
        other = _paragraphs(getattr(novoclip, direction) if direction else getattr(novoclip.limits, limit))
        text = _equations(other) or textwrap.fill(" ".join(other[0].split()), WIDTH)
        if text not in equations:
            equations += f"\n\n{direction or f'limits.{limit}'}:\n{text}"
    return Formula(equations)


def told(formula: Formula) -> str:
    """Return a formula as Markdown."""
    return f"```text\n{formula.equations}\n```" if formula.equations else formula.prose


def _paragraphs(function: Callable[..., Any]) -> list[str]:
    """Return the paragraphs between the summary and the arguments."""
    text = (inspect.getdoc(function) or "").partition("\nArgs:")[0]
    return [each.strip("\n") for each in text.split("\n\n")[1:] if each.strip()]


def _equations(paragraphs: list[str]) -> str:
    first = next((i for i, each in enumerate(paragraphs) if EQUATION.search(each)), None)
    if first is None:
        return ""
    # A sentence may end above the equations that belong to it, and go on below them.
    begin = first - 1 if first and _is_display(paragraphs[first]) else first
    found = [*paragraphs[begin : first + 1]]
    for each in paragraphs[first + 1 :]:
        goes_on = each[0].islower() or EQUATION.search(each)
        if not (_is_display(each) or (_is_display(found[-1]) and goes_on)):
            break
        found.append(each)
    return textwrap.dedent("\n".join(map(_kept, found)))


def _is_display(paragraph: str) -> bool:
    return paragraph.startswith("    ")


def _kept(paragraph: str) -> str:
    if any(line.startswith("    ") for line in paragraph.splitlines()):
        return paragraph
    parts = [" ".join(part.split()) for part in END.split(paragraph)]
    last = max((i for i, part in enumerate(parts) if EQUATION.search(part)), default=0)
    return "\n".join(textwrap.fill(part, WIDTH, subsequent_indent="    ") for part in parts[: last + 1])
