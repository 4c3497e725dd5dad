"""The project's own rules: every public rule is listed, documented, and small."""

import inspect
from pathlib import Path
import re

import numpy as np
import optax
import pytest

from benchmarks import imports, planted_list
import novoclip
from novoclip import catalog
from novoclip.catalog.__main__ import tables, written
from tests import argument_docs, thinned

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "novoclip").rglob("*.py"))
PUBLIC = [getattr(novoclip, name) for name in novoclip.__all__]
LISTED = {entry.make for entry in catalog.CATALOG}


def test_every_public_rule_is_in_the_catalog():
    not_rules = {novoclip.clip_by_limit}
    returns = "GradientTransformationExtraArgs"
    rules = {f for f in PUBLIC if inspect.isfunction(f) and returns in str(inspect.signature(f).return_annotation)}
    assert rules - not_rules == LISTED, "add an Entry for each new rule to novoclip/catalog/rules.py or optimizers.py"


@pytest.mark.parametrize("function", [f for f in PUBLIC if inspect.isfunction(f)], ids=lambda f: f.__name__)
def test_docstrings_have_their_sections(function):
    sections = ["Args:", "Returns:", "Example:", ">>>"]
    if function is not novoclip.metrics:
        sections.append("Raises:")
    if function in LISTED - {novoclip.record, novoclip.protect}:
        sections.append("References:")
    for section in sections:
        assert section in function.__doc__, f"{function.__name__} has no {section}"
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^ +{name}: ", function.__doc__, re.MULTILINE), (
            f"{function.__name__} does not document {name}"
        )


@pytest.mark.parametrize(("path", "before", "after"), argument_docs.files(), ids=lambda x: getattr(x, "name", ""))
def test_what_arguments_share_is_written_once(path, before, after):
    assert before == after, (
        f"{path.relative_to(ROOT)}: run `python -m tests.argument_docs`, or add (file, argument) to OWN in "
        "tests/argument_docs.py if it means something else"
    )


def test_every_catalog_entry_makes_a_transform():
    for entry in catalog.CATALOG:
        for arguments in entry.examples:
            assert isinstance(entry.make(**arguments), optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_short_and_suppress_nothing(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250, "two files in one?"
    assert not re.search(r"#\s*(noqa|type:\s*ignore|pyright|pragma)", text)
    assert "_src" not in text


def test_the_tables_of_the_catalog_are_current():
    text = (ROOT / "docs/catalog.md").read_text(encoding="utf-8")
    for table in tables():
        assert f"\n{table}\n\n" in f"{text}\n", "run `python -m novoclip.catalog --docs docs/catalog.md`"
    stale = re.sub(r"^\| \[`(zclip|watch|adam)`\].*\n", "", text, flags=re.MULTILINE)
    assert len(stale.splitlines()) == len(text.splitlines()) - 3
    assert written(stale) == text


PARTS = ("rules", "optimizers", "guards", "wrappers", "precision", "testing", "states")
ABOVE = ("__init__", "catalog", "telemetry", "replays", "commands")  # what shows, lists or runs the parts


def test_files_import_downwards_only():
    """The drawing raises if there is a circle."""
    graph = imports.imports()
    drawn = imports.drawing() in imports.PAGE.read_text(encoding="utf-8")
    assert drawn, "run python benchmarks/imports.py --write"
    for name, others in graph.items():
        part = name.split(".")[1]
        for other in others:
            own = other.split(".")[1]
            assert own not in PARTS or part in (*PARTS, *ABOVE), f"{name} imports {other}"
            assert own not in ("optimizers", "guards", "wrappers") or part != "rules", f"{name} imports {other}"


def test_the_drawing_of_the_past_stays():
    before = imports.PAGE.read_text(encoding="utf-8").split("```")
    after = imports.written("```".join(before)).split("```")
    assert after[1] == f"\n$ python benchmarks/imports.py\n{imports.drawing()}\n"
    assert [after[0], *after[2:]] == [before[0], *before[2:]]


@pytest.mark.parametrize("fault", planted_list.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_still_be_planted(fault):
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.new != fault.old


def test_thinned_tests_exist():
    names = [name.split("::") for name in thinned.read()]
    assert len(names) > 100
    assert not [name for file, name in names if f"def {name}(" not in (ROOT / file).read_text()]


@pytest.mark.parametrize(("total", "taken"), [(0.1, 50), (0.25, 50), (1.0, 25), (4.0, 13), (400.0, 2), (1e9, 1)])
def test_a_test_that_takes_long_takes_a_share_of_its_cases(total, taken):
    found = thinned.chosen("a test", 50, total)
    assert found <= set(range(50))
    assert len(found) == taken
    places = sorted(found)
    gaps = np.diff([*places, places[0] + 50])
    assert max(gaps) - min(gaps) <= 1


def test_a_test_that_compares_with_a_formula_takes_at_least_a_third():
    assert len(thinned.chosen("test_it_is_its_formula", 30, 1e9)) == 10
