"""`GET /v1/wallet` and its entries: a tenant's prepaid money."""

from typing import Any, ClassVar

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import promotions, top_up_disputes, wallet, wallet_holds
from billing.models import Posting
from billing.states import EntryKind, Side
from marketplace.api import simulation
from marketplace.api.fields import ChoiceField, InstantField, MoneyField, MoneySerializer, PageQuery
from marketplace.api.pagination import page_of, page_serializer
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.money import Money
from marketplace.states import Scope


class WalletPromotionSerializer(serializers.Serializer[Any]):
    """A gift that a purchase from the wallet spends before the wallet's own money."""

    id = serializers.CharField()
    left = MoneySerializer()
    expires_at = InstantField()


class WalletSerializer(serializers.Serializer[Any]):
    """What the wallet holds, and the gifts that are spent before it and never paid out."""

    balance = MoneyField(help_text="free to be spent")
    held = MoneyField(help_text="kept for orders that wait for a second person, beside the balance")
    withheld = MoneySerializer(
        help_text="out of it, while a bank decides on a top-up that is disputed; back when it is won"
    )
    owed_for_disputes = MoneySerializer(
        help_text="of top-ups that a bank took back: what comes into the wallet pays it first"
    )
    promotion_balance = MoneySerializer(help_text="what the promotions have left, together")
    promotions = WalletPromotionSerializer(
        many=True, help_text="what expires first, and is spent first"
    )
    simulated = serializers.BooleanField(help_text="it is play money")


class WalletEntrySerializer(serializers.Serializer[Posting]):
    """One movement of the wallet; a negative amount left it."""

    id = serializers.CharField(source="entry.id")
    kind = ChoiceField(source="entry.kind", choices=EntryKind.choices)
    amount = serializers.SerializerMethodField()
    subject_id = serializers.CharField(
        source="entry.subject_id",
        help_text="the reservation, lease, purchase request or organization that it is about",
    )
    effective_at = InstantField(source="entry.effective_at")
    recorded_at = InstantField(source="entry.recorded_at")

    @extend_schema_field(MoneySerializer)
    def get_amount(self, posting: Posting) -> dict[str, object]:
        """Return the movement as the wallet's owner sees it: a credit is money that came in."""
        sign = 1 if posting.side == Side.CREDIT else -1
        return {"amount_minor": sign * posting.amount, "currency": posting.account.currency}


WalletEntryPage = page_serializer(WalletEntrySerializer, name="WalletEntryPage")


class WalletView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}

    @operation(
        summary="The wallet's balance", responses={200: WalletSerializer}, operation_id="get_wallet"
    )
    def get(self, request: Request) -> Response:
        tenant, currency = self.organization, settings.CURRENCY
        given = promotions.standing(organization=tenant, currency=currency, at=self.now)
        held = wallet_holds.held_minor(organization=tenant, currency=currency)
        withheld = top_up_disputes.withheld_minor(organization=tenant, currency=currency)
        owed = top_up_disputes.owed_minor(organization=tenant, currency=currency)
        shown = {
            "balance": wallet.balance(organization=tenant),
            "held": Money(held, currency),
            "withheld": Money(withheld, currency),
            "owed_for_disputes": Money(owed, currency),
            "promotion_balance": Money(sum(left.amount_minor for _, left in given), currency),
            "promotions": [
                {"id": each.pk, "left": left, "expires_at": each.expires_at} for each, left in given
            ],
            "simulated": simulation.simulated_payments(),
        }
        return Response(WalletSerializer(shown).data)


class WalletEntriesView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ}
    queries: ClassVar = {"GET": PageQuery}

    @operation(
        summary="What moved the wallet, newest first",
        responses={200: WalletEntryPage},
        query=PageQuery,
        operation_id="list_wallet_entries",
    )
    def get(self, request: Request) -> Response:
        page = page_of(wallet.entries(organization=self.organization), query=self.query)
        return Response(WalletEntryPage(page).data)
