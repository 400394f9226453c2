"""One effect per Idempotency-Key, whatever happens in between."""

import datetime as dt
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils import timezone

from marketplace.api import idempotency
from marketplace.api.idempotency import (
    IdempotencyInFlight,
    IdempotencyKeyMalformed,
    IdempotencyKeyRequired,
    IdempotencyKeyReused,
)
from marketplace.core.errors import StateConflict
from marketplace.models import AuditEvent, IdempotencyRecord, Organization
from marketplace.tasks import prune_idempotency_records
from tests.factories import LONG_AGO, an_organization


def call(
    *,
    organization: Organization,
    key: str | None = "k1",
    body: object = None,
    action: Callable[[], tuple[int, Any]] | None = None,
    then: Callable[[], tuple[int, Any]] | None = None,
) -> HttpResponse:
    request = RequestFactory().post("/v1/reservations")
    return idempotency.once(
        request=request,
        organization=organization,
        key=key,
        request_sha256=idempotency.fingerprint(method="POST", path="/v1/reservations", body=body),
        action=action or effect(organization),
        then=then,
    )


def effect(organization: Organization) -> Callable[[], tuple[int, Any]]:
    """Return an action whose doing can be counted."""

    def act() -> tuple[int, Any]:
        event = AuditEvent.objects.create(
            at=LONG_AGO, actor="test", action="thing.done", object_id="x", organization=organization
        )
        return 201, {"z": "kept in this order", "a": event.pk}

    return act


def effects(organization: Organization) -> int:
    return AuditEvent.objects.filter(organization=organization, action="thing.done").count()


@pytest.mark.django_db
class TestKey:
    def read(self, *, key: str | None = None, required: bool = True) -> str | None:
        headers = {} if key is None else {"Idempotency-Key": key}
        return idempotency.key_of(RequestFactory().post("/", headers=headers), required=required)

    def test_is_required_where_capacity_or_money_moves(self) -> None:
        with pytest.raises(IdempotencyKeyRequired):
            self.read()

    def test_is_optional_elsewhere(self) -> None:
        assert self.read(required=False) is None

    @pytest.mark.parametrize("key", ["", " a", "a ", "x" * 256, "ü", "a\tb"])
    def test_is_refused_when_it_cannot_be_kept(self, key: str) -> None:
        with pytest.raises(IdempotencyKeyMalformed):
            self.read(key=key)

    @pytest.mark.parametrize("key", ["a", "x" * 255, "order 7 / try 1"])
    def test_is_taken_as_it_is(self, key: str) -> None:
        assert self.read(key=key) == key


@pytest.mark.django_db
class TestOnce:
    def test_answers_the_same_call_with_the_first_answer(self, organization: Organization) -> None:
        first, again = (call(organization=organization) for _ in range(2))
        assert (first.status_code, first.content) == (again.status_code, again.content)
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"
        assert effects(organization) == 1

    def test_acts_each_time_without_a_key(self, organization: Organization) -> None:
        for _ in range(2):
            assert call(organization=organization, key=None).status_code == 201
        assert effects(organization) == 2

    def test_knows_a_body_by_its_values(self, organization: Organization) -> None:
        call(organization=organization, body={"a": 1, "b": 2})
        assert (
            "Idempotent-Replayed" in call(organization=organization, body={"b": 2, "a": 1}).headers
        )

    def test_refuses_the_key_for_another_body(self, organization: Organization) -> None:
        call(organization=organization, body={"a": 1})
        with pytest.raises(IdempotencyKeyReused):
            call(organization=organization, body={"a": True})
        assert effects(organization) == 1

    def test_keeps_keys_of_organizations_apart(self, organization: Organization) -> None:
        call(organization=organization)
        assert "Idempotent-Replayed" not in call(organization=an_organization()).headers

    def test_keeps_a_refusal_of_the_verb_and_nothing_that_it_did(
        self, organization: Organization
    ) -> None:
        act = effect(organization)

        def refuse() -> tuple[int, Any]:
            act()
            raise StateConflict("too late", pointer="/quote_id")

        first = call(organization=organization, action=refuse)
        again = call(organization=organization)
        assert first.status_code == again.status_code == 409
        assert first.content == again.content
        assert again.headers["Content-Type"] == "application/problem+json"
        assert json.loads(again.content)["code"] == "state_conflict"
        assert effects(organization) == 0

    @pytest.mark.parametrize("fault", [ZeroDivisionError(), OperationalError()])
    def test_gives_the_key_back_after_a_fault_of_ours(
        self, organization: Organization, fault: Exception
    ) -> None:
        def fall_over() -> tuple[int, Any]:
            raise fault

        with pytest.raises(type(fault)):
            call(organization=organization, action=fall_over)
        assert call(organization=organization).status_code == 201

    def test_refuses_while_the_first_call_runs(self, organization: Organization) -> None:
        def ask_again() -> tuple[int, Any]:
            with pytest.raises(IdempotencyInFlight) as caught:
                call(organization=organization)
            assert caught.value.extra["retry_after_seconds"] == 1
            return effect(organization)()

        assert call(organization=organization, action=ask_again).status_code == 201
        assert effects(organization) == 1


