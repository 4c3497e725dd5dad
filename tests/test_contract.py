import pytest

from novoclip.testing import CHECKS, places
from tests.cases import CASES, FULL_CASES


def pairs(cases, checks):
    return [
        pytest.param(case, check, id=f"{check.name}-{case.name}")
        for case in cases
        for check in checks
        if check.applies(case.subject())
    ]


@pytest.mark.parametrize(("case", "check"), pairs(CASES, CHECKS))
def test_contract(case, check):
    check.run(case.subject())


# Where a transform runs does not depend on float64, nor do options or aliases: that is left to the full product.
NUMERICAL = [check for check in CHECKS if check.run.__module__ != places.__name__]
FIRST = [case for case in CASES if case.arguments is case.entry.examples[0] and not case.name.startswith("scale_by_")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("case", "check"), pairs(FIRST, NUMERICAL))
def test_contract_in_float64(case, check):
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
