"""Public identifiers: opaque, prefixed, ordered by the time of their making."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_RANDOM_BITS = 80
_LENGTH = 26  # 48 bits of milliseconds and 80 random bits, as in a ULID
ID_LENGTH_MAX = 32

PREFIXES = frozenset(
    {
        "org",
        "usr",
        "key",
        "nde",
        "gpu",
        "tok",
        "lst",
        "qte",
        "rsv",
        "lse",
        "ext",
        "chg",
        "fee",
        "inv",
        "inl",
        "pay",
        "pot",
        "evt",
        "whk",
        "set",
        "ent",
        "acc",
        "crt",
        "crs",
        "apr",
        "bdg",
        "frz",
        "tgr",
        "rfd",
        "rsl",
        "int",
        "pac",
        "ref",
        "trf",
        "rev",
        "prc",
        "prm",
        "wdr",
    }
)


def new_id(prefix: str) -> str:
    """Return a new identifier such as `rsv_01k…`: unguessable, and later ones sort after earlier ones."""
    assert prefix in PREFIXES, prefix
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    digits = [_ALPHABET[(number >> shift) & 31] for shift in range((_LENGTH - 1) * 5, -1, -5)]
    return f"{prefix}_{''.join(digits)}"


def new_organization_id() -> str:
    return new_id("org")


def new_api_key_id() -> str:
    return new_id("key")


def new_promotion_id() -> str:
    return new_id("prm")


def new_withdrawal_id() -> str:
    return new_id("wdr")


def new_listing_id() -> str:
    return new_id("lst")


def new_enrolment_token_id() -> str:
    return new_id("tok")


def new_node_id() -> str:
    return new_id("nde")


def new_gpu_id() -> str:
    return new_id("gpu")


def new_quote_id() -> str:
    return new_id("qte")


def new_reservation_id() -> str:
    return new_id("rsv")


def new_lease_id() -> str:
    return new_id("lse")


def new_entry_id() -> str:
    return new_id("ent")


def new_settlement_id() -> str:
    return new_id("set")


def new_payout_id() -> str:
    return new_id("pot")


def new_event_id() -> str:
    return new_id("evt")


def new_webhook_endpoint_id() -> str:
    return new_id("whk")


def new_payment_id() -> str:
    return new_id("pay")


def new_intent_id() -> str:
    return new_id("int")


def new_card_refund_id() -> str:
    return new_id("ref")


def new_transfer_id() -> str:
    return new_id("trf")


def new_payout_account_id() -> str:
    return new_id("pac")


def new_approval_id() -> str:
    return new_id("apr")


def new_budget_id() -> str:
    return new_id("bdg")


def new_tag_rule_id() -> str:
    return new_id("tgr")


def new_freeze_id() -> str:
    return new_id("frz")


def new_refund_id() -> str:
    return new_id("rfd")


def new_invoice_id() -> str:
    return new_id("inv")


def new_invoice_line_id() -> str:
    return new_id("inl")


def new_price_version_id() -> str:
    return new_id("prc")


def new_extension_id() -> str:
    return new_id("ext")


def new_change_id() -> str:
    return new_id("chg")


def new_fee_share_id() -> str:
    return new_id("fee")


def new_resale_id() -> str:
    return new_id("rsl")


def new_credit_terms_id() -> str:
    return new_id("crt")


def new_credit_sale_id() -> str:
    return new_id("crs")


def new_reversal_id() -> str:
    return new_id("rev")
