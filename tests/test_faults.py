"""What bad gradients and wrong uses come to, and that docs/faults.md says so."""

import functools
from pathlib import Path
import re

import pytest

from benchmarks import faults
from tests.cases import sampled

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
SCHEDULE = "main number a schedule that returns NaN at this step"
# A learning rate that is NaN is not guarded, as the page says.
RATES = {SCHEDULE}
RAISES = ("main number negative", "main number NaN", "a leaf of integers", "`window=0`")


@functools.cache
def rows():
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0] not in ("fault", "---"):
            found.setdefault(cells[0], []).append((tuple(cells[1:4]), cells[4]))
    return found


def on_the_page(fault, name):
    every = re.compile(r"all \d+|the other \d+ of \d+")
    named = [cells for cells, names in rows()[fault] if name in names.split(", ")]
    return named or [cells for cells, names in rows()[fault] if every.fullmatch(names)]


def without_words_of_errors(words):
    # Those of JAX differ from one version to the next.
    return words.split(":")[0]


def finite(outcome):
    return outcome.state != "not finite" and not any(
        text in outcome.words for text in (faults.NOT_FINITE, faults.LATER)
    )


# One of each kind of code: they run without jit, operation by operation.
ONE_OF_EACH = (
    *("clip_by_value", "clip_by_norm", "autoclip", "agc", "centralize", "record", "per_example", "skip_spikes", "adam"),
)


@pytest.mark.parametrize("case", sampled(faults.FIRST, ONE_OF_EACH))
def test_faults_come_to_what_is_promised(case):
    index = faults.FIRST.index(case)
    entry, outcomes = case.entry, faults.examine(index)
    unsafe = {fault for fault, outcome in outcomes.items() if not finite(outcome)}
    assert not unsafe - (RATES if entry.kind == "optimizer" else set())
    for fault, outcome in outcomes.items():
        if fault in RAISES or fault.endswith("unknown"):
            assert outcome.words.startswith("raises"), f"{fault}: {outcome}"
            assert outcome.names, f"{fault}: {outcome} does not say where"
        assert fault in rows(), f"{fault} is not in docs/faults.md: run `python benchmarks/faults.py`"
        expected = [tuple(map(without_words_of_errors, cells)) for cells in on_the_page(fault, entry.name)]
        found = tuple(map(without_words_of_errors, outcome[:3]))
        assert found in expected, f"{fault}: {found}, but docs/faults.md has {expected}"
    bad = outcomes["NaN everywhere"]
    assert bad.words == ("passes unchanged" if entry.kind == "record" else "zeros (whole tree)")
    assert bad.state in ("kept", "-")
    assert bad.counted in ("yes", "-")


@pytest.mark.full
def test_the_page_is_current():
    assert faults.table() + "\n" == PAGE.read_text(), "run `python benchmarks/faults.py --out docs/faults.md`"
