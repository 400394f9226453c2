"""Owners' parts of the fees of who left, and what of them went back when the time was sold again."""

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

from django.contrib import admin
from django.utils.html import format_html_join

from billing import tax
from billing.admin.shown import NOT_SET, Shown, ShownInline, link_to, money, whose
from billing.models import FeeShare, Resale, ResalePart
from marketplace.core.money import (
    SECONDS_PER_HOUR,
    Money,
    currency_exponent,
    grouped,
    round_half_even,
)
from scheduler.models import ReleasedPlace
from scheduler.tariffs import MICROS

_LEFT_BY = whose("fee_share__change__reservation__organization", name="left by")
_OWNER = whose("fee_share__owner", name="owner")


def _gpu_hours(gpu_seconds: int) -> str:
    hundredths = round_half_even(Fraction(gpu_seconds * 100, SECONDS_PER_HOUR))
    return f"{Decimal(hundredths).scaleb(-2):,.2f}"


def _slots(slots: Any, *, base: int) -> str:  # noqa: ANN401 - a range of PostgreSQL
    """Return a half-open run of a node's slots as people count GPUs: both ends are in it."""
    first, last = slots.lower - base, slots.upper - 1 - base
    return f"GPU {first}" if first == last else f"GPUs {first} to {last}"


def _period(period: Any) -> str:  # noqa: ANN401 - a range of PostgreSQL
    return f"{period.lower:%Y-%m-%d %H:%M:%S} to {period.upper:%Y-%m-%d %H:%M:%S} UTC"


@admin.display(description="GPU-hours")
def gpu_hours(row: Any) -> str:  # noqa: ANN401 - a resale, or a part of one
    return _gpu_hours(row.gpu_seconds)


@admin.register(FeeShare)
class FeeShareAdmin(Shown):
    """What owners get of the fees of changes; what they got twice goes back by resales."""

    list_display = [
        *("id", whose("change__reservation__organization", name="left by")),
        *(whose("owner", name="owner"), money("amount_minor"), "given_back", "percent"),
        *("release_due_at", "released_at"),
    ]
    list_filter = [("released_at", admin.EmptyFieldListFilter), "release_due_at"]
    search_fields = [
        *("id", "owner__name", "change__id", "change__reservation__id"),
        "change__reservation__organization__name",
    ]
    list_select_related = ["owner", "change__reservation__organization"]
    readonly_fields = ["terms", "given_back", "resold"]
    exclude = ["resale_basis_points"]

    @admin.display(description="terms", ordering="resale_basis_points")
    def terms(self, share: FeeShare) -> str:
        return _terms(share)

    @admin.display(description="to who left", ordering="resale_basis_points")
    def percent(self, share: FeeShare) -> str:
        return f"{tax.percent(share.resale_basis_points)} %"

    @admin.display(description="drawn by resales")
    def given_back(self, share: FeeShare) -> str:
        taken = sum(each.taken_minor for each in share.resales.all())
        return grouped(Money(taken, share.currency))

    @admin.display(description="resales")
    def resold(self, share: FeeShare) -> str:
        rows = ((link_to(each.pk), f"{each.shared_at:%Y-%m-%d}") for each in share.resales.all())
        return format_html_join("", "<div>{}, {}</div>", rows) or "nothing was sold again yet"

    def get_queryset(self, request: Any) -> Any:  # noqa: ANN401 - Django's signature
        return super().get_queryset(request).prefetch_related("resales")


class ResalePartInline(ShownInline):
    """The GPUs and the time in which they were delivered again."""

    model = ResalePart
    verbose_name_plural = "What was sold again"
    fields = ["gpus", "time", gpu_hours]
    readonly_fields = ["gpus", "time"]

    @admin.display(description="GPUs")
    def gpus(self, part: ResalePart) -> str:
        node = part.resale.settlement.lease.node
        return f"{_slots(part.slots, base=node.slot_base)} of {node.hostname}"

    @admin.display(description="time")
    def time(self, part: ResalePart) -> str:
        return _period(part.period)


