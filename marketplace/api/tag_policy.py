"""`/v1/tag-policy`: the tags without which an organization orders nothing."""

from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import tag_policy
from billing.tag_policy import TagWish
from marketplace.api.fields import InstantField, StrictListField, StrictSerializer, TextField
from marketplace.api.schema import operation
from marketplace.api.views import ApiView
from marketplace.core.limits import TAG_KEY_LENGTH_MAX, TAG_VALUE_LENGTH_MAX, TAGS_MAX
from marketplace.states import Scope


class TagRuleWishSerializer(StrictSerializer):
    """A tag that every order must carry; without values any that is not empty will do."""

    key = TextField(max_length=TAG_KEY_LENGTH_MAX)
    allowed_values = StrictListField(
        child=TextField(max_length=TAG_VALUE_LENGTH_MAX),
        max_length=tag_policy.VALUES_MAX,
        required=False,
        default=list,
    )


class TagPolicyWishSerializer(StrictSerializer):
    """All required tags; what is not in the list is required no more."""

    required_tags = StrictListField(child=TagRuleWishSerializer(), max_length=TAGS_MAX)


class TagRuleSerializer(serializers.Serializer[Any]):
    """A tag that every order must carry."""

    key = serializers.CharField()
    allowed_values = serializers.ListField(
        child=serializers.CharField(), help_text="empty: any value that is not empty"
    )
    updated_by = serializers.CharField()
    updated_at = InstantField()


class TagPolicySerializer(serializers.Serializer[Any]):
    """What the organization requires of its own orders."""

    required_tags = TagRuleSerializer(many=True)


class TagPolicyView(ApiView):
    scopes: ClassVar = {"GET": Scope.BILLING_READ, "PUT": Scope.BILLING_WRITE}

    @operation(
        summary="The tags that every order must carry",
        responses={200: TagPolicySerializer},
        operation_id="get_tag_policy",
    )
    def get(self, request: Request) -> Response:
        return self._answer()

    @operation(
        summary="Replace the tags that every order must carry",
        description="All or nothing, and for orders that come: what is booked keeps its tags, and so does "
        "what is added to it. An order without one of them is refused with `tag_required`, one with another "
        "value with `tag_value_not_allowed`.",
        request=TagPolicyWishSerializer,
        responses={200: TagPolicySerializer},
        refusals=("invalid_value",),
        operation_id="replace_tag_policy",
    )
    def put(self, request: Request) -> Response:
        rows = self.body(TagPolicyWishSerializer)["required_tags"]
        tag_policy.put(
            organization=self.organization,
            wishes=[TagWish(**row) for row in rows],
            at=self.now,
            actor=self.caller.actor,
        )
        return self._answer()

    def _answer(self) -> Response:
        rules = tag_policy.rules_of(organization=self.organization)
        return Response(TagPolicySerializer({"required_tags": rules}).data)
