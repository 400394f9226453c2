"""Stories of what is paid after the reservation: hours added, balances, invoices."""

from billing import added_hours, checkout, invoice_payments
from billing.deposits import collecting
from billing.models import Payment
from marketplace.models import Organization
from scheduler import extensions
from scheduler.details import ReservationDetails
from scheduler.models import Reservation
from tests.billing import debtors
from tests.billing.card_market import BANK, CARD, SAVING
from tests.billing.histories.market import DECLINED, PAYS, Market
from tests.billing.histories.plot import A_FORTNIGHT, Acts
from tests.scheduler import factories


def hours_added(market: Market, name: str, *, lost: bool) -> Acts:
    tenant = market.tenant(name)
    reservation, payment = market.reserve(tenant, SAVING)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    reservation.refresh_from_db()
    quote = extensions.quote(
        organization=tenant,
        reservation_id=reservation.pk,
        ends_at=reservation.ends_at + factories.hours(2),
        max_rate=None,
        at=market.at,
    )
    held = added_hours.extend(
        organization=tenant,
        reservation_id=reservation.pk,
        quote_id=quote.pk,
        with_saved_card=lost,
        saves_card=False,
        at=market.at,
        actor="test",
    )
    more = market.asks(Payment.objects.get(extension=held.pk), lost=lost)
    if not lost:
        market.pays(more, DECLINED, PAYS)


def deposit_unheard(market: Market, name: str) -> Acts:
    tenant = market.tenant(name)
    yield
    yield
    _, payment = _in_two_parts(market, tenant)
    market.pays(payment, PAYS)


def balance(market: Market, name: str, *methods: str) -> Acts:
    tenant = market.tenant(name)
    reservation, payment = _in_two_parts(market, tenant)
    market.pays(payment, PAYS)
    market.learns(payment)
    yield
    yield
    rest = collecting.pay_early(
        organization=tenant, reservation_id=reservation.pk, wishes=CARD, at=market.at
    )
    market.pays(market.asks(rest), *methods)


def invoice_paid(market: Market, name: str, *, by_bank: bool) -> Acts:
    tenant = market.named(debtors.a_debtor(), name)
    quote = factories.make_quote(
        tenant=tenant, window=factories.window_in(A_FORTNIGHT), at=market.at
    )
    sale = debtors.sale_of(debtors.buy(quote, at=market.at))
    yield
    yield
    payment = market.asks(
        invoice_payments.through_provider(
            sale=sale, amount_minor=None, wishes=BANK if by_bank else CARD, at=market.at
        )
    )
    if by_bank:
        market.sends_by_bank(tenant, payment.amount_minor + 777)
    else:
        market.pays(payment, DECLINED, PAYS)


def _in_two_parts(market: Market, tenant: Organization) -> tuple[Reservation, Payment]:
    quote = factories.make_quote(
        tenant=tenant, gpus=8, window=factories.window_in(40 * 24, length=24), at=market.at
    )
    reservation = checkout.purchase(
        organization=tenant,
        quote_id=quote.pk,
        payment_method="card",
        details=ReservationDetails(),
        at=market.at,
        actor="test",
        in_two_parts=True,
    )
    return reservation, market.asks(Payment.objects.get(reservation=reservation))
