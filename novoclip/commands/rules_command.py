"""`novoclip rules`: the catalog."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from typing import Any

from novoclip.catalog import CATALOG
from novoclip.catalog.entry import Entry
from novoclip.commands.use_when import USE_WHEN


def run(options: argparse.Namespace) -> int:
    """Print the catalog, as a table or as JSON."""
    entries = [_described(entry) for entry in CATALOG]
    if options.json:
        sys.stdout.write(json.dumps(entries, indent=2, allow_nan=False) + "\n")
    else:
        importlib.import_module("novoclip.commands.rules_table").show(entries)
    return 0


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "summary": (inspect.getdoc(entry.make) or "").partition("\n")[0],
        "use_when": USE_WHEN.get(entry.name),
        "per": list(entry.per),
    }
