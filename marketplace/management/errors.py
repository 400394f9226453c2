"""Refusals that a person reads as one line."""


class PlainError(Exception):
    """A reason to stop that is worth exactly one line and no traceback."""


class StopRequested(BaseException):
    """Somebody pressed Ctrl-C or sent SIGTERM. Not an `Exception`: no handler swallows it."""

    def __init__(self, *, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
