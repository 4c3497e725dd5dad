"""The list of all public rules: tests, documentation and benchmarks iterate it; the library does not.

`python -m novoclip.catalog` prints the table in the README.
"""

from collections.abc import Callable
import inspect
import re
import sys
from typing import Any, NamedTuple

import optax

import novoclip
from novoclip.measure import PER


class Entry(NamedTuple):
    """One public rule.

    Attributes:
      make: the public function.
      kind: "clip" bounds what it passes on; "record" passes everything on.
      shape: what becomes of a block beyond its limit, unless `shape=` says otherwise.
      per: the granularities that `per=` takes; a single one if the function has no `per=`.
      clips: the blocks that are scaled, where these are not the ones that `per` names.
      examples: sets of arguments that the contract is run with; with the first, gradients
        of order 1 are clipped.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    kind: str
    shape: str
    per: tuple[str, ...]
    examples: tuple[dict[str, Any], ...]
    clips: str | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return self.make.__name__


CATALOG = (
    Entry(
        novoclip.clip_by_value, "clip", "hard", ("element",), ({"max_delta": 0.1}, {"max_delta": 0.1, "count": True})
    ),
    Entry(
        novoclip.clip_by_norm,
        "clip",
        "hard",
        PER,
        (
            {"max_norm": 0.5},
            {"max_norm": 0.5, "per": "unit", "norm": "l1"},
            {"max_norm": 0.5, "per": "tree", "norm": "rms", "shape": "tanh"},
            {"max_norm": 0.5, "norm": "max", "shape": "drop"},
        ),
    ),
    Entry(
        novoclip.clip_by_global_norm,
        "clip",
        "hard",
        ("tree",),
        ({"max_norm": 1.0}, {"max_norm": 1.0, "shape": "arctan"}, {"max_norm": 1.0, "shape": "algebraic"}),
    ),
    Entry(
        novoclip.clip_by_second_moment,
        "clip",
        "hard",
        ("element", "tensor"),
        (
            {"threshold": 3.0, "form": "proportional"},
            {"threshold": 0.01},
            {"threshold": 0.01, "per": "tensor", "count": True},
        ),
        clips="element",
    ),
    Entry(novoclip.normalize_by_norm, "clip", "normalize", PER, ({}, {"per": "unit", "norm": "rms"})),
    Entry(
        novoclip.autoclip, "clip", "hard", PER, ({"percentile": 90.0, "window": 200}, {"window": 4, "per": "tensor"})
    ),
    Entry(
        novoclip.zclip, "clip", "hard", PER, ({}, {"warmup": 2, "max_norm": 0.5, "per": "unit", "mode": "percentile"})
    ),
    Entry(novoclip.record, "record", "hard", ("tree", "tensor", "unit"), ({}, {"per": "tensor", "norm": "max"})),
)


def table() -> str:
    """Return the rules as a Markdown table, from the catalog and the docstrings.

    Example:
      >>> print(table().splitlines()[0])
      | rule | what it does | `per=` | paper |
    """
    rows = ["| rule | what it does | `per=` | paper |", "|---|---|---|---|", *map(_row, CATALOG)]
    return "\n".join(rows)


def _row(entry: Entry) -> str:
    text = inspect.getdoc(entry.make) or ""
    source = entry.make.__module__.replace(".", "/")
    reference = re.search(r"<(http[^>]+)>`_, (\d{4})", text)
    paper = f"[{reference[2]}]({reference[1]})" if reference else ""
    return f"| [`{entry.name}`]({source}.py) | {text.splitlines()[0]} | {', '.join(entry.per)} | {paper} |"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
