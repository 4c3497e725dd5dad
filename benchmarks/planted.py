"""Which planted faults the tests find: each is put into a copy of the project, whose tests must then fail.

    python benchmarks/planted.py                          every fault; the tests most likely to fail first, then all
    python benchmarks/planted.py --hints-only             the most likely tests only: minutes instead of hours
    python benchmarks/planted.py --only Adam --tests "tests/test_contract.py -k adam"

Prints a Markdown table, as in docs/planted_faults.md. Ends with 1 if a fault survives, and with an error if a text
to replace is not in its file exactly once: then the library has changed, and benchmarks/planted_list.py must follow.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from planted_list import FAULTS, Fault

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info")
PASSED, FAILED, INTERRUPTED, NO_TESTS = 0, 1, 2, 5


class Result(NamedTuple):
    """What became of a fault: the test that failed, or "" if none did, and how long that took."""

    fault: Fault
    caught_by: str
    seconds: float


def planted(fault: Fault) -> str:
    """Return the text of the fault's file with the fault in it."""
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        sys.exit(f"{fault.name}: {fault.old!r} is in {fault.file} {text.count(fault.old)} times, not once")
    return text.replace(fault.old, fault.new)


def first_failure(copy: Path, arguments: Sequence[str], workers: int) -> str:
    """Return the first test that fails, or "" if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", str(workers), *arguments]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if run.returncode in (PASSED, NO_TESTS):
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode not in (FAILED, INTERRUPTED) or found is None:
        sys.exit(f"pytest itself failed in {copy}:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
    return found[1]


def examine(fault: Fault, options: argparse.Namespace) -> Result:
    """Plant a fault in a copy of the project, and run the tests until one fails."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        (copy / fault.file).write_text(planted(fault), encoding="utf-8")
        runs = [shlex.split(hint) for hint in fault.hints]
        if options.tests:
            runs = [shlex.split(options.tests)]
        elif not options.hints_only:
            runs.append([])
        for arguments in runs:
            if caught_by := first_failure(copy, arguments, options.workers):
                return Result(fault, caught_by, time.monotonic() - start)
    return Result(fault, "", time.monotonic() - start)


def row(result: Result) -> str:
    outcome = f"`{result.caught_by}`" if result.caught_by else "**survived**"
    return f"| {result.fault.name} | {result.fault.file.removeprefix('novoclip/')} | {outcome} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", help="test files, or other arguments of pytest, in quotes, instead of the hints")
    parser.add_argument("--hints-only", action="store_true", help="do not run the rest of the suite where hints pass")
    parser.add_argument("--only", nargs="+", default=[""], help="only faults with one of these in their name")
    parser.add_argument("--workers", type=int, default=0, help="processes for each run of pytest")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if any(words in fault.name for words in options.only)]
    for fault in chosen:
        planted(fault)
    print("| fault | file | first test that fails |\n|---|---|---|")
    results = []
    for fault in chosen:
        results.append(examine(fault, options))
        print(row(results[-1]), flush=True)
    caught = sum(bool(result.caught_by) for result in results)
    print(
        f"\n{caught} of {len(results)} faults caught, in {sum(result.seconds for result in results) / 60:.0f} minutes"
    )
    return caught < len(results)


if __name__ == "__main__":
    sys.exit(main())
