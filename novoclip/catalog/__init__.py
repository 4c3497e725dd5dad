"""The list of all public rules, wrappers and optimizers. Tests, docs and benchmarks use it; the library does not.

`python -m novoclip.catalog` prints the tables in docs/catalog.md.
"""

import inspect
import re

from novoclip.catalog.entry import Entry
from novoclip.catalog.optimizers import OPTIMIZERS
from novoclip.catalog.rules import RULES

CATALOG = (*RULES, *OPTIMIZERS)
RULE_KINDS = ("clip", "record", "transform")


def table(kinds: tuple[str, ...] = RULE_KINDS, title: str = "rule") -> str:
    """Return the rules, wrappers or optimizers as a Markdown table, from the catalog and the docstrings.

    Example:
      >>> print(table().splitlines()[0])
      | rule | what it does | `per=` | paper |
    """
    chosen = [entry for entry in CATALOG if entry.kind in kinds and not entry.name.startswith("scale_by_")]
    return "\n".join([f"| {title} | what it does | `per=` | paper |", "|---|---|---|---|", *map(_row, chosen)])


def _row(entry: Entry) -> str:
    text = inspect.getdoc(entry.make) or ""
    source = entry.make.__module__.replace(".", "/")
    reference = re.search(r"<(http[^>]+)>`_,\s+(\d{4})", text)
    paper = f"[{reference[2]}]({reference[1]})" if reference else ""
    return f"| [`{entry.name}`]({source}.py) | {text.splitlines()[0]} | {', '.join(entry.per)} | {paper} |"