@admin.register(Resale)
class ResaleAdmin(Shown):
    """What a lease sold again of the time that a tenant had left for a fee, and who got what of it."""

    list_display = [
        *("id", _LEFT_BY, _OWNER, gpu_hours),
        *(money("taken_minor", name="from the owner"), money("share_minor", name="to who left")),
        *("shared_at", "lease"),
    ]
    list_filter = ["shared_at", ("entry", admin.EmptyFieldListFilter)]
    search_fields = [
        *("id", "fee_share__id", "fee_share__change__id", "fee_share__change__reservation__id"),
        *("fee_share__change__reservation__organization__name", "fee_share__owner__name"),
        *("settlement__lease__id", "settlement__lease__reservation__id"),
    ]
    list_select_related = [
        "fee_share__owner",
        "fee_share__change__reservation__organization",
        "settlement__lease",
    ]
    inlines = [ResalePartInline]
    fields = [
        *("id", _LEFT_BY, "change", "released_places", _OWNER, "fee_share", "terms"),
        *("lease", "bought_by", "settlement", gpu_hours, "worth"),
        *("earned", "fee_part", "taken", "share", "to_the_market"),
        *("entry", "shared_at"),
    ]
    readonly_fields = [
        *("change", "released_places", "terms", "lease", "bought_by", "worth"),
        *("earned", "fee_part", "taken", "share", "to_the_market"),
    ]

    @admin.display(description="change by which it was left")
    def change(self, resale: Resale) -> str:
        return link_to(resale.fee_share.change_id)

    @admin.display(description="released places")
    def released_places(self, resale: Resale) -> str:
        """Name the GPUs of the owner that the change gave back, and for which time."""
        return format_html_join("", "<div>{} of {}, {}</div>", _places(resale)) or NOT_SET

    @admin.display(description="terms")
    def terms(self, resale: Resale) -> str:
        return _terms(resale.fee_share)

    @admin.display(description="sold again by")
    def lease(self, resale: Resale) -> str:
        return link_to(resale.settlement.lease_id)

    @admin.display(description="bought by")
    def bought_by(self, resale: Resale) -> str:
        reservation = resale.settlement.lease.reservation
        return format_html_join(
            "",
            "{}, {}",
            [
                (
                    link_to(reservation.organization_id, words=reservation.organization.name),
                    link_to(reservation.pk),
                )
            ],
        )

    @admin.display(description="price of it for who left")
    def worth(self, resale: Resale) -> str:
        """Return what the slice had cost who left, rounded for reading alone."""
        exact = Fraction(resale.worth_micro_seconds, MICROS * SECONDS_PER_HOUR)
        minor = round_half_even(exact * 10 ** currency_exponent(resale.currency))
        return grouped(Money(minor, resale.currency))

    @admin.display(description="earned by the lease for it")
    def earned(self, resale: Resale) -> str:
        return grouped(Money(resale.earned_minor, resale.currency))

    @admin.display(description="owner's part of the fee for it")
    def fee_part(self, resale: Resale) -> str:
        return grouped(Money(resale.fee_part_minor, resale.currency))

    @admin.display(description="got twice, taken from the owner")
    def taken(self, resale: Resale) -> str:
        return grouped(Money(resale.taken_minor, resale.currency))

    @admin.display(description="paid back to who left")
    def share(self, resale: Resale) -> str:
        return grouped(Money(resale.share_minor, resale.currency))

    @admin.display(description="to the market")
    def to_the_market(self, resale: Resale) -> str:
        return grouped(Money(resale.taken_minor - resale.share_minor, resale.currency))


def _places(resale: Resale) -> Iterator[tuple[str, str, str]]:
    places = ReleasedPlace.objects.filter(
        change=resale.fee_share.change_id, node__organization=resale.fee_share.owner_id
    ).select_related("node")
    for each in places.order_by("period", "slots", "pk"):
        name = link_to(each.node_id, words=each.node.hostname)
        yield _slots(each.slots, base=each.node.slot_base), name, _period(each.period)


def _terms(share: FeeShare) -> str:
    """Say who gets what of what the owner gets twice."""
    if not share.resale_basis_points:
        return "nothing goes back to who left"
    return f"{tax.percent(share.resale_basis_points)} % of what the owner gets twice, to who left"
