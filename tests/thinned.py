"""Tests of many combinations, of which every run takes a share; -m full takes all of them.

What one test says of rules, dtypes, granularities or places is the same code for most of its parameters. A test whose
cases take T seconds in all takes 1 / (2 sqrt(T)) of them: all of a quarter of a second, a half of 1 s, a quarter of 4;
of those that compare with a formula, with published code or with Optax at least a third. Which ones differs from test
to test, so that each rule is in some. seconds.txt holds the mean of a case of each test, from

    python -m pytest --junitxml=/tmp/suite.xml && python -m tests.thinned /tmp/suite.xml
"""

import collections
import math
from pathlib import Path
import re
import sys
from xml.etree import ElementTree
import zlib

import pytest

SECONDS = Path(__file__).parent / "seconds.txt"
LEAST = 0.05  # seconds of a case below which a test is not worth a line
ORACLES, LEAST_OF_ORACLES = re.compile("formula|published|authors|optaxs"), 1 / 3
WHOLE = ("tests/test_contract.py::test_contract",)  # all of the catalog, in every run


def thin(items):
    """Mark those that are not taken in every run as `full`."""
    seconds = read()
    cases = collections.defaultdict(list)
    for item in items:
        name, _, case = item.nodeid.partition("[")
        if case and name in seconds and name not in WHOLE and not any(item.iter_markers("full")):
            cases[name].append(item)
    for name, members in cases.items():
        taken = chosen(name, len(members), seconds[name] * len(members))
        for i, item in enumerate(members):
            if i not in taken:
                item.add_marker(pytest.mark.full)


def chosen(name, number, total):
    """The positions of the cases that are taken, of a test whose cases take `total` seconds."""
    least = LEAST_OF_ORACLES if ORACLES.search(name) else 0.0
    count = math.ceil(number * min(1.0, max(least, 0.5 / math.sqrt(total))))
    first = zlib.crc32(name.encode()) % number
    return {(first + i * number // count) % number for i in range(count)}


def read():
    """The mean seconds of a case of each test."""
    lines = (line.split() for line in SECONDS.read_text("utf-8").splitlines())
    return {name: float(seconds) for seconds, name in lines}


def means(report):
    """The mean seconds of a case of each test with several, from a report in JUnit's format."""
    found = collections.defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        name, bracket, _ = case.get("name").partition("[")
        if bracket and not list(case.iter("skipped")):
            found[f"{case.get('classname').replace('.', '/')}.py::{name}"].append(float(case.get("time")))
    return {name: sum(times) / len(times) for name, times in found.items()}


def write(report):
    lines = [f"{mean:.2f} {name}\n" for name, mean in sorted(means(report).items()) if mean >= LEAST]
    SECONDS.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