@pytest.mark.django_db
class TestClaim:
    """A process that died between claim and effect, and one that was only thought dead."""

    def claim_of_a_dead_process(self, organization: Organization, *, seconds_left: int) -> None:
        IdempotencyRecord.objects.create(
            organization=organization,
            key="k1",
            request_sha256=idempotency.fingerprint(
                method="POST", path="/v1/reservations", body=None
            ),
            created_at=timezone.now(),
            locked_until=timezone.now() + dt.timedelta(seconds=seconds_left),
        )

    def test_blocks_the_key_for_a_while(self, organization: Organization) -> None:
        self.claim_of_a_dead_process(organization, seconds_left=5)
        with pytest.raises(IdempotencyInFlight):
            call(organization=organization)

    def test_is_taken_over_after_that(self, organization: Organization) -> None:
        self.claim_of_a_dead_process(organization, seconds_left=-1)
        assert call(organization=organization).status_code == 201
        assert "Idempotent-Replayed" in call(organization=organization).headers
        assert effects(organization) == 1

    def test_taken_over_from_a_slow_process_costs_that_process_its_effect(
        self, organization: Organization
    ) -> None:
        act = effect(organization)

        def be_slow() -> tuple[int, Any]:
            IdempotencyRecord.objects.update(locked_until=timezone.now() - dt.timedelta(seconds=1))
            assert call(organization=organization).status_code == 201
            return act()

        with pytest.raises(IdempotencyInFlight):
            call(organization=organization, action=be_slow)


@pytest.mark.django_db
class TestAnswerAfterTheCommit:
    """Where others are called once the effect is committed, what is heard is the answer after that."""

    def test_is_what_repetitions_hear(self, organization: Organization) -> None:
        first = call(organization=organization, then=lambda: (201, {"paid": True}))
        again = call(organization=organization, then=lambda: (201, {"paid": False}))
        assert first.content == again.content == b'{"paid":true}'
        assert again.headers["Idempotent-Replayed"] == "true"
        assert effects(organization) == 1

    def test_is_not_forestalled_by_who_asks_meanwhile(self, organization: Organization) -> None:
        def ask_again() -> tuple[int, Any]:
            with pytest.raises(IdempotencyInFlight):
                call(organization=organization)
            return 201, {"paid": True}

        first = call(organization=organization, then=ask_again)
        assert call(organization=organization).content == first.content

    def test_is_nobodys_once_somebody_else_has_heard_the_first_one(
        self, organization: Organization
    ) -> None:
        heard: list[bytes] = []

        def take_too_long() -> tuple[int, Any]:
            claims = IdempotencyRecord.objects.filter(organization=organization)
            claims.update(locked_until=timezone.now() - dt.timedelta(seconds=1))
            heard.append(call(organization=organization).content)
            return 201, {"paid": True}

        heard.append(call(organization=organization, then=take_too_long).content)
        heard.append(call(organization=organization).content)
        assert len(set(heard)) == 1
        assert heard[0] != b'{"paid":true}'
        assert effects(organization) == 1

    def test_that_never_comes_leaves_the_first_one(self, organization: Organization) -> None:
        def fall_over() -> tuple[int, Any]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            call(organization=organization, then=fall_over)
        assert call(organization=organization).status_code == 201
        assert effects(organization) == 1


@pytest.mark.django_db(transaction=True)
class TestParallelCalls:
    CALLS = 50

    def test_with_one_key_have_one_effect_and_one_answer(self) -> None:
        organization = an_organization()
        gate = threading.Barrier(self.CALLS)

        def insist(_number: int) -> tuple[int, bytes]:
            gate.wait(timeout=30)
            try:
                while True:
                    try:
                        response = call(organization=organization)
                    except IdempotencyInFlight:
                        continue
                    return response.status_code, response.content
            finally:
                connection.close()

        with ThreadPoolExecutor(self.CALLS) as pool:
            answers = set(pool.map(insist, range(self.CALLS)))
        assert len(answers) == 1
        assert effects(organization) == 1

    def test_without_a_key_have_an_effect_each(self) -> None:
        """The twin: the same calls without the guard."""
        organization = an_organization()

        def ask(_number: int) -> int:
            try:
                return call(organization=organization, key=None).status_code
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(8))) == {201}
        assert effects(organization) == 8


@pytest.mark.django_db
class TestPrune:
    def test_forgets_answers_after_seven_days(self, organization: Organization) -> None:
        call(organization=organization, key="old")
        call(organization=organization, key="new")
        IdempotencyRecord.objects.filter(key="old").update(
            created_at=timezone.now() - dt.timedelta(days=7, seconds=1)
        )
        assert prune_idempotency_records() == 1
        assert list(IdempotencyRecord.objects.values_list("key", flat=True)) == ["new"]
