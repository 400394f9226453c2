"""Replay: a quote's price comes out again from what is stored, and a changed figure is found."""

from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from agents.models import Node
from marketplace.models import Listing
from scheduler import prices
from scheduler.models import PriceVersion, Quote
from scheduler.prices import inputs, refresh, replay
from scheduler.prices.packed import pack, unpack
from tests.scheduler.factories import (
    NOW,
    hours,
    lots_of,
    make_listing,
    make_pool,
    make_quote,
    make_reservation,
    window_in,
)

pytestmark = pytest.mark.django_db


def a_dear_quote() -> Quote:
    """Return a quote over sold and idle hours, priced by the third version of a table."""
    make_pool()
    make_reservation(gpus=5, window=window_in(25))
    for n in range(3):
        Node.objects.update(last_report_at=NOW + hours(n))
        refresh.refresh_due(at=NOW + hours(n))
    return make_quote(gpus=3, window=window_in(20, length=20), at=NOW + hours(2))


def reread(quote: Quote) -> Quote:
    return Quote.objects.select_related("price_version").get(pk=quote.pk)


class TestReplay:
    def test_brings_every_figure_out_again(self) -> None:
        quote = a_dear_quote()

        found = replay.replay(quote=reread(quote))

        assert len(lots_of(quote)[0].tariff.segments) == 3
        assert {c.name for c in found} >= {"table", "rate", "lots", "total", "fee"}
        assert [c for c in found if not c.agrees] == []

    def test_does_so_after_the_market_has_moved_on(self) -> None:
        quote = a_dear_quote()
        Listing.objects.update(floor_rate=Decimal(7))
        Node.objects.update(last_report_at=NOW + hours(3))
        refresh.refresh_due(at=NOW + hours(3))

        assert all(c.agrees for c in replay.replay(quote=reread(quote)))

    def test_does_so_for_the_reclaimable_tier(self) -> None:
        owner = make_pool()
        make_listing(
            owner=owner, tier="reclaimable", reclaim_notice_seconds=60, floor_rate=Decimal(1)
        )
        make_reservation(gpus=5, window=window_in(24))
        refresh.refresh_due(at=NOW)

        quote = make_quote(tier="reclaimable")

        assert Decimal("1.176471") < quote.rate < Decimal("2.352942")
        assert Decimal(str(quote.price_breakdown["certainty_premium_rate"])) > 0
        assert all(c.agrees for c in replay.replay(quote=reread(quote)))

    def test_does_so_for_a_quote_from_before_the_first_table(self) -> None:
        make_pool()

        assert all(c.agrees for c in replay.replay(quote=reread(make_quote())))

    def test_finds_a_quote_that_was_changed(self) -> None:
        quote = a_dear_quote()
        Quote.objects.update(total_minor=quote.total_minor - 1)

        assert [c.name for c in replay.replay(quote=reread(quote)) if not c.agrees] == ["total"]

    def test_finds_an_hour_that_was_changed(self) -> None:
        quote = a_dear_quote()
        version = PriceVersion.objects.get(pk=quote.price_version_id)
        rates = unpack(bytes(version.rates), hours=version.hours)
        rates[0, 500] += 1
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")  # past the trigger
            PriceVersion.objects.filter(pk=version.pk).update(
                rates=pack(np.ascontiguousarray(rates))
            )
            cursor.execute("SET LOCAL session_replication_role = origin")

        (found,) = [c for c in replay.replay(quote=reread(quote)) if not c.agrees]

        assert found.name.startswith("table, 1 of 4344 hours")

    def test_repeats_a_version_of_the_first_method_as_it_was_made(self) -> None:
        make_pool()
        refresh.refresh_due(at=NOW)
        Listing.objects.update(floor_rate=Decimal(7))
        Node.objects.update(last_report_at=NOW + hours(1))
        refresh.refresh_due(at=NOW + hours(1))
        made = PriceVersion.objects.order_by("number").last()
        assert made is not None
        was = replace(refresh.inputs_of(made), method_version=1)
        rates = refresh.vectors_of(was).rates
        # The base has risen: the first method lifted every hour to it at once, today's by one step.
        assert (rates >= made.base_micros).all()
        assert unpack(bytes(made.rates), hours=made.hours)[0, 0] == 2_470_589  # 2.352942 × 1.05
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")  # past the trigger
            as_it_was = unpack(bytes(made.rates), hours=made.hours)
            as_it_was[0], as_it_was[1] = rates, refresh.vectors_of(was).targets
            as_it_was[2] = refresh.vectors_of(was).other_tier
            PriceVersion.objects.filter(pk=made.pk).update(
                method_version=1, rates=pack(np.ascontiguousarray(as_it_was))
            )
            cursor.execute("SET LOCAL session_replication_role = origin")
        quote = make_quote(at=NOW + hours(1))

        assert quote.price_version_id == made.pk
        assert all(c.agrees for c in replay.replay(quote=reread(quote)))
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            PriceVersion.objects.filter(pk=made.pk).update(method_version=2)
            cursor.execute("SET LOCAL session_replication_role = origin")
        assert not all(c.agrees for c in replay.replay(quote=reread(quote)))

    def test_refuses_a_formula_that_is_gone(self) -> None:
        make_pool()
        quote = make_quote()
        Quote.objects.update(price_breakdown={"method": "tea_leaves"})

        with pytest.raises(replay.NotReplayable):
            replay.replay(quote=reread(quote))


