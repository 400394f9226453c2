"""The rows of closed months keep their words: who changes them raises `LAYOUT`, and digests are made anew."""

import hashlib
import json
import re

import pytest

from billing import focus, invoices
from billing.focus import Dataset, manifests
from tests.billing import factories as books
from tests.billing.focus import world
from tests.billing.focus.test_labels import CLOSED_AT, FINAL

pytestmark = pytest.mark.django_db

# What the rows below come to, by layout: whoever sees this fail for a change of words or columns raises
# `manifests.LAYOUT` and notes the new digest; a change of this world alone notes the new digest.
KNOWN = {1: "51305c20a6b11f88"}
_IDS = re.compile(r"\b([a-z]{3,4})_[0-9a-hjkmnp-tv-z]{26}\b")


def test_the_rows_of_a_closed_month_have_the_words_of_this_layout() -> None:
    tenant = books.taxed(buyer=books.tenant(funds_minor=world.FUNDS_MINOR))
    world.over_the_end_of_a_month(tenant)
    world.late_and_lossy(tenant)
    world.in_two_parts(tenant)
    world.promoted(tenant)
    world.corrected(tenant)
    for month in ("2026-10", "2026-11"):
        invoices.issue_month(organization=tenant, month=month, at=CLOSED_AT)

    told = [
        (version, dataset, sorted(_IDS.sub(r"\1_", json.dumps(row)) for row in rows))
        for version, dataset in sorted(FINAL)
        if dataset != Dataset.BILLING_PERIOD
        and (rows := world.rows(tenant, version=version, dataset=dataset, at=CLOSED_AT))
    ]

    assert [len(rows) for *_, rows in told] == [25, 25, 14]
    digest = hashlib.sha256(json.dumps([told, [*focus.COLUMNS.values()]]).encode()).hexdigest()
    assert {manifests.LAYOUT: digest[:16]} == KNOWN
