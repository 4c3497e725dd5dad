import pytest

from novoclip.testing import CHECKS
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("case", "check"), pairs(CASES, CHECKS))
def test_contract_in_float64(case, check):
    check.run(case.subject())


@pytest.mark.full
@pytest.mark.parametrize(("case", "check"), pairs(FULL_CASES, CHECKS))
def test_contract_over_the_full_product(case, check):
    check.run(case.subject())
