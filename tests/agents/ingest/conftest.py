"""A machine that reports, and a grant of it."""

import pytest

from agents.models import Grant
from tests.agents import factories as make
from tests.agents.factories import Machine


@pytest.fixture
def machine() -> Machine:
    return make.make_machine()


@pytest.fixture
def grant(machine: Machine) -> Grant:
    return make.make_grant(node=machine.node)
