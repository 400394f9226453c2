"""The payment page in a real browser, with the stand-in's fields in it."""

from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from billing import payments, provider
from billing.models import Payment
from billing.payments import Wishes
from billing.provider_states import PaymentMeans
from marketplace.core.money import Money
from tests.browser.test_market_page import CHROMIUM, browse
from tests.factories import an_organization
from tests.fakes.stripe import StandIn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed on this machine"),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def payment(settings: Any, live_server: Any) -> Any:
    with StandIn() as stand_in:
        settings.BASE_URL = live_server.url
        settings.STRIPE_SECRET_KEY = "sk_test_standin"
        settings.STRIPE_PUBLISHABLE_KEY = "pk_test_standin"
        settings.STRIPE_API_BASE = stand_in.base_url
        settings.STRIPE_JS_URL = f"{stand_in.base_url}/v3/"
        at = timezone.now()
        made = payments.open_top_up(
            organization=an_organization(),
            amount=Money(5000, "usd"),
            wishes=Wishes(means=PaymentMeans.CARD),
            at=at,
        )
        provider.drive_payment(payment_id=made.pk, at=at)
        yield Payment.objects.get(pk=made.pk)


def test_shows_the_providers_fields_without_a_complaint_of_the_browser(
    payment: Payment, tmp_path: Path
) -> None:
    picture = tmp_path / "pay.png"
    url = payments.page_url(payment=payment)
    assert url is not None
    flags = (f"--screenshot={picture}", "--window-size=900,700", "--virtual-time-budget=5000")
    result = browse(url, *flags, profile=tmp_path / "profile")
    assert result.returncode == 0, result.stderr
    assert picture.stat().st_size > 5_000
    assert "Content Security Policy" not in result.stderr
    assert "Uncaught" not in result.stderr
    shown = browse(
        url, "--dump-dom", "--virtual-time-budget=5000", profile=tmp_path / "profile"
    ).stdout
    assert 'aria-label="Card"' in shown
    assert "Card that asks for 3-D Secure" in shown
