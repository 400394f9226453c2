"""The file of 1.2 passes the official validator, but for the defects that it is known to have."""

import pytest

from billing import focus
from billing.focus import Dataset, Version
from tests.billing.focus import validator, world

pytestmark = [pytest.mark.slow, pytest.mark.django_db]

# Of the 578 rules of 1.2 the rest is not for machines, or about features that this market does not have.
PASSED_AT_LEAST = 290


@pytest.mark.timeout(validator.INSTALL_LIMIT_SECONDS + 300)
def test_the_official_validator_finds_nothing_but_its_own_defects(tmp_path) -> None:
    python = validator.find_python()
    if python is None:
        pytest.skip("there is no Python 3.12 here, and focus-validator 2.2.1 runs on no other")
    validator.install(python)
    tenant = world.lived_in()
    broken = set()
    for month in ("2026-10", "2026-11"):
        file = tmp_path / f"{month}.csv"
        file.write_text(
            "".join(
                focus.lines(
                    organization=tenant,
                    month=month,
                    version=Version.V1_2,
                    dataset=Dataset.COST_AND_USAGE,
                    at=world.LATER,
                )
            ),
            newline="",
        )
        failed, passed = validator.failed_rules(file)
        assert failed <= set(validator.DEFECTS), month
        assert passed >= PASSED_AT_LEAST
        broken |= failed
    # A defect that is mended leaves the list: it would hide one of ours.
    assert broken == set(validator.DEFECTS)


@pytest.mark.timeout(validator.INSTALL_LIMIT_SECONDS + 300)
def test_the_official_validator_sees_a_broken_file(tmp_path) -> None:
    python = validator.find_python()
    if python is None:
        pytest.skip("there is no Python 3.12 here, and focus-validator 2.2.1 runs on no other")
    validator.install(python)
    tenant = world.lived_in()
    text = "".join(
        focus.lines(
            organization=tenant,
            month="2026-11",
            version=Version.V1_2,
            dataset=Dataset.COST_AND_USAGE,
            at=world.LATER,
        )
    )
    file = tmp_path / "broken.csv"
    file.write_text(text.replace(",USD,", ",dollars,"), newline="")
    failed, _ = validator.failed_rules(file)
    assert "BillingCurrency-C-003-M" in failed
