"""Money of which nobody knew whose it is, as operators see it."""

from typing import ClassVar

from billing.models.books import Entry


class SuspenseItem(Entry):
    """An entry that put money aside, until two people say whose it is; see `billing.suspense`."""

    class Meta:
        proxy = True
        ordering: ClassVar = ["recorded_at", "id"]
