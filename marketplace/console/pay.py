"""The page on which a tenant pays: the provider's own fields in a frame, so that no card number passes us.

Whoever has the payment's secret may see the page; it lies in the link that the tenant was given.
"""

import secrets
from urllib.parse import urlsplit

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_safe

from billing.models import Payment
from billing.provider_states import PaymentStatus
from marketplace.console.simulated import simulated_parts
from marketplace.core.money import Money

_NOT_PAID = {
    PaymentStatus.FAILED: "This payment has failed. Nothing was taken.",
    PaymentStatus.CANCELLED: "This payment was not made in time. Nothing was taken.",
}


@require_safe
def page(request: HttpRequest, payment_id: str) -> HttpResponse:
    """Show one payment, and the provider's fields while it can be paid."""
    payment = Payment.objects.select_related("reservation").filter(pk=payment_id).first()
    given = request.GET.get("secret", "")
    if payment is None or not constant_time_compare(given, payment.client_secret or "-"):
        raise Http404("there is no such payment")
    returned = request.GET.get("redirect_status", "")
    nonce = secrets.token_urlsafe(16)
    response = render(
        request,
        "console/pay.html",
        {
            "amount": str(Money(payment.amount_minor, payment.currency)),
            "payment": payment,
            "is_payable": payment.status == PaymentStatus.OPEN and not returned,
            "message": _message(payment, returned=returned),
            "publishable_key": settings.STRIPE_PUBLISHABLE_KEY,
            "script_url": settings.STRIPE_JS_URL,
            "simulated": simulated_parts(),
            "nonce": nonce,
        },
    )
    response["Content-Security-Policy"] = _content_policy(nonce=nonce)
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store"
    return response


def _message(payment: Payment, *, returned: str) -> str:
    status = PaymentStatus(payment.status)
    if status == PaymentStatus.SUCCEEDED:
        return "Paid. Thank you."
    if status == PaymentStatus.AUTHORIZED:
        return "The amount is held on your card and taken shortly before the start."
    if status in _NOT_PAID:
        return _NOT_PAID[status]
    if returned:
        return "Your payment is being confirmed. You can close this page."
    return payment.failure_message


def _content_policy(*, nonce: str) -> str:
    """Allow this answer's own script and style, and of other hosts the provider's alone."""
    script = "{0.scheme}://{0.netloc}".format(urlsplit(settings.STRIPE_JS_URL))
    frames = f"{script} https://hooks.stripe.com"
    calls = settings.STRIPE_API_BASE or "https://api.stripe.com"
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}' {script}; style-src 'nonce-{nonce}'; "
        f"frame-src {frames}; connect-src {calls}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
