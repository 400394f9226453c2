"""The page for people: what is on offer, and that it says what is not real."""

import datetime as dt
import re
from decimal import Decimal
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from django.utils import timezone

from marketplace.console import strip
from marketplace.core.windows import Window
from scheduler.availability import CurvePoint
from tests.agents.factories import make_node
from tests.marketplace.factories import NOON, a_published_listing, an_owner, hours


def a_point(
    *, number: int = 0, free: int = 4, listed: int = 8, rate: str | None = "2.0"
) -> CurvePoint:
    starts_at = NOON + hours(number)
    return CurvePoint(
        window=Window(starts_at, starts_at + hours(1)),
        rate=None if rate is None else Decimal(rate),
        floor=Decimal("1.7"),
        multiplier=Decimal(1),
        gpus_listed=listed,
        gpus_free=free,
    )


@pytest.fixture(autouse=True)
def _fresh_page() -> None:
    cache.clear()


@pytest.mark.django_db
class TestPage:
    def test_shows_an_offer_with_its_region_and_what_is_free(self, client: Client) -> None:
        owner = an_owner()
        make_node(organization=owner, gpus=2, at=timezone.now())
        a_published_listing(owner=owner, starts_at=timezone.now() - dt.timedelta(hours=1))
        text = client.get("/").content.decode()
        assert "NVIDIA H100 SXM 80 GB" in text
        assert "eu-north" in text
        assert re.search(r"<b>2</b>\s*/ 2", text)
        assert "gpu_model=h100-sxm-80gb" in text

    def test_shows_three_calls_that_can_be_copied_as_they_are(self, client: Client) -> None:
        calls = re.findall(r"<pre[^>]*><code>(.*?)</code>", client.get("/").content.decode(), re.S)
        assert len(calls) == 3
        assert not any("…" in call for call in calls)
        # Both run within one second, and a key that comes twice belongs to the first request.
        keys = re.findall(r"Idempotency-Key: (\S+?)\$", " ".join(calls))
        assert len(set(keys)) == len(keys) == 2
        assert calls[1].startswith("QUOTE=$(")
        assert "$QUOTE" in calls[2]

    def test_says_so_when_nothing_is_on_offer(self, client: Client) -> None:
        assert "Nothing is on offer" in client.get("/").content.decode()

    @pytest.mark.parametrize(
        ("hardware", "payments", "words"),
        [
            (True, True, "Simulated hardware and payments."),
            (True, False, "Simulated hardware."),
            (False, True, "Simulated payments."),
        ],
    )
    def test_says_what_is_not_real(
        self, client: Client, settings: Any, hardware: object, payments: object, words: str
    ) -> None:
        settings.ALLOW_SIMULATED_HARDWARE, settings.SIMULATED_PAYMENTS = hardware, payments
        assert words in client.get("/").content.decode()

    def test_claims_no_simulation_where_all_is_real(self, client: Client, settings: Any) -> None:
        settings.ALLOW_SIMULATED_HARDWARE = settings.SIMULATED_PAYMENTS = False
        assert "Simulated" not in client.get("/").content.decode()

    def test_loads_nothing_from_anywhere(self, client: Client, settings: Any) -> None:
        response = client.get("/")
        text = response.content.decode().replace(settings.BASE_URL, "")
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
        assert "<script" not in text
        assert response["Content-Security-Policy"].startswith(
            "default-src 'none'; style-src 'nonce-"
        )

    def test_gives_each_answer_a_nonce_of_its_own(self, client: Client) -> None:
        first, second = (client.get("/")["Content-Security-Policy"] for _ in range(2))
        assert first != second

    def test_takes_reading_calls_alone(self, client: Client) -> None:
        assert client.post("/").status_code == 405


class TestStrip:
    def test_draws_the_sold_part_of_each_step(self) -> None:
        drawn = strip.draw([a_point(free=8), a_point(number=1, free=6), a_point(number=2, free=0)])
        assert [bar.sold_height for bar in drawn.bars] == [0, 10, 40]
        assert [bar.x for bar in drawn.bars] == [0, 10, 20]

    def test_breaks_the_line_where_nothing_has_a_price(self) -> None:
        drawn = strip.draw(
            [a_point(rate="2"), a_point(number=1, rate=None, free=0), a_point(number=2, rate="4")]
        )
        assert drawn.lines == ("0,36 10,36", "20,4 30,4")

    def test_draws_a_steady_rate_in_the_middle(self) -> None:
        assert strip.draw([a_point(), a_point(number=1)]).lines == ("0,20 10,20 10,20 20,20",)

    def test_draws_no_line_and_no_sale_where_nothing_is_listed(self) -> None:
        drawn = strip.draw([a_point(free=0, listed=0, rate=None)])
        assert drawn.lines == ()
        assert (drawn.bars[0].listed, drawn.bars[0].sold_height) == (False, 0)
