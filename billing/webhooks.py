"""What the provider calls us with: verified as it came, stored once, and worked off later by `inbox`."""

import datetime as dt

from billing import inbox
from billing import stripe_gateway as gateway
from billing.provider_values import BadSignature
from marketplace.core.errors import DomainError

# The provider's largest events are invoices of hundreds of lines, about 100 KiB.
BODY_BYTES_MAX = 256 * 1024


class WebhookRefused(DomainError):
    """The body was not signed by the provider with one of our secrets, or too long ago."""

    code = "webhook_refused"
    title = "The signature does not fit"


def receive(*, body: bytes, signature: str, at: dt.datetime) -> bool:
    """Store an event that the provider sent; say whether it is news. Nothing is done about it here.

    :raises WebhookRefused: when the provider did not sign it.
    """
    try:
        event = gateway.verified_event(body=body, signature=signature, at=at)
    except BadSignature as error:
        raise WebhookRefused(str(error)) from error
    return inbox.store(event=event, source="webhook", at=at)
