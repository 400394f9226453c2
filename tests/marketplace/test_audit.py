"""The trail of the catalogue."""

import pytest

from marketplace import audit
from marketplace.models import AuditEvent
from tests.marketplace.factories import NOON

pytestmark = pytest.mark.django_db


class TestRecord:
    def test_cuts_an_actor_that_is_too_long_instead_of_losing_the_change(self) -> None:
        audit.record(
            at=NOON,
            actor="x" * 300,
            action="listing.created",
            object_id="lst_1",
            organization=None,
            detail={},
        )
        assert AuditEvent.objects.get().actor == "x" * 100
