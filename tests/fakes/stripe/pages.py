"""What a person sees: a payment page, an onboarding page, and the provider's script for a browser."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from tests.fakes.stripe.world import ApiError

if TYPE_CHECKING:
    from tests.fakes.stripe.server import StandIn

HTML = "text/html; charset=utf-8"
SCRIPT = "text/javascript; charset=utf-8"
_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:34rem;margin:4rem auto;padding:0 1rem}}
button{{font:inherit;padding:.5rem 1rem;margin:.25rem .25rem 0 0}}
.note{{background:#fff4d6;padding:.5rem 1rem}}</style>
<p class="note">Simulated payments: no money moves here.</p>
<h1>{title}</h1>{body}<p id="state" role="status"></p>
<script>
async function act(verb, values) {{
  const answer = await fetch("/_control/" + verb, {{method: "POST", body: JSON.stringify(values)}});
  const result = await answer.json();
  document.getElementById("state").textContent =
    result.error ? result.error.message : "Status: " + (result.status || "done");
  if (result.status === "requires_action" && confirm("Your bank asks: is this you?"))
    act("authenticate", {{id: values.id, passed: true}});
}}
</script>"""
_BUTTONS = (
    ("Pay by card", "pm_card_bypassPending"),
    ("Card that asks for 3-D Secure", "pm_card_threeDSecure2Required"),
    ("Card that is declined", "pm_card_visa_chargeDeclined"),
)


# The part of the provider's script for browsers that a payment page uses: a field, and a confirmation.
_SCRIPT = """(() => {
  const base = new URL(document.currentScript.src).origin;
  const cards = {cards};
  async function act(verb, values) {
    const answer = await fetch(base + "/_control/" + verb,
      {method: "POST", body: JSON.stringify(values)});
    return answer.json();
  }
  window.Stripe = (key) => ({
    elements: ({clientSecret}) => {
      const field = document.createElement("select");
      field.setAttribute("aria-label", "Card");
      for (const [label, method] of cards) field.add(new Option(label, method));
      return {
        id: clientSecret.split("_secret_")[0],
        method: () => field.value,
        create: () => ({mount: (place) => document.querySelector(place).append(field)}),
      };
    },
    confirmPayment: async ({elements, confirmParams}) => {
      let result = await act("confirm",
        {id: elements.id, payment_method: elements.method()});
      if (result.status === "requires_action") {
        const passed = window.confirm("Your bank asks: is this you?");
        result = await act("authenticate", {id: elements.id, passed});
      }
      const error = result.error || result.last_payment_error;
      if (error) return {error};
      const target = new URL(confirmParams.return_url);
      target.searchParams.set("redirect_status", result.status);
      window.location.assign(target);
      return {};
    },
  });
})();
""".replace("{cards}", json.dumps(_BUTTONS))


def render(stand_in: StandIn, path: str, query: dict[str, str]) -> tuple[str, str]:
    """Return the text of a page and its media type."""
    kind, _, object_id = path.removeprefix("/_pages/").partition("/")
    if kind == "pay":
        intent = stand_in.world.get(object_id, "payment_intent")
        if query.get("secret") != intent["client_secret"]:
            raise ApiError(401, "This page needs the payment's secret.")
        return _payment(intent["id"], intent["amount"], intent["currency"]), HTML
    if kind == "onboarding":
        stand_in.world.get(object_id, "v2.core.account")
        act = f"act('capability', {{id: '{html.escape(object_id)}', status: 'active'}})"
        body = f'<button onclick="{act}">Give all details</button>'
        return _PAGE.format(title="Receive payouts", body=body), HTML
    if kind == "invoice":
        invoice = stand_in.world.get(object_id, "invoice")
        body = (
            f"<p>{invoice['total']} {invoice['currency']} in minor units: {invoice['status']}</p>"
        )
        return _PAGE.format(title=f"Invoice {invoice['number']}", body=body), HTML
    if path.startswith("/v3"):
        return _SCRIPT, SCRIPT
    raise ApiError(404, "There is no such page.")


def _payment(intent_id: str, amount: int, currency: str) -> str:
    rows = "".join(
        f"<button onclick=\"act('confirm', {{id: '{intent_id}', payment_method: '{method}'}})\">"
        f"{label}</button>"
        for label, method in _BUTTONS
    )
    transfer = "{type: 'customer_balance'}"
    rows += (
        f"<button onclick=\"act('confirm', {{id: '{intent_id}', payment_method_data: {transfer}}})\">"
        "Bank transfer</button>"
    )
    return _PAGE.format(
        title=f"Pay {amount} {currency.upper()} (minor units)", body=f"<p>{rows}</p>"
    )
