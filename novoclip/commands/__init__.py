"""The command `novoclip`: the list of rules, a replay of a log, a watch of a growing log, and a demo."""

from novoclip.commands.main import main

__all__ = ["main"]
