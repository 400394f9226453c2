"""Tell the whole story of one lease, through HTTP alone, against a market that runs in the demo profile."""

import argparse
import base64
import datetime as dt
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from marketplace.core.windows import format_duration
from marketplace.management.story import OUTAGE_SECONDS_MAX, Client, StepFailed, Storyteller

GPUS = 8
FLOOR_RATE = "1.900000"  # below the seeded listings', so that this listing is the one that serves
GRID_SECONDS_MAX = 300  # on an hourly grid the story would take hours
FLEET_SECONDS_MAX = 60  # a fleet's first report takes a few report intervals
SETTLEMENT_SECONDS_MAX = 90  # the return receipt, the meters' grace and two ticks


def _amount(money: dict[str, Any]) -> str:
    return f"{money['amount_minor'] / 100:,.2f} {money['currency'].upper()}"


def _instant(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00"))


def _clock(text: str) -> str:
    return _instant(text).strftime("%H:%M:%S")


def _ssh_public_key() -> str:
    """Return a well-formed Ed25519 public key line; the private half does not exist."""
    name = b"ssh-ed25519"
    blob = len(name).to_bytes(4, "big") + name + (32).to_bytes(4, "big") + secrets.token_bytes(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} demo"


class Reader(Protocol):
    """What reads JSON from the market."""

    def get(self, path: str, **query: object) -> Any: ...  # noqa: ANN401 - JSON


def sellable_gpus(owner: Reader) -> dict[tuple[str, str], int]:
    """Count an owner's GPUs that could be sold, by model and region, where there are enough of them.

    The two lists are read one after the other: a GPU whose node enrolled in between counts next time.
    """
    regions = {
        node["id"]: node["region"]
        for node in owner.get("/v1/nodes", limit=200)["data"]
        if node["last_report_at"]
    }
    counts = Counter(
        (gpu["gpu_model"], regions[gpu["node_id"]])
        for gpu in owner.get("/v1/gpus", limit=200, health="healthy")["data"]
        if gpu["gpu_model"] and not gpu["leased"] and gpu["node_id"] in regions
    )
    return {place: count for place, count in counts.items() if count >= GPUS}


class Command(BaseCommand):
    help = __doc__
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--demo-json",
            default=str(settings.DATA_DIR / "demo.json"),
            help="the addresses and keys that `up` wrote",
        )
        parser.add_argument("--base-url", help="instead of the address in the file")
        parser.add_argument(
            "--steps-of-grid", type=int, default=1, help="length of the window in grid steps"
        )

    def handle(
        self, *, demo_json: str, base_url: str | None, steps_of_grid: int, **_: object
    ) -> None:
        try:
            keys = json.loads(Path(demo_json).read_text())
        except (OSError, ValueError):
            raise CommandError(
                f"{demo_json} cannot be read: start the market with `python3 manage.py up`"
            ) from None
        base_url = base_url or keys["base_url"]
        owner = Client(base_url=base_url, api_key=keys["owner"]["api_key"])
        tenant = Client(base_url=base_url, api_key=keys["tenant"]["api_key"])
        teller = Storyteller()
        market = self._open(teller, tenant, base_url)
        model, region = self._fleet(teller, owner)
        listing = self._list(teller, owner, model=model, region=region, market=market)
        try:
            reservation = self._buy(
                teller,
                tenant,
                model=model,
                region=region,
                window_seconds=market["grid_seconds"] * steps_of_grid,
            )
            lease = self._live(teller, tenant, reservation)
            self._settle(teller, tenant, owner, reservation=reservation, lease=lease)
        finally:
            owner.post(f"/v1/listings/{listing['id']}/retire", {})
        self._books(teller, base_url=base_url, admin=keys["admin"])
        print(
            f"\nThe whole story took {time.monotonic() - teller.started:.0f} s. Every step happened."
        )

    def _open(self, teller: Storyteller, tenant: Client, base_url: str) -> dict[str, Any]:
        with teller.step(f"The market answers at {base_url}") as say:
            market: dict[str, Any] = tenant.get("/v1/market")
            if market["grid_seconds"] > GRID_SECONDS_MAX:
                raise StepFailed(
                    f"windows here lie on a grid of {market['grid_seconds']} s; the story needs at most "
                    f"{GRID_SECONDS_MAX} s (set HEADROOM_GRID_SECONDS=60)"
                )
            grid, days = market["grid_seconds"], market["horizon_days"]
            say(f"windows start on a grid of {grid} s and reach {days} days ahead")
            simulated = [w for w in ("hardware", "payments") if market[f"simulated_{w}"]]
            if simulated:
                say(f"SIMULATED here: {' and '.join(simulated)}")
        return market

    def _fleet(self, teller: Storyteller, owner: Client) -> tuple[str, str]:
        """Wait for GPUs that an owner could sell; return the model and region with the most of them."""
        with teller.step("Node agents publish the owner's GPUs") as say:
            counts = teller.wait(
                "for the first reports",
                lambda: sellable_gpus(owner),
                seconds_max=FLEET_SECONDS_MAX,
            )
            for (model, region), n in sorted(counts.items()):
                say(f"{n} × {model} in {region}, healthy and not leased")
        model, region = max(counts, key=lambda place: (counts[place], place))
        return model, region

    def _list(
        self, teller: Storyteller, owner: Client, *, model: str, region: str, market: dict[str, Any]
    ) -> dict[str, Any]:
        with teller.step("The owner lists them") as say:
            listing: dict[str, Any] = owner.post(
                "/v1/listings",
                {
                    "name": f"demo {dt.datetime.now(tz=dt.UTC):%H:%M:%S}",
                    "selector": {"gpu_model": model, "region": region},
                    "starts_at": market["now"],
                    "floor_rate": FLOOR_RATE,
                    "tier": "firm",
                    "mode": "always",
                },
            )
            owner.post(f"/v1/listings/{listing['id']}/publish", {})
            say(
                f"{listing['id']}: {model} in {region}, firm, owner gets at least {FLOOR_RATE} per GPU-hour"
            )
        return listing

    def _buy(
        self, teller: Storyteller, tenant: Client, *, model: str, region: str, window_seconds: int
    ) -> dict[str, Any]:
        with teller.step("The tenant finds a window") as say:
            now = dt.datetime.now(tz=dt.UTC)
            duration = dt.timedelta(seconds=window_seconds)
            offers = tenant.get(
                "/v1/offerings",
                gpu_model=model,
                gpus=GPUS,
                region=region,
                duration=format_duration(duration),
                earliest_start=(now + dt.timedelta(seconds=5)).isoformat().replace("+00:00", "Z"),
                latest_end=(now + 10 * duration + dt.timedelta(minutes=10))
                .isoformat()
                .replace("+00:00", "Z"),
            )
            if not offers["data"]:
                raise StepFailed(f"no window for {GPUS} × {model}: {offers['no_offer_reason']}")
            offer = min(offers["data"], key=lambda o: o["starts_at"])
            say(
                f"{offer['gpus']} × {model}, {_clock(offer['starts_at'])}–{_clock(offer['ends_at'])} UTC, "
                f"{offer['rate']} per GPU-hour, {_amount(offer['total'])} in all"
            )
        with teller.step("… locks price and GPUs in a quote") as say:
            quote = tenant.post(
                "/v1/quotes",
                {
                    "gpu_model": model,
                    "gpus": GPUS,
                    "region": region,
                    "starts_at": offer["starts_at"],
                    "ends_at": offer["ends_at"],
                    "hold": True,
                },
            )
            say(
                f"{quote['id']}: {quote['rate']} per GPU-hour until {_clock(quote['expires_at'])}, GPUs held"
            )
        with teller.step("… reserves and pays from its wallet") as say:
            before = tenant.get("/v1/wallet")["balance"]
            body = {
                "quote_id": quote["id"],
                "payment_method": "wallet",
                "name": "demo run",
                "project": "demo",
                "ssh_public_keys": [_ssh_public_key()],
            }
            key = secrets.token_hex(12)
            reservation: dict[str, Any] = tenant.post("/v1/reservations", body, key=key)
            again = tenant.post("/v1/reservations", body, key=key)
            after = tenant.get("/v1/wallet")["balance"]
            if again["id"] != reservation["id"]:
                raise StepFailed("the same request with the same key bought twice")
            if before["amount_minor"] - after["amount_minor"] != quote["total"]["amount_minor"]:
                raise StepFailed(
                    f"the wallet went from {_amount(before)} to {_amount(after)}: not the quoted price"
                )
            say(
                f"{reservation['id']} is {reservation['status']}; wallet {_amount(before)} → {_amount(after)}"
            )
            say("sent twice with one Idempotency-Key: bought once")
        return reservation

    def _live(
        self, teller: Storyteller, tenant: Client, reservation: dict[str, Any]
    ) -> dict[str, Any]:
        path = f"/v1/reservations/{reservation['id']}"

        def lease_in(*statuses: str) -> Callable[[], Any]:
            def probe() -> Any:  # noqa: ANN401 - JSON
                found = tenant.get(path)
                if found["status"] == "failed":
                    raise StepFailed(f"{found['id']} failed: {found['history'][-1]}")
                leases = [tenant.get(f"/v1/leases/{lease['id']}") for lease in found["leases"]]
                return (
                    leases[0]
                    if leases and all(lease["status"] in statuses for lease in leases)
                    else None
                )

            return probe

        to_start = (_instant(reservation["starts_at"]) - dt.datetime.now(tz=dt.UTC)).total_seconds()
        with teller.step("Celery starts the window, the agent hands over") as say:
            lease = teller.wait(
                "for the window to start",
                lease_in("active", "returning", "ended"),
                seconds_max=max(to_start, 0) + OUTAGE_SECONDS_MAX,
                until=f"at {_clock(reservation['starts_at'])}",
            )
            access = lease["access"]
            say(f"{lease['id']}: ssh -p {access['port']} {access['username']}@{access['host']}")
            first, *others = lease["gpu_uuids"]
            usable = _clock(lease["handed_over_at"])
            say(f"usable from {usable}: {first} and {len(others)} more")
        to_end = (_instant(reservation["ends_at"]) - dt.datetime.now(tz=dt.UTC)).total_seconds()
        with teller.step("The tenant works, the window ends, the GPUs return") as say:
            lease = teller.wait(
                "for the window to end",
                lease_in("ended"),
                seconds_max=max(to_end, 0) + OUTAGE_SECONDS_MAX,
                until=f"at {_clock(reservation['ends_at'])}",
            )
            say(f"{lease['id']} is {lease['status']}, returned at {_clock(lease['returned_at'])}")
        return dict(lease)

    def _settle(
        self,
        teller: Storyteller,
        tenant: Client,
        owner: Client,
        *,
        reservation: dict[str, Any],
        lease: dict[str, Any],
    ) -> None:
        path = f"/v1/reservations/{reservation['id']}/bill"
        with teller.step("Billing settles the lease") as say:

            def final() -> Any:  # noqa: ANN401 - JSON
                bill = tenant.get(path)
                return bill if bill["final"] else None

            bill = teller.wait("for the settlement", final, seconds_max=SETTLEMENT_SECONDS_MAX)
            seconds = bill["gpu_seconds"]
            for name in ("bought", "delivered", "busy"):
                say(f"{name:<10} {seconds[name]:>7} GPU-seconds")
            for name in ("bought", "refunded", "net"):
                say(f"{name:<10} {_amount(bill[name]):>15}")
            if seconds["bought"] != seconds["delivered"] + seconds["undelivered"]:
                raise StepFailed("bought is not delivered plus undelivered")
            if not 0 < seconds["busy"] <= seconds["delivered"]:
                raise StepFailed("nothing was metered, or more than was delivered")
        with teller.step("The owner's payout is due") as say:

            def payout_of_lease() -> Any:  # noqa: ANN401 - JSON
                payouts = owner.get("/v1/payouts", limit=200)["data"]
                return next((p for p in payouts if p["lease_id"] == lease["id"]), None)

            payout = teller.wait(
                "for the payout", payout_of_lease, seconds_max=SETTLEMENT_SECONDS_MAX
            )
            due = _clock(payout["due_at"])
            say(f"{payout['id']}: {_amount(payout['amount'])} {payout['status']} at {due}")

    def _books(self, teller: Storyteller, *, base_url: str, admin: dict[str, str]) -> None:
        with teller.step("The books balance") as say:
            with httpx.Client(
                base_url=base_url, timeout=30, follow_redirects=True, trust_env=False
            ) as browser:
                page = browser.get("/admin/login/")
                token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
                if token is None:
                    raise StepFailed("the admin's sign-in page cannot be read")
                form = {**admin, "csrfmiddlewaretoken": token[1], "next": "/admin/"}
                browser.post(
                    "/admin/login/", data=form, headers={"Referer": f"{base_url}/admin/login/"}
                )
                report = browser.get("/admin/books/", params={"format": "json"}).json()
            broken = [check for check in report["checks"] if not check["ok"]]
            if broken or not report["ok"]:
                raise StepFailed(
                    "; ".join(f"{check['name']}: {check['detail']}" for check in broken)
                )
            say(f"{len(report['checks'])} invariants of the ledger checked in SQL, all hold")
