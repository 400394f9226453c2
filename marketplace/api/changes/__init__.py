"""Changes of what was bought, each a quote and then the deed: leave, a later end, another window."""

from marketplace.api.changes.answers import ChangeSerializer
from marketplace.api.changes.extensions import ExtensionQuoteView, ExtensionsView, ExtensionView
from marketplace.api.changes.views import (
    CancellationQuoteView,
    CancellationView,
    ChangeQuoteView,
    ChangesView,
    ChangeView,
)

__all__ = [
    "CancellationQuoteView",
    "CancellationView",
    "ChangeQuoteView",
    "ChangeSerializer",
    "ChangeView",
    "ChangesView",
    "ExtensionQuoteView",
    "ExtensionView",
    "ExtensionsView",
]
