"""The terminal: how wide it is, and which characters it has."""

from __future__ import annotations

from rich.console import Console
from rich.status import Status

PIPE = 200  # columns where the output is no terminal, so that no line is broken


def console() -> Console:
    """Return the console of the standard output."""
    usual = Console(highlight=False, markup=False, emoji=False)
    return usual if usual.is_terminal else Console(highlight=False, markup=False, emoji=False, width=PIPE)


def busy(text: str) -> Status:
    """Return what shows, while it is entered, that work is going on; nothing where there is no terminal."""
    return Console(stderr=True).status(text)
