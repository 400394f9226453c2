"""A share of time that was left and sold again, as its parties see it over HTTP."""

import csv
import datetime as dt
import io
from typing import Any

import pytest
import time_machine
from django.test import Client

from agents.models import Node
from billing import releases, settlements
from billing.models import Settlement
from marketplace.models import Organization
from scheduler import leases, reservations
from scheduler.models import Lease, Reservation
from tests.api.world import a_fleet, a_new_key, a_quote, a_reservation, a_window, fund
from tests.conftest import ApiClient
from tests.factories import a_key, an_organization
from tests.scheduler.factories import say_handed_over, say_returned, seconds

pytestmark = pytest.mark.django_db

BEGUN = dt.datetime(2026, 12, 1, 9, tzinfo=dt.UTC)


@pytest.fixture
def clock() -> Any:
    with time_machine.travel(BEGUN, tick=False) as traveller:
        yield traveller


def key_of(organization: Organization) -> ApiClient:
    _, secret = a_key(organization=organization)
    return ApiClient(secret=secret)


def as_file(owner: Organization, *, form: str) -> bytes:
    """Return an owner's statement as CSV or PDF."""
    _, secret = a_key(organization=owner)
    answer = Client().get(
        f"/v1/owner/statements/2026-12?format={form}",
        headers={"Authorization": f"Bearer {secret}"},
    )
    assert answer.status_code == 200
    return bytes(answer.content)


def deliver(reservation_id: str) -> Settlement:
    """Let the nodes hand over and return in time, and settle."""
    reservation = Reservation.objects.get(pk=reservation_id)
    Node.objects.update(last_report_at=reservation.starts_at)
    reservations.start_due(at=reservation.starts_at)
    lease = Lease.objects.get(reservation=reservation)
    say_handed_over(lease, at=lease.starts_at)
    leases.advance(at=reservation.starts_at + seconds(5))
    leases.advance(at=reservation.ends_at)
    say_returned(lease, at=lease.ends_at)
    leases.advance(at=reservation.ends_at + seconds(5))
    reservations.finish_due(at=reservation.ends_at + seconds(5))
    settlements.settle_ended(at=reservation.ends_at + seconds(900))
    return Settlement.objects.get(lease=lease)


def test_leave_another_buys_and_a_share_comes_back(
    api: ApiClient, organization: Organization, clock: Any
) -> None:
    node = a_fleet(gpus=8)
    window = a_window(in_hours=47, hours=2)
    fund(organization, amount_minor=100_000)
    left = a_reservation(api, quote=a_quote(api, gpus=8, window=window))
    terms = api.post(f"/v1/reservations/{left['id']}/cancellation-quote", {}).json
    path = f"/v1/reservations/{left['id']}/cancellation"
    change = api.post(path, {"quote_id": terms["id"]}, key=a_new_key()).json
    fee = change["fee"]["amount_minor"]
    assert fee > 0
    before = api.get("/v1/wallet").json["balance"]["amount_minor"]

    buyer = an_organization()
    fund(buyer, amount_minor=100_000)
    other = key_of(buyer)
    sold = a_reservation(other, quote=a_quote(other, gpus=8, window=window))
    settled = deliver(sold["id"])
    releases.release_due(at=settled.release_due_at)
    clock.move_to(settled.release_due_at + dt.timedelta(minutes=1))

    # Of the owner's part of the fee four fifths: 85 % of it, and 80 % of that.
    rules = api.get("/v1/market").json
    assert rules["resale_share_basis_points"] == 8000
    share = api.get("/v1/wallet").json["balance"]["amount_minor"] - before
    assert 0 < share == round(round(fee * 0.85) * 0.8)
    entry = api.get("/v1/wallet/entries").json["data"][0]
    assert (entry["kind"], entry["amount"]["amount_minor"]) == ("resale", share)
    assert entry["subject_id"] == change["id"]
    told = [
        each for each in api.get("/v1/events").json["data"] if each["kind"] == "resale.credited"
    ]
    assert [(each["object_id"], each["data"]["share_minor"]) for each in told] == [
        (left["id"], share)
    ]
    assert sold["id"] not in str(told)
    bill = api.get(f"/v1/reservations/{left['id']}/bill").json
    assert bill["credits"]["amount_minor"] == share
    month = api.get(f"/v1/bills/{settled.release_due_at:%Y-%m}").json
    assert month["total"]["credits"]["amount_minor"] == share
    assert "resale" not in {e["kind"] for e in other.get("/v1/wallet/entries").json["data"]}

    seller = key_of(node.organization)
    earnings = seller.get(
        "/v1/owner/earnings", **{"from": "2026-12-01T00:00:00Z", "to": "2027-01-01T00:00:00Z"}
    ).json["total"]
    taken = earnings["resales"]["amount_minor"]
    assert taken == earnings["fee_shares"]["amount_minor"] == round(fee * 0.85)
    assert earnings["net"]["amount_minor"] == settled.owner_minor
    text = as_file(node.organization, form="csv").decode()
    assert [
        row["amount_minor"] for row in csv.DictReader(io.StringIO(text)) if row["line"] == "resale"
    ] == [str(-taken)]
    assert as_file(node.organization, form="pdf").startswith(b"%PDF")
    statement = seller.get("/v1/owner/statements/2026-12").json
    (line,) = (each for each in statement["lines"] if each["kind"] == "resale")
    assert (line["amount"]["amount_minor"], line["reference"]) == (-taken, settled.lease_id)
    payable = seller.get("/v1/payouts").json["data"]
    assert sum(each["amount"]["amount_minor"] for each in payable) == settled.owner_minor - taken


@pytest.mark.parametrize("group_by", ["day", "gpu_model", "region", "node"])
def test_earnings_by_group_add_up_with_it(
    api: ApiClient, organization: Organization, clock: Any, group_by: str
) -> None:
    node = a_fleet(gpus=8)
    window = a_window(in_hours=47, hours=2)
    fund(organization, amount_minor=100_000)
    left = a_reservation(api, quote=a_quote(api, gpus=8, window=window))
    terms = api.post(f"/v1/reservations/{left['id']}/cancellation-quote", {}).json
    path = f"/v1/reservations/{left['id']}/cancellation"
    api.post(path, {"quote_id": terms["id"]}, key=a_new_key())
    buyer = an_organization()
    fund(buyer, amount_minor=100_000)
    other = key_of(buyer)
    sold = a_reservation(other, quote=a_quote(other, gpus=8, window=window))
    settled = deliver(sold["id"])
    releases.release_due(at=settled.release_due_at)
    told = (
        key_of(node.organization)
        .get(
            "/v1/owner/earnings",
            **{"from": "2026-12-01T00:00:00Z", "to": "2027-01-01T00:00:00Z", "group_by": group_by},
        )
        .json
    )
    for name in ("resales", "fee_shares", "net"):
        of_groups = sum(row[name]["amount_minor"] for row in told["groups"])
        assert of_groups == told["total"][name]["amount_minor"] > 0
