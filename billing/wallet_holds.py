"""Prepaid money that is kept for an order while a second person decides: held, then spent or given back.

A hold takes the price with its tax out of the wallet when the order is asked for, so that no other order
spends it meanwhile. It is the tenant's own money, as far as there is some: what a promotion would have to pay
is not held, and is missed if it is gone by then. An order spends promotions first all the same; what they
pay of a held price goes back to the wallet with it.

A hold is resolved once: by the entry that buys, which takes from it what the order costs, or by the one that
gives all of it back, because the order was refused, paid in another way, or not made in time.
"""

import datetime as dt

from django.db import transaction
from django.db.models import Sum

from billing import accounts, ledger, parking, promotions, runs, top_up_disputes
from billing.models import Entry, PurchaseRequest, WalletHold, WalletHoldQuerySet
from billing.states import AccountKind, EntryKind, HoldResolution
from marketplace.core.money import Money
from marketplace.models import Organization

Row = tuple[ledger.AccountRef, ledger.AccountRef, int]  # debited, credited, amount
VOIDS_PER_RUN_MAX = 500  # about five seconds of work; the next tick takes the rest


def account(held: WalletHold) -> ledger.AccountRef:
    """Return the name of what is held for one request."""
    return accounts.of_object(
        kind=AccountKind.HOLD,
        object_id=held.purchase_request_id,
        currency=held.currency,
        organization=held.purchase_request.organization,
    )


@transaction.atomic
def hold(*, request: PurchaseRequest, price: Money, at: dt.datetime) -> WalletHold | None:
    """Keep a price with its tax for a request until its quote expires; None where promotions pay all of it.

    The caller has locked the request, and holds for it once.

    :raises ledger.InsufficientFunds: with the missing amount, when wallet and promotions do not cover it.
    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    organization, currency = request.organization, price.currency
    top_up_disputes.square(organization=organization, at=at)
    given = promotions.lock_minor(organization=organization, currency=currency, at=at)
    purse = accounts.wallet(organization=organization, currency=currency)
    ledger.require_funds(account=purse, amount=max(price.amount_minor - given, 0))
    amount_minor = min(price.amount_minor, ledger.kept_balance(account=purse))
    if not amount_minor:
        return None
    held = WalletHold(
        purchase_request=request,
        amount_minor=amount_minor,
        currency=currency,
        held_until=request.expires_at,
        created_at=at,
    )
    held.entry = ledger.post(
        idempotency_key=f"hold:{request.pk}",
        kind=EntryKind.HOLD,
        subject_id=request.pk,
        effective_at=at,
        legs=ledger.transfer(debited=purse, credited=account(held), amount=amount_minor),
    )
    held.save(force_insert=True)
    return held


def open_of(*, quote_id: str) -> WalletHold | None:
    """Return what is held for the order of a quote, locked until the caller's transaction ends."""
    return _locked().filter(purchase_request__quote_id=quote_id).first()


def captured_minor(held: WalletHold | None, *, of_minor: int) -> int:
    """Return which part of an amount a hold pays; 0 where nothing is held."""
    return min(held.amount_minor, of_minor) if held is not None else 0


def rows(held: WalletHold | None, *, payer: ledger.AccountRef, captured_minor: int) -> list[Row]:
    """Return what a hold pays in the payer's place, as a row for `ledger.differences`."""
    return [(account(held), payer, captured_minor)] if held is not None else []


def resolve(held: WalletHold, *, bought_by: Entry, captured_minor: int, at: dt.datetime) -> None:
    """Note that an entry has bought with a hold, and give back what it left of it."""
    if captured_minor < held.amount_minor:
        _give_back(held, amount_minor=held.amount_minor - captured_minor, at=at)
    _close(held, resolution=HoldResolution.CAPTURED, entry=bought_by, at=at)


@transaction.atomic
def void(held: WalletHold, *, at: dt.datetime) -> None:
    """Give all that is held back to the wallet; the caller has locked the hold.

    :raises parking.MoneyParked: while the tenant's money is parked.
    """
    entry = _give_back(held, amount_minor=held.amount_minor, at=at)
    _close(held, resolution=HoldResolution.VOIDED, entry=entry, at=at)


def void_of(*, request: PurchaseRequest, at: dt.datetime) -> None:
    """Give back what is held for a request that was refused; parked money stays for `void_due`."""
    held = _locked().filter(purchase_request=request).first()
    if held is not None and not parking.is_parked(organizations=[request.organization]):
        void(held, at=at)


def void_due(*, at: dt.datetime) -> int:
    """Give back what is held for orders that cannot be made any more; return how many holds that were."""
    is_due = WalletHold.objects.due(at=at).exclude(
        purchase_request__organization__in=parking.parked()
    )
    ids = is_due.order_by("held_until").values_list("pk", flat=True)[:VOIDS_PER_RUN_MAX]
    return runs.one_by_one(ids, lambda pk: _void_due(pk, at=at), name="void_holds")


def held_minor(*, organization: Organization, currency: str) -> int:
    """Return what is held of a tenant's wallet now, in minor units."""
    rows = WalletHold.objects.open().filter(
        purchase_request__organization=organization, currency=currency
    )
    return int(rows.aggregate(sum=Sum("amount_minor"))["sum"] or 0)


def _void_due(pk: str, *, at: dt.datetime) -> bool:
    held = _locked(skips=True).due(at=at).filter(pk=pk).first()
    if held is None:
        return False  # somebody else is at it, or was
    void(held, at=at)
    return True


def _locked(*, skips: bool = False) -> WalletHoldQuerySet:
    rows = WalletHold.objects.open().select_related("purchase_request__organization")
    return rows.select_for_update(no_key=True, skip_locked=skips, of=("self",))


def _give_back(held: WalletHold, *, amount_minor: int, at: dt.datetime) -> Entry:
    request = held.purchase_request
    return ledger.post(
        idempotency_key=f"void:{request.pk}",
        kind=EntryKind.VOID,
        subject_id=request.pk,
        effective_at=at,
        legs=ledger.transfer(
            debited=account(held),
            credited=accounts.wallet(organization=request.organization, currency=held.currency),
            amount=amount_minor,
        ),
    )


def _close(held: WalletHold, *, resolution: HoldResolution, entry: Entry, at: dt.datetime) -> None:
    """Resolve a hold by an entry; the database refuses a second resolution."""
    held.resolution, held.resolved_by, held.resolved_at = resolution, entry, at
    held.save(update_fields=["resolution", "resolved_by", "resolved_at"])
