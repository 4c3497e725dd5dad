import zlib

import pytest

from novoclip.testing import CHECKS, check_contract, derivatives, descent, interface, numerics, properties, run_checks
from tests.cases import ALWAYS, CASES, FIRST, FULL_CASES, sampled

# Options change numbers, hardly where a transform runs or its interface, which depend on float64 as little, and aliases
# (scale_by_*) neither: that is left to -m full.
OTHERS = [case for case in CASES if all(case is not first for first in FIRST)]
# jit and vmap are compared with each other anyway, and tests/test_faults.py runs fourteen without jit: chex compiles
# all again.
IN_EVERY_CHEX_VARIANT = ("zclip", "adam")  # and one more in tests/test_chex.py
SOME_OF_FLOAT64 = (
    "clip_by_value",
    "clip_by_global_norm",
    "clip_by_second_moment",
    "autoclip",
    "agc",
    "clip_by_spectral_norm",
)
IN_TURN = 3
MAIN = [check for check in CHECKS if check.run is not properties.every_chex_variant_agrees]
OF_OPTIONS = [check for check in CHECKS if check.run.__module__ in (numerics.__name__, descent.__name__)]
NUMBERS = OF_OPTIONS + [check for check in CHECKS if check.run.__module__ == derivatives.__name__]
OF_DTYPES = [check for check in CHECKS if check.run is interface.state_never_changes_its_type]
# In float64, what 16 bits are compared with does not change.
IN_FLOAT64 = [check for check in NUMBERS if check.run is not descent.low_precision_follows_float32] + OF_DTYPES


def check(case, checks):
    """All at once: they share what is compiled."""
    report = run_checks(case.subject(), checks)
    assert not report.failed, str(report)
    assert report.passed


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@named(FIRST)
def test_contract(case):
    """What depends on the formula; of the rest, which is the same code for many, each entry takes a part in turn."""
    own = NUMBERS + OF_DTYPES
    others = [one for one in MAIN if one not in own] if case.entry.name in ALWAYS else []
    turn = others[zlib.crc32(case.name.encode()) % IN_TURN :: IN_TURN]
    check(case, CHECKS if case.entry.name in IN_EVERY_CHEX_VARIANT else own + turn)


@named([case for case in OTHERS if not case.name.startswith("scale_by_")][::3])
def test_numbers_of_options(case):
    check(case, NUMBERS if case.subject().shape in ("arctan", "algebraic") else OF_OPTIONS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", sampled((case for case in FIRST if case.entry.kind == "clip"), SOME_OF_FLOAT64))
def test_contract_in_float64(case):
    """Of some rules: the oracles of the optimizers and of most else compute in float64 anyway."""
    check(case, IN_FLOAT64)


@pytest.mark.full
@named(CASES)
def test_contract_of_all_cases(case):
    check_contract(case.subject())


@pytest.mark.full
@pytest.mark.usefixtures("x64")
@named(CASES)
def test_contract_in_float64_for_all_cases(case):
    check_contract(case.subject())


@pytest.mark.full
@named(FULL_CASES)
def test_contract_over_the_full_product(case):
    check_contract(case.subject())
