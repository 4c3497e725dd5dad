import pytest

from novoclip.testing import CHECKS, descent, interface, numerics, places, properties
from tests.cases import CASES, FULL_CASES


def pairs(cases, checks):
    return [
        pytest.param(case, check, id=f"{check.name}-{case.name}")
        for case in cases
        for check in checks
        if check.applies(case.subject())
    ]


# Where a transform runs hardly depends on options and aliases, nor its interface on float64: that is left to -m full.
FIRST = [case for case in CASES if case.arguments is case.entry.examples[0] and not case.name.startswith("scale_by_")]
OTHERS = [case for case in CASES if all(case is not first for first in FIRST)]
PLACES = [check for check in CHECKS if check.run.__module__ in (places.__name__, properties.__name__)]
OF_DTYPES = (interface.state_never_changes_its_type, interface.updates_keep_the_gradients_types)
NUMBERS = [
    check for check in CHECKS if check.run.__module__ in (numerics.__name__, descent.__name__) or check.run in OF_DTYPES
]


@pytest.mark.parametrize(("case", "check"), pairs(FIRST, CHECKS))
def test_contract(case, check):
    check.run(case.subject())


@pytest.mark.parametrize(("case", "check"), pairs(OTHERS, [check for check in CHECKS if check not in PLACES]))
def test_contract_of_options_and_aliases(case, check):
    check.run(case.subject())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("case", "check"), pairs(FIRST, NUMBERS))
def test_contract_in_float64(case, check):
    check.run(case.subject())


@pytest.mark.full
@pytest.mark.parametrize(("case", "check"), pairs(OTHERS, PLACES))
def test_places_of_options_and_aliases(case, check):
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
