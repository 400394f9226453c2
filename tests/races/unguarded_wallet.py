"""The web application that looks into no wallet before it takes GPUs: for the twin of the race alone."""

from marketplace.wsgi import application

# isort: split
# Models can be loaded once the application is.
from billing import ledger

__all__ = ["application"]


def _require_nothing(**_: object) -> None:
    return None


ledger.require_funds = _require_nothing