class TestWorkedExample:
    def test_is_the_one_that_is_published(self) -> None:
        make_pool()
        make_reservation(gpus=4, window=window_in(24, length=1))
        refresh.refresh_due(at=NOW)

        quote = make_quote(gpus=3, window=window_in(23))

        told = quote.price_breakdown
        expected = {
            "base_rate": "2.352942",
            "scarcity_rate": "0.464708",
            "smoothing_rate": "-0.405884",
            "floor_uplift_rate": "0.000000",
            "rate": "2.411766",
            "platform_fee_rate": "0.361765",
            "owner_rate": "2.050001",
            "certainty_premium_rate": "0.058824",
        }
        assert {name: told[name] for name in expected} == expected
        (lot,) = lots_of(quote)
        rates = [segment.rate_micros for segment in lot.tariff.segments]
        assert (quote.total_minor, rates) == (1_447, [2_352_942, 2_470_589])
        published = prices.__doc__ or ""
        for number in [*expected.values(), "3.282356", "2.188237", "14.470593", "14.47"]:
            assert number.replace("-", "−") in published or number == "0.000000"

    def test_can_be_followed_from_what_the_api_publishes(self) -> None:
        make_pool()
        make_reservation(gpus=4, window=window_in(24, length=1))
        refresh.refresh_due(at=NOW)
        quote = make_quote(gpus=3, window=window_in(23))

        found = inputs.of_quote(quote)

        assert found is not None
        idle, sold = found["hours"]
        share = Decimal(found["rule"]["small_pool_share"])
        base = Decimal(found["base_rate"])
        use = Fraction(sold["gpus_sold"], sum(sold["gpus_on_offer_by_floor"]))
        up = Decimal(found["rule"]["up_per_hour"])
        quiet = (share * base).quantize(Decimal("0.000001"), rounding=ROUND_CEILING)
        target = Fraction(quiet) * (1 + use)
        assert 0 <= Fraction(sold["target_rate"]) - target < Fraction(1, 10**6)
        began = Decimal(sold["rate_when_the_hour_began"])
        limit = began + (began * up).quantize(Decimal("0.000001"), rounding=ROUND_FLOOR)
        assert Decimal(sold["rate"]) == min(limit, Decimal(sold["target_rate"]))
        total = quote.gpus * (Decimal(idle["rate"]) + Decimal(sold["rate"]))
        assert round(total * 100) == quote.total_minor


class TestCommand:
    def test_says_that_all_comes_out_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        quote = a_dear_quote()

        call_command("replay_price", quote.pk)

        assert "figures come out again" in capsys.readouterr().out

    def test_exits_with_1_where_a_figure_differs(self, capsys: pytest.CaptureFixture[str]) -> None:
        quote = a_dear_quote()
        Quote.objects.update(rate=quote.rate + 1)

        with pytest.raises(SystemExit):
            call_command("replay_price", quote.pk)

        assert "DIFFERS" in capsys.readouterr().out

    def test_knows_no_quote_of_that_name(self) -> None:
        with pytest.raises(CommandError, match="no quote"):
            call_command("replay_price", "qte_nothing")
