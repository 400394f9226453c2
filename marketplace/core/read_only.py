"""What the admin shows and nobody edits: states move by verbs alone, and evidence stands."""

from django.db.models import Model
from django.http import HttpRequest


class ReadOnly:
    """Refuse to add, change and delete, whoever asks; mixed into admin classes and their inlines."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
