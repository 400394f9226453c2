"""The one base class of refusals. Each subclass stands beside the verb that raises it."""

from typing import ClassVar


class DomainError(Exception):
    """Refuse something for a reason that a client can act on.

    `code` is stable and documented; HTTP is decided elsewhere, in one table. `pointer` is the RFC 6901
    pointer to the part of the request at fault, where there is one. `extra` goes into the answer.
    """

    code: ClassVar[str] = "domain_error"
    title: ClassVar[str] = "The request was refused"

    def __init__(
        self, detail: str, *, pointer: str | None = None, extra: dict[str, object] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.extra = extra or {}


class InvalidValue(DomainError):
    """A value that can be read but makes no sense here."""

    code = "invalid_value"
    title = "A value does not fit"


class NotFound(DomainError):
    """The object does not exist, or belongs to somebody else: the answers are the same."""

    code = "not_found"
    title = "No such object"


class StateConflict(DomainError):
    """The object is in a state in which this cannot be done, or another writer was faster."""

    code = "state_conflict"
    title = "The object's state does not allow this"
