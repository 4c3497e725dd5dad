"""`novoclip replay`: which rule, and which threshold, for a recorded run."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
import importlib
import json
from pathlib import Path
import sys

from novoclip.commands.parser import CommandError, columns
from novoclip.commands.replay_json import as_json
from novoclip.replays import Replay, replay


def run(options: argparse.Namespace) -> int:
    """Replay a log, print the answer, and write the report and the picture that were asked for."""
    _need(options)
    try:
        with _busy(options):
            answer = replay(options.path, want=options.want, max_clipped=options.max_clipped, **columns(options))
    except ValueError as error:
        raise CommandError(str(error)) from error
    written = _write(answer, options)
    if options.json:
        sys.stdout.write(json.dumps(as_json(answer), indent=2, allow_nan=False) + "\n")
    elif options.quiet:
        _quietly(answer)
    else:
        importlib.import_module("novoclip.commands.replay_table").show(answer, written)
    return 0 if answer.recommended else 1


def _need(options: argparse.Namespace) -> None:
    """Import what the output needs, so that a package or a folder that is missing is told before the work."""
    for path in map(Path, filter(None, (options.report, options.png))):
        if not path.parent.is_dir():
            msg = f"{path}: the folder {path.parent} does not exist"
            raise CommandError(msg)
    modules = {
        "rich": not (options.json or options.quiet),
        "plotly.offline": options.report,
        "matplotlib.figure": options.png,
    }
    for name, needed in modules.items():
        if needed:
            importlib.import_module(name)


def _busy(options: argparse.Namespace) -> AbstractContextManager[object]:
    """Say in a terminal that rules are being compiled, which takes many seconds."""
    if options.json or options.quiet:
        return nullcontext()
    busy: AbstractContextManager[object] = importlib.import_module("novoclip.commands.terminal").busy("trying rules")
    return busy


def _write(answer: Replay, options: argparse.Namespace) -> list[str]:
    report = importlib.import_module("novoclip.replays.report")
    if options.report:
        report.write_report(answer, options.report)
    if options.png:
        report.write_png(answer, options.png)
    return [path for path in (options.report, options.png) if path]


def _quietly(answer: Replay) -> None:
    if answer.recommended:
        sys.stdout.write(answer.recommended.line + "\n")
    else:
        sys.stderr.write(f"novoclip: nothing is recommended: {'; '.join(answer.warnings)}\n")
