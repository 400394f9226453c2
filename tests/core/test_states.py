"""Tables of arrows."""

import pytest
from django.db.models import TextChoices

from marketplace.core.states import Arrows


class Light(TextChoices):
    RED = "red"
    GREEN = "green"
    OFF = "off"


LIGHT_ARROWS = Arrows(
    initial=(Light.RED,),
    moves={Light.RED: (Light.GREEN, Light.OFF), Light.GREEN: (Light.RED,), Light.OFF: ()},
)


class TestArrows:
    def test_demands_a_row_for_every_status(self):
        with pytest.raises(AssertionError, match="without a row"):
            Arrows(initial=(Light.RED,), moves={Light.RED: (Light.GREEN,), Light.GREEN: ()})

    def test_allows_what_the_table_says_and_nothing_else(self):
        allowed = {(a, b) for a in Light for b in Light if LIGHT_ARROWS.allows(a, b)}

        assert allowed == set(LIGHT_ARROWS)
        assert allowed == {
            (Light.RED, Light.GREEN),
            (Light.RED, Light.OFF),
            (Light.GREEN, Light.RED),
        }

    def test_a_status_without_arrows_is_final(self):
        assert [s for s in Light if LIGHT_ARROWS.is_final(s)] == [Light.OFF]

    def test_draws_itself(self):
        assert LIGHT_ARROWS.as_diagram().splitlines() == [
            "stateDiagram-v2",
            "    [*] --> red",
            "    red --> green",
            "    red --> off",
            "    green --> red",
            "    off --> [*]",
        ]
