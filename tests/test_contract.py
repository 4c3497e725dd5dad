import pytest

from novoclip.testing import CHECKS, descent, interface, numerics
from tests.cases import CASES, FULL_CASES


def pairs(cases, checks):
    return [
        pytest.param(case, check, id=f"{check.name}-{case.name}")
        for case in cases
        for check in checks
        if check.applies(case.subject())
    ]


# Options and aliases change numbers, hardly where a transform runs or its interface, which depend on float64 as little:
# that is left to -m full.
FIRST = [case for case in CASES if case.arguments is case.entry.examples[0] and not case.name.startswith("scale_by_")]
OTHERS = [case for case in CASES if all(case is not first for first in FIRST)]
NUMBERS = [check for check in CHECKS if check.run.__module__ in (numerics.__name__, descent.__name__)]
OF_DTYPES = [check for check in CHECKS if check.run is interface.state_never_changes_its_type]


@pytest.mark.parametrize(("case", "check"), pairs(FIRST, CHECKS) + pairs(OTHERS, NUMBERS))
def test_contract(case, check):
    check.run(case.subject())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("case", "check"), pairs(FIRST, NUMBERS + OF_DTYPES))
def test_contract_in_float64(case, check):
    check.run(case.subject())


@pytest.mark.full
@pytest.mark.parametrize(("case", "check"), pairs(OTHERS, [check for check in CHECKS if check not in NUMBERS]))
def test_contract_of_options_and_aliases(case, check):
    check.run(case.subject())


@pytest.mark.full
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("case", "check"), pairs(CASES, CHECKS))
def test_contract_in_float64_for_all_cases(case, check):
    check.run(case.subject())


@pytest.mark.full
@pytest.mark.parametrize(("case", "check"), pairs(FULL_CASES, CHECKS))
def test_contract_over_the_full_product(case, check):
    check.run(case.subject())
