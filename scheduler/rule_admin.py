"""Where staff set what tenants may: the rule of changes, version by version, and limits of tenants."""

import datetime as dt
import re
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from marketplace.core.errors import DomainError
from marketplace.core.read_only import ReadOnly, money
from marketplace.core.windows import format_duration, parse_duration
from scheduler import change_rules, quotas
from scheduler.change_rules import RuleWish
from scheduler.models import Change, ChangeRule, TenantLimit

BASIS_POINTS_PER_PERCENT = 100
RULE_LENGTHS = ("extension_opens_seconds", "extension_closes_seconds", "move_closes_seconds")
_STEP = re.compile(r"(\S+)\s+(\d{1,3})\s*%", flags=re.ASCII)


def actor_of(request: HttpRequest) -> str:
    """Return the name under which an operator's doings are recorded."""
    return f"admin:{request.user.get_username()}"


def seconds_of(text: str) -> int:
    """Read a length as people write it: `56d`, `1h`, `PT24H`, or `0`.

    :raises ValidationError: when the text is none.
    """
    if text == "0":
        return 0
    try:
        return parse_duration(text) // dt.timedelta(seconds=1)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def text_of(seconds: int) -> str:
    return format_duration(dt.timedelta(seconds=seconds)) if seconds else "0"


def ladder_text(rule: ChangeRule) -> str:
    """Return a ladder as it is written: a line per step, notice and fee."""
    return "\n".join(
        f"{text_of(notice)} {fee // BASIS_POINTS_PER_PERCENT}%" for notice, fee in rule.ladder
    )


class LengthField(forms.CharField):
    widget = UnfoldAdminTextInputWidget

    def clean(self, value: Any) -> int:  # noqa: ANN401 - what a browser sent
        return seconds_of(str(super().clean(value)))


class LadderField(forms.CharField):
    """A line per step: the notice at least, and the fee in whole percent."""

    widget = UnfoldAdminTextareaWidget

    def clean(self, value: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - what a browser sent
        steps = []
        for line in str(super().clean(value)).splitlines():
            if not line.strip():
                continue
            step = _STEP.fullmatch(line.strip())
            if step is None:
                raise ValidationError(f"“{line}” is not a notice and a fee, such as “7d 25%”")
            steps.append((seconds_of(step[1]), int(step[2]) * BASIS_POINTS_PER_PERCENT))
        return steps


class ChangeRuleForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    """Begin with the version in force, and publish what becomes of it."""

    ladder = LadderField(help_text="notice at least, then the fee: 30d 10%; the last notice is 0")
    extension_opens_seconds = LengthField(label="Extensions open", help_text="before the end")
    extension_closes_seconds = LengthField(label="Extensions close", help_text="before the end")
    move_closes_seconds = LengthField(label="Moves close", help_text="before the start")
    based_on = forms.IntegerField(widget=forms.HiddenInput)

    class Meta:
        model = ChangeRule
        fields = ("ladder", *RULE_LENGTHS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Django's signature
        rule = change_rules.current(at=timezone.now())
        lengths = {name: text_of(getattr(rule, name)) for name in RULE_LENGTHS}
        begin = {"ladder": ladder_text(rule), "based_on": rule.version, **lengths}
        super().__init__(*args, **{**kwargs, "initial": {**begin, **kwargs.get("initial", {})}})

    def clean(self) -> dict[str, Any]:
        """Refuse here what the verb would refuse."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            try:
                change_rules.check(self.wish())
            except DomainError as refusal:
                self.add_error((refusal.pointer or "/ladder").strip("/"), refusal.detail)
        return cleaned

    def wish(self) -> RuleWish:
        return RuleWish(**{name: self.cleaned_data[name] for name in ("ladder", *RULE_LENGTHS)})


@admin.register(ChangeRule)
class ChangeRuleAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    """Versions as they were published; quotes keep theirs."""

    form = ChangeRuleForm
    list_display = ("version", "ladder_text", "created_at", "created_by")

    @admin.display(description="ladder")
    def ladder_text(self, rule: ChangeRule) -> str:
        return ladder_text(rule).replace("\n", ", ")

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return bool(request.user.has_perm("scheduler.add_changerule"))

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Let the form of a new version be filled in; one that was published stands."""
        return obj is None and self.has_add_permission(request)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        names = ("ladder", *RULE_LENGTHS)
        return (*names, "based_on") if obj is None else ("version", *names, "created_by")

    def save_model(self, request: HttpRequest, obj: ChangeRule, form: Any, change: bool) -> None:  # noqa: ANN401, FBT001 - Django's signature
        """Publish through the verb, which leaves its trail."""
        made = change_rules.publish(
            wish=form.wish(),
            based_on=form.cleaned_data["based_on"],
            at=timezone.now(),
            actor=actor_of(request),
        )
        obj.pk = made.pk


@admin.register(TenantLimit)
class TenantLimitAdmin(ModelAdmin):  # type: ignore[misc] # unfold has no types
    """How much tenants may have booked ahead; a row without an organization is for all others."""

    list_display = (
        "__str__",
        "gpu_hours_max",
        "duration_seconds_max",
        "is_duration_exempt",
        "horizon_days_max",
        "left",
    )
    list_select_related = ("organization",)
    search_fields = ("organization__name", "organization__id")
    autocomplete_fields = ("organization",)

    @admin.display(description="GPU-hours left")
    def left(self, limit: TenantLimit) -> str:
        if limit.organization is None:
            return "–"
        standing = quotas.standing_of(organization=limit.organization, at=timezone.now())
        left = standing.gpu_seconds_left
        return "no limit" if left is None else quotas.hours_text(left)

    def save_model(self, request: HttpRequest, obj: TenantLimit, form: Any, change: bool) -> None:  # noqa: ANN401, FBT001 - Django's signature
        quotas.put(limit=obj, at=timezone.now(), actor=actor_of(request))

    def delete_model(self, request: HttpRequest, obj: TenantLimit) -> None:
        quotas.drop(limit=obj, at=timezone.now(), actor=actor_of(request))

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out the deletion of many at once: it leaves no trail."""
        return {}


@admin.register(Change)
class ChangeAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc] # unfold has no types
    list_display = (
        *("id", "reservation", "kind", "at", "actor"),
        *(money("charged_minor"), money("refunded_minor"), money("fee_minor")),
    )
    list_filter = ("kind", "at")
    search_fields = ("id", "reservation__id", "reservation__organization__name")
    list_select_related = ("reservation",)
