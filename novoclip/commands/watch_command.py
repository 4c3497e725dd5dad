"""`novoclip watch`: a growing log in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from novoclip.commands.parser import CommandError, columns
from novoclip.commands.terminal import console
from novoclip.commands.watch_view import view
from novoclip.records import Record, RecordError, read_record


def run(options: argparse.Namespace) -> int:
    """Show the log once, or again and again until Ctrl-C."""
    out, path, named = console(), Path(options.path), columns(options)
    try:
        if options.once:
            out.print(_once(path, named, out))
        else:
            _follow(path, named, out, options.every)
    except KeyboardInterrupt:
        pass
    return 0


def _once(path: Path, named: dict[str, str], out: Console) -> Text:
    try:
        return _view(path, named, out)
    except RecordError as error:
        raise CommandError(str(error)) from error


def _follow(path: Path, named: dict[str, str], out: Console, every: float) -> None:
    seen, shown = None, Text()
    with Live(shown, console=out, auto_refresh=False) as live:
        while True:
            stamp = _stamp(path)
            if stamp is None or stamp != seen:
                new = _now(path, named, out)
                if out.is_terminal:
                    live.update(new, refresh=True)
                elif new != shown:
                    out.print(new)
                seen, shown = stamp, new
            time.sleep(every)


def _now(path: Path, named: dict[str, str], out: Console) -> Text:
    # A log that cannot be read now, such as one with a header only, may be read a moment later.
    try:
        return _view(path, named, out)
    except (RecordError, OSError) as error:
        return Text(f"waiting: {error}")


def _view(path: Path, named: dict[str, str], out: Console) -> Text:
    if not path.exists():
        return Text(f"waiting for {path}, which does not exist yet")
    return view(read_whole_lines(path, **named), out)


def _stamp(path: Path) -> Any:
    """Return what changes when a file grows; None for a folder, whose files may grow unseen, or without a file."""
    if not path.is_file():
        return None
    now = path.stat()
    return now.st_size, now.st_mtime_ns


def read_whole_lines(path: Path, **named: str) -> Record:
    """Read a log, without a last line that is still being written.

    Half a line can look like a whole one: 0.5 may be the beginning of 0.53.
    """
    content = path.read_bytes() if path.is_file() else b""
    whole, newline, rest = content.rpartition(b"\n")
    if not newline or not rest or b"\0" in content[:4096] or path.suffix == ".json":
        return read_record(path, **named)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(whole + newline)
        try:
            return read_record(copy, **named)
        except RecordError as error:
            raise RecordError(str(error).replace(str(copy), str(path))) from error
