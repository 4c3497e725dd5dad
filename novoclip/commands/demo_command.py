"""`novoclip demo`: the training in a gradient storm, which stands in the repository."""

from __future__ import annotations

import argparse
from pathlib import Path
import subprocess
import sys

import novoclip
from novoclip.commands.parser import CommandError


def run(options: argparse.Namespace) -> int:
    """Run examples/train_lm.py with the further arguments, and return its exit code."""
    script = Path(novoclip.__file__).parent.parent / "examples" / "train_lm.py"
    if not script.is_file():
        msg = "the demo is examples/train_lm.py, which only a clone of the repository has: run it there"
        raise CommandError(msg)
    return subprocess.run([sys.executable, str(script), *options.rest], check=False).returncode
