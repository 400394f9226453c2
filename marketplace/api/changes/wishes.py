"""What a tenant may ask of a reservation that it has bought."""

from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    RateField,
    StrictSerializer,
    SwitchField,
    TextField,
)
from scheduler.states import PaymentMethod


class ByQuoteSerializer(StrictSerializer):
    """On the terms of which quote."""

    quote_id = TextField(max_length=32)


class ExtensionWishSerializer(StrictSerializer):
    """Until when, and at which rate at most."""

    ends_at = InstantField(help_text="on the market's grid, later than the end so far")
    max_rate = RateField(
        required=False,
        allow_null=True,
        default=None,
        help_text="refuse a higher rate per GPU-hour of what is added",
    )


class WindowWishSerializer(StrictSerializer):
    """The window to have instead; an end that is not named stays."""

    starts_at = InstantField(required=False, default=None, help_text="on the market's grid")
    ends_at = InstantField(required=False, default=None, help_text="on the market's grid")
    max_rate = RateField(
        required=False,
        allow_null=True,
        default=None,
        help_text="refuse a higher rate per GPU-hour of what is added",
    )


class PaidByQuoteSerializer(ByQuoteSerializer):
    """On the terms of which quote, and how what is added is paid."""

    payment_method = ChoiceField(
        choices=PaymentMethod.choices, required=False, default=PaymentMethod.WALLET.value
    )
    use_saved_card = SwitchField(
        required=False, default=False, help_text="charge the card that was saved, without asking"
    )
    save_card = SwitchField(
        required=False, default=False, help_text="save the card that is used for later"
    )


class ExtensionOrderSerializer(PaidByQuoteSerializer):
    """On the terms of which quote of a later end, and how what is added is paid."""
