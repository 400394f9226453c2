"""How the admin looks: its menu by room, and the mark of what is not real."""

from typing import Any

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse

from marketplace.console.simulated import simulated_parts

# Group → (title, model, Material symbol). A model without an admin class is left out.
_GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Market",
        (
            ("Listings", "marketplace.Listing", "sell"),
            ("GPU models", "marketplace.GpuModel", "memory"),
            ("Trail", "marketplace.AuditEvent", "history"),
        ),
    ),
    (
        "Fleet",
        (
            ("Nodes", "agents.Node", "dns"),
            ("GPUs", "agents.Gpu", "developer_board"),
            ("Events", "agents.GpuEvent", "bolt"),
            ("Alarms", "agents.Alarm", "notification_important"),
            ("Outages", "agents.Outage", "heart_broken"),
            ("Policies", "agents.Policy", "rule"),
            ("Grants", "agents.Grant", "key"),
            ("Receipts", "agents.Receipt", "receipt_long"),
            ("Meter readings", "agents.MeterReading", "speed"),
            ("Readings", "agents.Reading", "monitoring"),
            ("Enrolment tokens", "agents.EnrolmentToken", "token"),
        ),
    ),
    (
        "Scheduling",
        (
            ("Reservations", "scheduler.Reservation", "event_available"),
            ("Leases", "scheduler.Lease", "handshake"),
            ("Quotes", "scheduler.Quote", "request_quote"),
            ("Allocations", "scheduler.Allocation", "calendar_view_week"),
            ("Changes", "scheduler.Change", "edit_calendar"),
            ("Held hours", "scheduler.ExtensionHold", "hourglass_top"),
            ("Change rules", "scheduler.ChangeRule", "stairs"),
            ("Tenant limits", "scheduler.TenantLimit", "speed"),
        ),
    ),
    (
        "Prices",
        (
            ("Price rules", "scheduler.PriceRule", "rule_settings"),
            ("Price tables", "scheduler.PriceVersion", "show_chart"),
            ("Demand", "scheduler.DemandSample", "trending_up"),
        ),
    ),
    (
        "Decisions",
        (
            ("Approvals", "billing.Approval", "how_to_reg"),
            ("Limit requests", "billing.LimitRequest", "rule_settings"),
            ("Silent leases", "billing.SilentLease", "hearing_disabled"),
            ("Differences", "billing.Difference", "difference"),
            ("In suspense", "billing.SuspenseItem", "help_center"),
            ("Parked", "billing.Parking", "local_parking"),
        ),
    ),
    (
        "Books",
        (
            ("Nightly checks", "billing.BooksRun", "fact_check"),
            ("Entries", "billing.Entry", "menu_book"),
            ("Postings", "billing.Posting", "swap_vert"),
            ("Accounts", "billing.Account", "account_balance"),
            ("Settlements", "billing.Settlement", "task_alt"),
            ("Corrections", "billing.Correction", "published_with_changes"),
            ("Earned hours", "billing.EarnedHour", "hourglass_bottom"),
        ),
    ),
    (
        "Owners' money",
        (
            ("Payouts", "billing.Payout", "payments"),
            ("Transfers", "billing.Transfer", "send_money"),
            ("Reversals", "billing.Reversal", "undo"),
            ("Payout accounts", "billing.PayoutAccount", "account_balance_wallet"),
            ("Reserves", "billing.Reserve", "savings"),
            ("Parts of fees", "billing.FeeShare", "pie_chart"),
            ("Resales", "billing.Resale", "recycling"),
            ("Disputes that owners bear", "billing.DisputeCharge", "gavel"),
        ),
    ),
    (
        "Tenants' money",
        (
            ("Payments", "billing.Payment", "credit_card"),
            ("Deposits", "billing.Deposit", "splitscreen"),
            ("Refunds", "billing.Refund", "undo"),
            ("Card refunds", "billing.CardRefund", "credit_card_off"),
            ("Withdrawals", "billing.Withdrawal", "output"),
            ("Promotions", "billing.Promotion", "redeem"),
            ("Disputes", "billing.Dispute", "gavel"),
            ("Disputed top-ups", "billing.TopUpDispute", "money_off"),
            ("Card inquiries", "billing.CardInquiry", "contact_support"),
            ("Credit", "billing.CreditTerms", "credit_score"),
            ("Sold on account", "billing.CreditSale", "contract"),
            ("Invoices", "billing.Invoice", "receipt_long"),
            ("Collection", "billing.DunningCase", "notifications_active"),
            ("Billing profiles", "billing.BillingProfile", "contact_mail"),
        ),
    ),
    (
        "What tenants allow",
        (
            ("Approval limits", "billing.ApprovalLimit", "rule"),
            ("Purchase requests", "billing.PurchaseRequest", "how_to_vote"),
            ("Budgets", "billing.Budget", "data_usage"),
            ("Freezes", "billing.ProjectFreeze", "ac_unit"),
            ("Required tags", "billing.TagRule", "label"),
        ),
    ),
    (
        "Taxes",
        (
            ("Taxed sales", "billing.ReservationTax", "percent"),
            ("Remitted taxes", "billing.TaxRemittance", "account_balance_wallet"),
            ("Tax rules", "billing.TaxRule", "assured_workload"),
            ("Tax statuses", "billing.TaxStatus", "badge"),
        ),
    ),
    (
        "Provider",
        (
            ("Calls", "billing.Intent", "outbox"),
            ("Inbox", "billing.InboxEvent", "inbox"),
        ),
    ),
    (
        "People",
        (
            ("Organizations", "marketplace.Organization", "apartment"),
            ("API keys", "marketplace.ApiKey", "vpn_key"),
            ("Events", "marketplace.Event", "campaign"),
            ("Webhook endpoints", "marketplace.WebhookEndpoint", "webhook"),
            ("Webhook deliveries", "marketplace.WebhookDelivery", "send"),
            ("Users", "marketplace.User", "person"),
            ("Groups", "auth.Group", "group"),
        ),
    ),
)


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the menu: a group per room of the house, with what this user may see."""
    groups: list[dict[str, Any]] = []
    for title, entries in _GROUPS:
        items = []
        for name, label, icon in entries:
            model = apps.get_model(label)
            model_admin = (
                admin.site.get_model_admin(model) if admin.site.is_registered(model) else None
            )
            if model_admin is None or not model_admin.has_view_permission(request):
                continue
            options = model._meta  # noqa: SLF001 - Django's documented name for it
            link = reverse(f"admin:{options.app_label}_{options.model_name}_changelist")
            items.append({"title": name, "icon": icon, "link": link})
        if items and title == "Books":
            items.insert(0, {"title": "Checks", "icon": "balance", "link": reverse("books")})
        if items:
            groups.append({"title": title, "separator": True, "items": items})
    return groups


def stylesheet(_request: HttpRequest) -> str:
    """Return the address of the few rules that the admin gets on top of its own."""
    return static("headroom/admin.css")


def environment(_request: HttpRequest) -> list[str] | None:
    """Return the mark beside the user's name: what of this market is not real."""
    parts = simulated_parts()
    return [f"Simulated {' and '.join(parts)}", "warning"] if parts else None
