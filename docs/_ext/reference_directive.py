"""The directive `reference`: a table of public names with one line each, then the full entry of each.

```{reference} novoclip.limits
constant
autoclip
```
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def entry_of(module: Any, name: str) -> list[str]:
    """Return the lines of reStructuredText for one name."""
    thing = getattr(module, name)
    if module.__name__ == "novoclip.typing":
        value, text = assigned(module, name)
        return [f".. py:data:: {name}", f"   :value: {value}", "", f"   {text}", ""]
    if inspect.isclass(thing):
        kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
        return [f".. {kind}:: {name}", ""]
    return [f".. {'autofunction' if callable(thing) else 'autodata'}:: {name}", ""]


def assigned(module: Any, name: str) -> tuple[str, str]:
    """Return what a module assigns to a name, as source, and the string below it."""
    body = ast.parse(inspect.getsource(module)).body
    for line, text in itertools.pairwise(body):
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
            return ast.unparse(line.value), text.value.value
    msg = f"{name} is not assigned in {module.__name__}"
    raise ValueError(msg)


class Reference(SphinxDirective):
    """Entries of the names in the body, one a line, all of the module in the argument."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the parsed entries."""
        (module_name,) = self.arguments
        module = importlib.import_module(module_name)
        names = [name for line in self.content for name in line.split()]
        lines = [f".. currentmodule:: {module_name}", ""]
        if len(names) > 1 and module_name != "novoclip.typing":
            lines += [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names), ""]
        lines += [line for name in names for line in entry_of(module, name)]
        text = ["```{eval-rst}", *lines, "```"]
        return self.parse_content_to_nodes_of(text)

    def parse_content_to_nodes_of(self, lines: list[str]) -> list[nodes.Node]:
        """Parse Markdown lines as if they stood where the directive stands."""
        self.content = StringList(lines, source=self.get_source_info()[0])
        return self.parse_content_to_nodes(allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("reference", Reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
