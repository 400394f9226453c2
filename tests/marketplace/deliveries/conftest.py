"""Who is called, and by whom."""

from collections.abc import Iterator

import pytest

from marketplace.models import Organization
from tests.factories import an_organization
from tests.marketplace.deliveries.callbacks import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def tenant() -> Organization:
    return an_organization()
