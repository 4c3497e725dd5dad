"""A gradient storm: a small language model trained with and without gradient clipping.

    python examples/train_lm.py
    python examples/train_lm.py --clip clip_by_norm:max_norm=0.2,per=tensor --nan 500
    python examples/train_lm.py --optimizer novoclip:threshold=proportional --seeds 3

In a storm, a few gradients arrive 1000 times too large and a few batches have random targets. The model is trained
four times from the same start: without a storm; and through the storm with the optimizer alone, with
`optax.clip_by_global_norm(1.0)`, and with a rule or wrapper of novoclip. The model and its training loop are in
storm_training.py.

The text is the reference manual that the Python in use carries, so that losses differ a little from one version of
Python to the next, as they do between versions of JAX. `--text` gives another.
"""

import argparse
import importlib
from pathlib import Path
from pydoc_data.topics import topics
import sys
from urllib.parse import quote

from nearest import suggestion

DEFAULT_CLIP = "protect"
DEFAULT_OPTIMIZER = "adam"

OPTIONS = {
    "--list": {"action": "store_true", "help": "print what --clip and --optimizer take, and stop"},
    "--clip": {"default": DEFAULT_CLIP, "metavar": "RULE", "help": "NAME or NAME:ARGUMENT=VALUE,... (%(default)s)"},
    "--optimizer": {
        "default": DEFAULT_OPTIMIZER,
        "metavar": "OPTIMIZER",
        "help": "NAME or NAME:ARGUMENT=VALUE,... (%(default)s)",
    },
    "--steps": {"type": int, "default": 1000, "metavar": "N", "help": "of each training (%(default)s)"},
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "of the start and the batches (%(default)s)"},
    "--seeds": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "train with this many, from --seed on (%(default)s)",
    },
    "--nan": {"type": int, "metavar": "STEP", "help": "make the storm's gradient NaN at this step, from 1"},
    "--text": {"type": Path, "metavar": "FILE", "help": "in UTF-8 (the reference manual that pydoc carries)"},
    "--log-every": {"type": int, "default": 200, "metavar": "N", "help": "steps (%(default)s)"},
    "--out": {"type": Path, "default": Path("runs"), "metavar": "DIR", "help": "(%(default)s)"},
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse_options(parser, argv):
    for name, settings in OPTIONS.items():
        parser.add_argument(name, **settings)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        parser.error(f"no option {name!r}{suggestion(name, OPTIONS) or '; --help shows all'}")
    if options.steps < 20:
        parser.error(f"--steps must be at least 20, to have room for the storm; got {options.steps}")
    if options.nan is not None and not 1 <= options.nan <= options.steps:
        parser.error(f"--nan must be a step from 1 to {options.steps}; got {options.nan}")
    for name in ("seeds", "log_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}")
    if options.seed < 0:
        parser.error(f"--seed must be at least 0; got {options.seed}")
    options.stem = stem_of(options)
    return options


def stem_of(options):
    """Return the name of the output files: the rule and its arguments, and the optimizer and NaN step if given."""
    parts = ["storm", options.clip]
    parts += [] if options.optimizer == DEFAULT_OPTIMIZER else [options.optimizer]
    parts += [] if options.nan is None else [f"nan={options.nan}"]
    return quote("_".join(parts).replace(":", "_").replace(" ", ""), safe="=,")


def read_text(parser, path):
    """Return the text, and what it is."""
    if path is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        source = f"the manual of Python {version} (that of another version gives other losses)"
        return "\n".join(topics.values()), source
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        parser.error(f"--text {path}: not UTF-8, at byte {error.start}")
    except OSError as error:
        parser.error(f"--text {path}: {error.strerror}")
    if len(text) < 1000:
        parser.error(f"--text {path}: needs at least 1000 characters, has {len(text)}")
    return text, str(path)


def main(argv=None):
    parser = Parser(prog="train_lm.py", description=__doc__.partition("\n")[0])
    options = parse_options(parser, argv)
    if options.list:
        print("NAME, or NAME:ARGUMENT=VALUE,... as in autoclip:percentile=90,window=500. Below each: its arguments and")
        print("their defaults. An argument without a value must be given.", flush=True)
        print(f"\n{importlib.import_module('storm_rules').listing()}")
        return 0
    options.characters, options.source = read_text(parser, options.text)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    # JAX takes seconds to import, so these words come first.
    print(f"A gradient storm: {4 * options.seeds} trainings of a small language model. Loading JAX...", flush=True)
    try:
        rules = importlib.import_module("storm_rules")
        rule = parsed(parser, "--clip", options.clip, rules.parse_rule)
        descent = parsed(parser, "--optimizer", options.optimizer, rules.parse_optimizer)
        return importlib.import_module("storm_runs").train_and_show(options, rule, descent)
    except KeyboardInterrupt:
        print("Interrupted before the first step.")
        return 130


def parsed(parser, option, text, parse):
    try:
        return parse(text)
    except (TypeError, ValueError) as error:
        parser.error(f"{option} {text}: {str(error).partition(chr(10))[0]}")


if __name__ == "__main__":
    sys.exit(main())
