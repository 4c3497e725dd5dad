"""What the command `novoclip` does with its arguments, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
import importlib
import os
import sys

from novoclip.commands.parser import CommandError, parse

# Packages that only some sub-commands need: they come with the extra `replay`.
OPTIONAL = ("kaleido", "matplotlib", "plotly", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `novoclip`.

    Args:
      argv: the arguments; those of the process if None.

    Returns:
      The exit code: 0 if it is done, 1 if nothing can be recommended, 2 for bad input, 130 after Ctrl-C.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else list(argv))
        # A sub-command is imported when it is run, so that none waits for what it does not need.
        done = importlib.import_module(f"novoclip.commands.{options.command}_command").run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has enough. Python would complain at exit, when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (CommandError, OSError) as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        return _refuse(f"this needs {package}: pip install 'novoclip[replay]'")
    return int(done)


def _refuse(text: str) -> int:
    sys.stderr.write(f"novoclip: {' '.join(text.split())}\n")
    return 2
