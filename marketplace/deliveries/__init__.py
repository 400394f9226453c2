"""Webhooks: events on their way to the endpoints of organizations, in the Standard Webhooks format."""

from marketplace.deliveries.calling import WebhookAddressRefused
from marketplace.deliveries.endpoints import (
    ENDPOINTS_MAX,
    TooManyEndpoints,
    add,
    enable,
    get,
    get_delivery,
    remove,
    replay,
    resend,
    rotate_secret,
    sent_to,
    stop,
)
from marketplace.deliveries.keeping import prune
from marketplace.deliveries.sending import deliver_due

__all__ = [
    "ENDPOINTS_MAX",
    "TooManyEndpoints",
    "WebhookAddressRefused",
    "add",
    "deliver_due",
    "enable",
    "get",
    "get_delivery",
    "prune",
    "remove",
    "replay",
    "resend",
    "rotate_secret",
    "sent_to",
    "stop",
]
