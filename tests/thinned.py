"""Tests of many combinations, of which every run takes a share; -m full takes all of them.

What one test says of rules, dtypes, granularities or places is the same code for most of its parameters. A test whose
cases take T seconds in all takes 1 / sqrt(2 T) of them: all of half a second, a half of 2 s, a quarter of 8 s. Which
ones differs from test to test, so that each rule is in some. seconds.txt holds the mean of a case of each test, from

    python -m pytest --junitxml=/tmp/suite.xml && python -m tests.thinned /tmp/suite.xml
"""

import collections
import math
from pathlib import Path
import sys
from xml.etree import ElementTree
import zlib

import pytest

SECONDS = Path(__file__).parent / "seconds.txt"
LEAST = 0.05  # seconds of a case below which a test is not worth a line
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
    share = min(1.0, 1 / math.sqrt(2 * total))
    count = math.ceil(share * number)
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
