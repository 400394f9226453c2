"""Webhooks: events on their way to the endpoints of organizations, in the Standard Webhooks format."""

from marketplace.deliveries.calling import WebhookAddressRefused
from marketplace.deliveries.endpoints import (
    ENDPOINTS_MAX,
    TooManyEndpoints,
    add,
    enable,
    get,
    remove,
    replay,
    rotate_secret,
)
from marketplace.deliveries.sending import deliver_due

__all__ = [
    "ENDPOINTS_MAX",
    "TooManyEndpoints",
    "WebhookAddressRefused",
    "add",
    "deliver_due",
    "enable",
    "get",
    "remove",
    "replay",
    "rotate_secret",
]
