"""Signatures and docstrings as their authors wrote them: short types, defaults as source, formulas in plain text."""

from __future__ import annotations

import ast
from collections.abc import Iterable
import inspect
import itertools
import re
import textwrap
from typing import Any

import novoclip

PUBLIC = (novoclip, novoclip.limits, novoclip.states)


def public_path(name: str) -> str:
    """Return the full public name of a type that source code names in short, or the name if it is not public."""
    if hasattr(novoclip.typing, name) and name not in {"Any", "Callable", "Literal", "Mapping", "Measure"}:
        return f"novoclip.typing.{name}"
    for module in PUBLIC:
        if name in module.__all__:
            return f"{module.__name__}.{name}"
    return name


class _Public(ast.NodeTransformer):
    """Replaces short names of types by their full public names, which the page then shows in short, with a link."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse(public_path(node.id), mode="eval").body

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return node


def annotation(node: ast.expr | None) -> str:
    """Return an annotation with full public names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    return ast.unparse(_Public().visit(node)) if node else ""


def _definition(thing: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]


def _of_function(node: ast.FunctionDef) -> tuple[str, str]:
    for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
        if argument.annotation:
            argument.annotation = ast.parse(annotation(argument.annotation), mode="eval").body
    if node.args.args and node.args.args[0].arg in {"self", "cls"}:
        del node.args.args[0]
    return f"({ast.unparse(node.args)})", annotation(node.returns)


def _of_fields(node: ast.ClassDef) -> str:
    fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
    parts = [
        f"{ast.unparse(field.target)}: {annotation(field.annotation)}"
        + (f" = {ast.unparse(field.value)}" if field.value else "")
        for field in fields
    ]
    return f"({', '.join(parts)})"


def signature_of(_app: Any, what: str, name: str, thing: Any, _options: Any, *_given: str) -> tuple[str, str] | None:
    """Return the signature from the source."""
    if what in {"function", "method"} and inspect.isfunction(inspect.unwrap(thing)):
        return _of_function(_definition(thing))
    if what == "class":
        # Users read states, and do not make them.
        made_by_users = hasattr(thing, "_fields") and not name.startswith("novoclip.states.")
        return (_of_fields(_definition(thing)), "") if made_by_users else ("", "")
    return None


def escaped(line: str, own: Iterable[str] = ()) -> str:
    """Escape what reStructuredText would take for markup outside of literals: |x| is an absolute value here.

    The names of `own` are parameters, and no links to functions of the same name.
    """
    for name in own:
        line = line.replace(f"`{name}`", f"``{name}``")
    parts = re.split(r"(``.*?``|`.*?`_{0,2})", line)
    # Between a literal and the letters after it, as in `Limit`s, reStructuredText needs an escaped space.
    return "".join(
        part if place % 2 else re.sub(r"^(?=\w)", r"\\ " if place else "", re.sub(r"([|*])", r"\\\1", part))
        for place, part in enumerate(parts)
    )


def set_off(lines: list[str]) -> list[str]:
    """Return lines in which formulas that are indented below a line of text are literal blocks."""
    found, inside = [], False
    for line in lines:
        indented = line.startswith("  ")
        if indented and not inside and found and found[-1] and not found[-1].startswith("  "):
            found += ["", "::", ""]
            inside = True
        elif inside and not indented:
            found.append("")
            inside = False
        found.append(line)
    return found


def is_row(line: str) -> bool:
    """Whether a line is a row of a Markdown table, and not a formula that begins with an absolute value."""
    return re.fullmatch(r" *\|[ -].*\|", line) is not None


def is_rule(line: str) -> bool:
    """Whether a line is the one below the heading of a Markdown table."""
    return is_row(line) and set(line) <= set("| -")


def tables_as_lists(lines: list[str]) -> list[str]:
    """Return lines in which tables of Markdown are tables of reStructuredText."""
    found, inside = [], False
    for line, below in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        if is_rule(below):
            found += [".. list-table::", "   :header-rows: 1", ""]
        inside = is_rule(below) or (inside and is_row(line))
        if not inside:
            found.append(line)
        elif not is_rule(line):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            found += [f"   {' ' if place else '*'} - {escaped(cell)}" for place, cell in enumerate(cells)]
    return found


def literals(lines: list[str]) -> set[int]:
    """Return which lines are in a literal block or in a doctest."""
    found: set[int] = set()
    block, doctest = -1, False
    for place, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= block:
            block = -1
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>>"))
        if block >= 0 or doctest:
            found.add(place)
        elif line.endswith("::"):
            block = indent
    return found


def parameters_of(thing: Any) -> tuple[str, ...]:
    """Return the names of a function's parameters or of a class's fields."""
    if inspect.isfunction(thing):
        return tuple(inspect.signature(thing).parameters)
    return getattr(thing, "_fields", ())


def docstring_as_text(_app: Any, _what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Escape the lines of a docstring but for its literal blocks and doctests."""
    heading = next((place for place, line in enumerate(lines) if re.fullmatch(r"[A-Z][a-z]+:", line)), len(lines))
    text = [*set_off(lines[:heading]), *lines[heading:]]
    literal = literals(text)
    own = parameters_of(thing)
    text = [line if place in literal or is_row(line) else escaped(line, own) for place, line in enumerate(text)]
    lines[:] = tables_as_lists(text)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-signature", signature_of)
    # Before napoleon, whose markup must stay.
    app.connect("autodoc-process-docstring", docstring_as_text, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
