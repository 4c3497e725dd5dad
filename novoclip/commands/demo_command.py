"""`novoclip demo`: a training through a gradient storm.

In a clone of the repository it is examples/train_lm.py, a small language model. An installed package has no examples:
there, it is a smaller training that is part of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import subprocess
import sys

import novoclip
from novoclip.commands import demo_storm
from novoclip.commands.parser import CommandError, Parser

SHORTEST = 2 * demo_storm.EVERY
LONGEST = 1_000_000
HIGHEST = 2**32 - 1  # seed that JAX takes
CLONE = "examples/train_lm.py of a clone of the repository has more"


def run(options: argparse.Namespace) -> int:
    """Run examples/train_lm.py with the further arguments if it is there, else the demonstration of the package."""
    script = Path(novoclip.__file__).parent.parent / "examples" / "train_lm.py"
    if script.is_file():
        return subprocess.run([sys.executable, str(script), *options.rest], check=False).returncode
    _show(*_options(options.rest))
    return 0


def _options(rest: list[str]) -> tuple[int, int]:
    """Return the number of steps and the seed."""
    parser = Parser(prog="novoclip demo", allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    found, unknown = parser.parse_known_args(rest)
    if unknown:
        msg = f"no option {unknown[0]!r}: this demo takes --steps and --seed; {CLONE}"
        raise CommandError(msg)
    if found.steps < SHORTEST:
        msg = f"--steps must be at least {SHORTEST}, to have room for the storm; got {found.steps}"
        raise CommandError(msg)
    if found.steps > LONGEST:
        msg = f"--steps must be at most {LONGEST}; got {found.steps}"
        raise CommandError(msg)
    if not 0 <= found.seed <= HIGHEST:
        msg = f"--seed must be from 0 to {HIGHEST}; got {found.seed}"
        raise CommandError(msg)
    return found.steps, found.seed


def _show(steps: int, seed: int) -> None:
    optimizers = demo_storm.optimizers()
    width = max(map(len, optimizers))
    _line(f"A network with one hidden layer is trained for {steps} steps. In the storm, the gradient of each")
    _line(
        f"{demo_storm.EVERY}th step is {demo_storm.FACTOR:g} times too large and has wrong signs. Mean squared error:\n"
    )
    _line(f"{'optimizer':<{width}}  {'no storm':>9}  {'storm':>9}  {'and one NaN':>11}")
    for line, make in optimizers.items():
        calm, storm, nan = demo_storm.trained(make(), steps, seed)
        _line(f"{line:<{width}}  {calm:>9.4f}  {storm:>9.4f}  {nan:>11.4f}")
    _line(f"\n{CLONE}: other rules, a language model, a report.")


def _line(text: str) -> None:
    # Each line at once: an optimizer takes seconds to compile.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
