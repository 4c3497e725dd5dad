"""The arguments of the command `novoclip`. An error is one line, with the nearest name that is known."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
import difflib
import importlib.metadata
import math
from typing import NoReturn

COLUMNS = {
    "norm": "the column of the gradient norm",
    "loss": "the column of the loss",
    "step": "the column of the step",
    "learning_rate": "the column of the learning rate",
    "run": "one of several runs, by name or number; all: the epochs of one run, joined",
}
HELP = """examples:
  novoclip rules                        the rules, and when to use them
  novoclip replay log.csv               which rule, and which threshold?
  novoclip watch log.jsonl              follow a log while it grows
  novoclip demo --steps 200             train a small model through a gradient storm

exit codes: 0 done, 1 nothing can be recommended, 2 bad input"""
REPLAY_HELP = """examples:
  novoclip replay log.csv
  novoclip replay log.jsonl --norm grad_norm --max-clipped 5% --report report.html
  novoclip replay trainer_state.json --want steady --quiet"""

DEMO_HELP = """In a clone of the repository, all options go to examples/train_lm.py, which lists rules by --list.
Without one, the demo is a smaller training, with --steps (400) and --seed (0).

examples:
  novoclip demo --steps 200
  novoclip demo --clip zclip --steps 200   in a clone"""


class CommandError(Exception):
    """A mistake in the input, told in one line."""


class Parser(argparse.ArgumentParser):
    """A parser that raises a CommandError in place of an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise a CommandError."""
        msg = f"{message}; see {self.prog} --help"
        raise CommandError(msg)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Raises:
      CommandError: for a sub-command or an option that does not exist, or a value that does not fit.
    """
    parser, commands = _parsers()
    name = next((each for each in argv if not each.startswith("-")), None)
    if name is not None and name not in commands:
        msg = f"no sub-command {name!r}{_nearest(name, commands) or '; there are ' + ', '.join(commands)}"
        raise CommandError(msg)
    options, unknown = parser.parse_known_args(argv)
    if options.command is None:
        parser.error(f"a sub-command is missing: {', '.join(commands)}")
    own = commands[options.command]
    if options.command == "demo":
        options.rest = list(argv[argv.index("demo") + 1 :])
    elif unknown:
        name = unknown[0].partition("=")[0]
        known = _options(own)
        kind = "option" if name.startswith("-") else "further argument"
        msg = f"no {kind} {name!r}{_nearest(name, known) or f'; see {own.prog} --help'}"
        raise CommandError(msg)
    return options


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="novoclip",
        description="Gradient clipping for JAX: choose a rule and a threshold from the norms of a run.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"novoclip {importlib.metadata.version('novoclip')}")
    adder = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    commands: dict[str, Parser] = {}
    for name, text, examples in (
        ("rules", "list the rules, and when to use them", "example:\n  novoclip rules --json"),
        ("replay", "recommend a rule and a threshold for a recorded run", REPLAY_HELP),
        ("watch", "follow a growing log in the terminal", "example:\n  novoclip watch log.jsonl --every 5"),
        ("demo", "train a small model through a gradient storm", DEMO_HELP),
    ):
        commands[name] = adder.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    commands["demo"].usage = "novoclip demo [--steps N] [--seed N] ..."
    commands["rules"].add_argument("--json", action="store_true", help="print JSON")
    _replay(commands["replay"])
    _watch(commands["watch"])
    return parser, commands


def _replay(parser: Parser) -> None:
    # What argparse prints of a help text is a format, in which % is written twice.
    parser.add_argument("path", metavar="RUN", help="a log: CSV, JSONL, NPZ, a TensorBoard folder, and others")
    parser.add_argument("--want", default="spikes", metavar="spikes|steady", help="what matters most (%(default)s)")
    parser.add_argument("--max-clipped", type=_fraction, metavar="5%", help="the most rows that may be clipped")
    _columns(parser)
    parser.add_argument("--report", metavar="FILE.html", help="write a report that a browser shows")
    parser.add_argument("--png", metavar="FILE.png", help="write a picture for a paper")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument("--quiet", action="store_true", help="print the recommended line alone")


def _watch(parser: Parser) -> None:
    parser.add_argument("path", metavar="FILE", help="a log, which need not exist yet")
    parser.add_argument("--every", type=_seconds, default=1.0, metavar="SECONDS", help="between readings (%(default)s)")
    parser.add_argument("--once", action="store_true", help="read once, and stop")
    _columns(parser)


def _columns(parser: Parser) -> None:
    for name, text in COLUMNS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="NAME", help=text)


def columns(options: argparse.Namespace) -> dict[str, str]:
    """Return the columns that were named, for `read_record`."""
    return {name: getattr(options, name) for name in COLUMNS if getattr(options, name) is not None}


def _options(parser: Parser) -> list[str]:
    # The only public list of a parser's options is its usage.
    words = parser.format_usage().replace("[", " ").replace("]", " ").split()
    return ["--help", *(word for word in words if word.startswith("--"))]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _fraction(text: str) -> float:
    percent = text.strip().endswith("%")
    value = _number(text.strip().removesuffix("%")) / (100 if percent else 1)
    if not 0 < value <= 1:
        msg = f"must be a percentage such as 5%, or a fraction such as 0.05; got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        msg = f"must be a positive number of seconds; got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value
