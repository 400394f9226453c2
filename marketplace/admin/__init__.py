"""The catalogue, its people and what they are told, for the operator; each room registers its own tables."""

from marketplace.admin import catalogue, webhooks

__all__ = ["catalogue", "webhooks"]
