"""The ladder of fees: its steps, its versions, and the one formula of every change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.errors import InvalidValue, StateConflict
from marketplace.models import AuditEvent
from scheduler import change_rules
from scheduler.change_rules import DAY_SECONDS, FIRST, RuleWish
from scheduler.models import ChangeRule
from tests.scheduler.factories import NOW

LADDER = FIRST.ladder


class TestLadder:
    @pytest.mark.parametrize(
        ("notice_seconds", "fee"),
        [
            (180 * DAY_SECONDS, 1_000),
            (30 * DAY_SECONDS, 1_000),
            (30 * DAY_SECONDS - 1, 2_500),
            (7 * DAY_SECONDS, 2_500),
            (7 * DAY_SECONDS - 1, 5_000),
            (DAY_SECONDS, 5_000),
            (DAY_SECONDS - 1, 10_000),
            (0, 10_000),
        ],
    )
    def test_is_the_documented_one(self, notice_seconds: int, fee: int) -> None:
        assert change_rules.fee_basis_points(ladder=LADDER, notice_seconds=notice_seconds) == fee


class TestDifference:
    @pytest.mark.parametrize(
        ("before", "after", "fee", "charge", "refund", "kept"),
        [
            (1_000, 0, 1_000, 0, 900, 100),
            (1_000, 400, 5_000, 0, 300, 300),
            (1_000, 0, 10_000, 0, 0, 1_000),
            (1_000, 1_400, 10_000, 400, 0, 0),
            (1_000, 1_000, 10_000, 0, 0, 0),
            (5, 0, 5_000, 0, 3, 2),  # 2.5 goes to the even neighbour
            (0, 0, 0, 0, 0, 0),
        ],
    )
    def test_keeps_its_part_of_what_goes_back_and_none_of_what_is_added(
        self, before: int, after: int, fee: int, charge: int, refund: int, kept: int
    ) -> None:
        moved = change_rules.difference(before=before, after=after, fee_basis_points=fee)
        assert (moved.charge, moved.refund, moved.fee) == (charge, refund, kept)

    @given(
        before=st.integers(min_value=0, max_value=10**12),
        after=st.integers(min_value=0, max_value=10**12),
        fee=st.integers(min_value=0, max_value=10_000),
    )
    def test_adds_up_and_is_never_negative(self, before: int, after: int, fee: int) -> None:
        moved = change_rules.difference(before=before, after=after, fee_basis_points=fee)
        assert min(moved.charge, moved.refund, moved.fee) >= 0
        assert before + moved.charge - moved.refund - moved.fee == after


@pytest.mark.django_db
class TestPublish:
    def wish(self, **changes: object) -> RuleWish:
        values = {
            "ladder": [(DAY_SECONDS, 0), (0, 4_000)],
            "extension_opens_seconds": 10_000,
            "extension_closes_seconds": 600,
            "move_closes_seconds": 3_600,
            **changes,
        }
        return RuleWish(**values)  # type: ignore[arg-type] # the values are of the fields' types

    def test_puts_a_new_version_in_force_and_keeps_the_old_one(self) -> None:
        first = change_rules.current(at=NOW)
        made = change_rules.publish(wish=self.wish(), based_on=1, at=NOW, actor="admin:ada")
        assert (first.version, made.version) == (1, 2)
        assert change_rules.current(at=NOW) == made
        first.refresh_from_db()
        assert first.ladder == [list(step) for step in LADDER]
        event = AuditEvent.objects.get(action="change_rule.published")
        assert (event.actor, event.detail["version"]) == ("admin:ada", 2)

    def test_refuses_to_overwrite_what_somebody_else_published(self) -> None:
        change_rules.publish(wish=self.wish(), based_on=1, at=NOW, actor="admin:ada")
        with pytest.raises(StateConflict, match="meanwhile"):
            change_rules.publish(wish=self.wish(), based_on=1, at=NOW, actor="admin:bob")
        assert ChangeRule.objects.count() == 2

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"ladder": []}, "/ladder"),
            ({"ladder": [(60, 0)]}, "/ladder"),
            ({"ladder": [(0, 0), (60, 100)]}, "/ladder"),
            ({"ladder": [(60, 0), (60, 10), (0, 100)]}, "/ladder"),
            ({"ladder": [(60, 200), (0, 100)]}, "/ladder"),
            ({"ladder": [(60, 0), (0, 10_001)]}, "/ladder"),
            ({"ladder": [(10**9, 0), (0, 100)]}, "/ladder"),
            ({"ladder": [(30 - n, 0) for n in range(31)]}, "/ladder"),
            ({"extension_closes_seconds": 10_000}, "/extension_opens_seconds"),
            ({"extension_opens_seconds": 10**9}, "/extension_opens_seconds"),
            ({"move_closes_seconds": -1}, "/move_closes_seconds"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, changes: dict[str, object], pointer: str) -> None:
        with pytest.raises(InvalidValue) as refusal:
            change_rules.publish(wish=self.wish(**changes), based_on=1, at=NOW, actor="test")
        assert refusal.value.pointer == pointer
        assert ChangeRule.objects.count() <= 1
