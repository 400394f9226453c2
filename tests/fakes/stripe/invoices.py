"""Invoices: lines, finalizing, paying, voiding, writing off."""

from __future__ import annotations

from tests.fakes.stripe import payments
from tests.fakes.stripe.world import (
    DAY_SECONDS,
    ApiError,
    Object,
    Request,
    World,
    metadata_of,
    required,
    truth,
)


def create_item(world: World, request: Request) -> Object:
    invoice = world.get(required(request.params, "invoice"), "invoice")
    if invoice["status"] != "draft":
        raise ApiError(400, "Only draft invoices can be changed.", code="invoice_not_editable")
    item = world.put(
        "ii",
        "invoiceitem",
        invoice=invoice["id"],
        customer=invoice["customer"],
        amount=int(required(request.params, "amount")),
        currency=invoice["currency"],
        description=request.params.get("description"),
        metadata=metadata_of(request.params),
    )
    rows = [row for row in world.all("invoiceitem") if row["invoice"] == invoice["id"]]
    total = sum(row["amount"] for row in rows)
    invoice |= {"total": total, "amount_due": total, "amount_remaining": total}
    return item


def create_invoice(world: World, request: Request) -> Object:
    params = request.params
    customer = world.get(required(params, "customer"), "customer")
    days = int(params.get("days_until_due", 30))
    invoice = world.put(
        "in",
        "invoice",
        customer=customer["id"],
        currency=params.get("currency", "usd"),
        collection_method=params.get("collection_method", "charge_automatically"),
        due_date=world.now() + days * DAY_SECONDS,
        auto_advance=truth(params.get("auto_advance", "false")),
        status="draft",
        number=None,
        total=0,
        amount_due=0,
        amount_paid=0,
        amount_remaining=0,
        paid_out_of_band=False,
        hosted_invoice_url=None,
        metadata=metadata_of(params),
    )
    world.emit("invoice.created", invoice)
    return invoice


def finalize_invoice(world: World, _request: Request, invoice_id: str) -> Object:
    invoice = _in_status(world, invoice_id, "draft")
    invoice |= {
        "status": "open",
        "number": f"STANDIN-{len(world.all('invoice')):04d}",
        "hosted_invoice_url": f"{world.base_url}/_pages/invoice/{invoice['id']}",
    }
    world.emit("invoice.finalized", invoice)
    return invoice


def pay_invoice(world: World, request: Request, invoice_id: str) -> Object:
    invoice = _in_status(world, invoice_id, "open")
    if truth(request.params.get("paid_out_of_band", "false")):
        invoice["paid_out_of_band"] = True
    else:
        call = Request(
            method="POST",
            path="/v1/payment_intents",
            params={
                "amount": invoice["amount_remaining"],
                "currency": invoice["currency"],
                "customer": invoice["customer"],
                "confirm": "true",
                "payment_method": required(request.params, "payment_method"),
                "metadata": {"invoice": invoice["id"]},
            },
        )
        invoice["payment_intent"] = payments.create_intent(world, call)["id"]
    invoice |= {"status": "paid", "amount_paid": invoice["total"], "amount_remaining": 0}
    world.emit("invoice.paid", invoice)
    return invoice


def void_invoice(world: World, _request: Request, invoice_id: str) -> Object:
    invoice = _in_status(world, invoice_id, "open", "uncollectible")
    invoice["status"] = "void"
    world.emit("invoice.voided", invoice)
    return invoice


def write_off_invoice(world: World, _request: Request, invoice_id: str) -> Object:
    invoice = _in_status(world, invoice_id, "open")
    invoice["status"] = "uncollectible"
    world.emit("invoice.marked_uncollectible", invoice)
    return invoice


def _in_status(world: World, invoice_id: str, *statuses: str) -> Object:
    invoice = world.get(invoice_id, "invoice")
    if invoice["status"] not in statuses:
        raise ApiError(
            400, f"This invoice is {invoice['status']}.", code="invoice_unexpected_state"
        )
    return invoice
