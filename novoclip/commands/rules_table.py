"""The catalog as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from novoclip.commands.terminal import console


def show(entries: Sequence[dict[str, Any]]) -> None:
    """Print the rules with their kinds, and what they do or when to use them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule", no_wrap=True, style="bold")
    table.add_column("kind", no_wrap=True)
    table.add_column("what it does")
    for entry in entries:
        text = Text(entry["summary"])
        if entry["use_when"]:
            text.append(f"\nUse this when {entry['use_when']}.", style="green")
        table.add_row(entry["name"], entry["kind"], text)
    console().print(table)
