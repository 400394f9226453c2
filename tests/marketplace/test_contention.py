"""What PostgreSQL broke off is done again: a few times, all of it, and not inside somebody's transaction."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import RequestFactory

from billing import runs
from marketplace import contention
from marketplace.api import idempotency
from marketplace.models import AuditEvent, IdempotencyRecord, Organization
from tests.factories import LONG_AGO, an_organization
from tests.races.interleaving import Rival

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

DEADLOCK, NOT_SERIALIZED, LOCK_TIMEOUT = "40P01", "40001", "55P03"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "PAUSE_SECONDS_MAX", 0)


def note() -> int:
    """Leave one more line in the trail; return 1."""
    AuditEvent.objects.create(at=LONG_AGO, actor="test", action="thing.done", object_id="x")
    return 1


def notes() -> int:
    return AuditEvent.objects.filter(action="thing.done").count()


def broken_off(code: str, *, times: int) -> Callable[[], int]:
    """Return what leaves a line, and is broken off by PostgreSQL that many times after it has."""
    left = iter(range(times))

    def act() -> int:
        with transaction.atomic():
            note()
            if next(left, None) is not None:
                with connection.cursor() as cursor:
                    cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$")
        return 1

    return act


class TestRepeated:
    @pytest.mark.parametrize("code", [DEADLOCK, NOT_SERIALIZED])
    def test_is_done_once_in_the_end(self, code: str) -> None:
        assert contention.repeated(broken_off(code, times=2), name="test") == 1
        assert notes() == 1

    def test_is_not_tried_for_ever(self) -> None:
        act = broken_off(DEADLOCK, times=contention.TRIES_MAX)
        with pytest.raises(OperationalError):
            contention.repeated(act, name="test")
        assert notes() == 0
        assert act() == 1, "no try was left over"

    def test_is_not_tried_again_after_another_fault(self) -> None:
        act = broken_off(LOCK_TIMEOUT, times=1)
        with pytest.raises(OperationalError):
            contention.repeated(act, name="test")
        assert act() == 1

    def test_is_not_tried_again_inside_a_transaction(self) -> None:
        """What came before it there is undone as well, and only who opened that can begin anew."""
        act = broken_off(DEADLOCK, times=1)
        with pytest.raises(OperationalError), transaction.atomic():
            contention.repeated(act, name="test")
        assert act() == 1


class TestARun:
    def test_does_again_what_was_broken_off_and_keeps_its_neighbours(self) -> None:
        acts = [note, broken_off(DEADLOCK, times=2), note]
        assert runs.one_by_one(acts, lambda act: act(), name="test") == 3
        assert notes() == 3

    def test_leaves_one_that_is_broken_off_each_time(self) -> None:
        acts = [broken_off(DEADLOCK, times=contention.TRIES_MAX), note]
        assert runs.one_by_one(acts, lambda act: act(), name="test") == 1
        assert notes() == 1


class TestACall:
    """Of the API: the answer and its effect are one transaction, and all of that is done again."""

    def call(
        self, action: Callable[[], tuple[int, Any]], *, by: Organization, key: str | None
    ) -> int:
        return idempotency.once(
            request=RequestFactory().post("/v1/things"),
            organization=by,
            key=key,
            request_sha256=idempotency.fingerprint(method="POST", path="/v1/things", body=None),
            action=action,
        ).status_code

    @pytest.mark.parametrize("key", ["k1", None])
    def test_has_one_effect_and_one_answer(self, key: str | None) -> None:
        by, act = an_organization(), broken_off(DEADLOCK, times=2)
        assert self.call(lambda: (200 + act(), {}), by=by, key=key) == 201
        assert notes() == 1

    def test_gives_its_key_back_when_it_was_broken_off_each_time(self) -> None:
        by, act = an_organization(), broken_off(DEADLOCK, times=contention.TRIES_MAX)
        with pytest.raises(OperationalError):
            self.call(lambda: (200 + act(), {}), by=by, key="k1")
        assert not IdempotencyRecord.objects.exists()
        assert notes() == 0

    def test_and_a_rival_in_the_reverse_order_are_both_answered(self) -> None:
        by, first, second = (an_organization() for _ in range(3))

        def lock(organization: Organization) -> None:
            Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)

        def reverse() -> tuple[int, Any]:
            lock(second)
            lock(first)
            return 200 + note(), {}

        rival = Rival(lambda: str(self.call(reverse, by=by, key="k2")))
        tries: list[int] = []

        def act() -> tuple[int, Any]:
            tries.append(1)
            lock(first)
            rival.go()
            lock(second)
            return 200 + note(), {}

        with connection.cursor() as cursor:
            cursor.execute("SET deadlock_timeout = '10ms'")  # it is we who are broken off
        try:
            answer = self.call(act, by=by, key="k1")
        finally:
            with connection.cursor() as cursor:
                cursor.execute("RESET deadlock_timeout")

        assert (answer, rival.outcome(), notes()) == (201, "201", 2)
        assert len(tries) == 2
