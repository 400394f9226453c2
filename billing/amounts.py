"""What a lease costs and what becomes of that: exact values, each rounded once, the rest differences.

A lease's part of the reservation's price is the difference of two rounded sums over the leases in the order
of their ids, taken of everything the reservation bought. So a part depends on no later lease, and the parts
of leases that make up the whole add up to the price exactly. Hours of a lease are divided the same way.
"""

from dataclasses import dataclass
from fractions import Fraction

from billing.deliveries import Delivery
from marketplace.core.money import currency_exponent, round_half_even, share_of
from scheduler.lots import Lots
from scheduler.models import Lease, Reservation

BASIS_POINTS = 10_000
WHOLE = Fraction(1)


class LeasesExceedReservation(Exception):
    """The leases promise more than was bought: no division of the price would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """A lease's part of the price and what becomes of it, in minor units.

    `bought = earned + refunded`, `earned = owner + fee`.
    """

    bought: int
    earned: int
    fee: int
    owner: int
    refunded: int


def part_of_price(*, lease: Lease) -> int:
    """Return the lease's part of what the reservation cost, in minor units.

    :raises LeasesExceedReservation: when this lease and those before it promise more than was bought.
    """
    reservation = lease.reservation
    whole = Lots.from_json(reservation.lots).value(window=reservation.window)
    earlier = list(reservation.leases.filter(pk__lt=lease.pk))
    before = sum((worth_bought(lease=each) for each in earlier), Fraction(0))
    until = before + worth_bought(lease=lease)
    seconds = sum(each.gpu_seconds_bought for each in (*earlier, lease))
    if until > whole or seconds > reservation.gpus * reservation.window.seconds:
        raise LeasesExceedReservation(f"{reservation.id}: {seconds} GPU-seconds, worth {until}")
    total = reservation.total_minor
    return round_half_even(total * until / whole) - round_half_even(total * before / whole)


def worth_bought(*, lease: Lease) -> Fraction:
    """Return what the whole of a lease costs by the lots of its GPUs, exact, in major units."""
    lots = Lots.from_json(lease.reservation.lots)
    return lots.value_of(numbers=lease.lot_numbers, window=lease.window)


def share_delivered(*, lease: Lease, worth: Fraction) -> Fraction:
    """Return which part of a lease's worth something is, at most all of it."""
    return min(worth / worth_bought(lease=lease), WHOLE)


def floor_minor(*, reservation: Reservation, owed: Fraction) -> int:
    """Return what owners' floors ask, exact in major units, in minor units: the least that is received."""
    return round_half_even(owed * 10 ** currency_exponent(reservation.currency))


def amounts_of(
    *, bought_minor: int, delivered: Fraction, fee_basis_points: int, floor: int = 0
) -> Amounts:
    """Divide a lease's part of the price by the share of it that was delivered.

    Two roundings, and differences for the rest. The owner never receives less than `floor`, where what was
    earned allows it: rounding the fee up must not eat into it.
    """
    earned = round_half_even(bought_minor * delivered)
    fee = share_of(total_minor=earned, part=fee_basis_points, whole=BASIS_POINTS)
    fee = min(fee, max(earned - floor, 0))
    return Amounts(
        bought=bought_minor,
        earned=earned,
        fee=fee,
        owner=earned - fee,
        refunded=bought_minor - earned,
    )


def amounts_for(*, lease: Lease, delivery: Delivery) -> Amounts:
    """Return what becomes of a lease's part of the price by what was delivered of it.

    :raises LeasesExceedReservation: when the leases promise more than the reservation bought.
    """
    return amounts_of(
        bought_minor=part_of_price(lease=lease),
        delivered=share_delivered(lease=lease, worth=delivery.worth),
        fee_basis_points=lease.reservation.fee_basis_points,
        floor=floor_minor(reservation=lease.reservation, owed=delivery.floor),
    )
