"""What a tenant may say of a reservation: the purchase, later changes of its details, and the search."""

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer

from marketplace.api.fields import (
    ChoiceField,
    InstantField,
    PageQuery,
    SecondsAsDurationField,
    StrictListField,
    StrictSerializer,
    SwitchField,
    TagsField,
    TextField,
)
from marketplace.api.payment_plans import FULL, PAYMENT_PLANS
from marketplace.core.limits import NAME_LENGTH_MAX, SSH_KEY_LENGTH_MAX, SSH_KEYS_MAX, TAGS_MAX
from scheduler.details import IMAGE_LENGTH_MAX, WARNING_SECONDS_DEFAULT, WARNINGS_MAX
from scheduler.states import PaymentMethod, ReservationStatus

# Text of one line: what an OpenSSH public key, and the file that they are written to, consists of.
SSH_KEY_FORM = r"[a-z0-9@.-]{3,60} [A-Za-z0-9+/=]{16,16000}( [^\x00-\x1f\x7f]{0,300})?"


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "From the wallet",
            value={
                "quote_id": "qte_01kc2h9n3v8r5w7x0y2z4a6b8c",
                "payment_method": "wallet",
                "name": "night run",
                "project": "llm-7",
                "tags": {"team": "nlp"},
                "ssh_public_keys": [
                    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAexampleexampleexample you@host"
                ],
            },
            request_only=True,
        )
    ]
)
class PurchaseSerializer(StrictSerializer):
    """Which quote to buy, how to pay, and what to call it."""

    quote_id = TextField(max_length=32)
    payment_method = ChoiceField(choices=PaymentMethod.choices)
    payment_plan = ChoiceField(
        choices=[(plan, plan) for plan in PAYMENT_PLANS],
        required=False,
        default=FULL,
        help_text="`deposit`, by card: a part now, and the balance on the same card before the start; the "
        "quote says whether that is possible, and the amounts",
    )
    use_saved_card = SwitchField(
        required=False, default=False, help_text="charge the card that was saved, without asking"
    )
    save_card = SwitchField(
        required=False, default=False, help_text="save the card that is used for later"
    )
    name = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)
    project = TextField(max_length=NAME_LENGTH_MAX, required=False, default="", allow_blank=True)
    tags = TagsField(tags_max=TAGS_MAX, required=False, default=dict)
    ssh_public_keys = StrictListField(
        child=TextField(max_length=SSH_KEY_LENGTH_MAX, form=SSH_KEY_FORM),
        max_length=SSH_KEYS_MAX,
        required=False,
        default=list,
    )
    image = TextField(max_length=IMAGE_LENGTH_MAX, required=False, default="", allow_blank=True)
    warn_before = StrictListField(
        child=SecondsAsDurationField(),
        max_length=WARNINGS_MAX,
        required=False,
        default=lambda: [WARNING_SECONDS_DEFAULT],
        source="warn_before_seconds",
        help_text="how long before the end to tell of it; default: half an hour, empty: not at all",
    )


class ReservationChanges(StrictSerializer):
    """What may be changed later; what is not named stays."""

    name = TextField(max_length=NAME_LENGTH_MAX, required=False, allow_blank=True)
    project = TextField(max_length=NAME_LENGTH_MAX, required=False, allow_blank=True)
    tags = TagsField(tags_max=TAGS_MAX, required=False)
    ssh_public_keys = StrictListField(
        child=TextField(max_length=SSH_KEY_LENGTH_MAX, form=SSH_KEY_FORM),
        max_length=SSH_KEYS_MAX,
        required=False,
    )
    warn_before = StrictListField(
        child=SecondsAsDurationField(),
        max_length=WARNINGS_MAX,
        required=False,
        source="warn_before_seconds",
    )


class ReservationsQuery(PageQuery):
    """Which reservations."""

    status = ChoiceField(choices=ReservationStatus.choices, required=False, default=None)
    project = TextField(max_length=NAME_LENGTH_MAX, required=False, default=None)
    starts_after = InstantField(
        required=False, default=None, help_text="starts_at is this or later"
    )
    ends_before = InstantField(required=False, default=None, help_text="ends_at is this or earlier")
    tag = TextField(
        required=False, default=None, max_length=400, help_text="`name`, or `name:value`"
    )
