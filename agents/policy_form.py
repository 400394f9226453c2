"""The form with which staff publish a new version of an owner's policy."""

import json
from typing import Any

from django import forms
from django.forms import BoundField
from django.http import QueryDict
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
)

from agents import protocol
from agents.protocol import HEALTH_BOUNDS, IDLE_BOUNDS, NodePolicy, Verdict, XidRule
from marketplace.core.errors import DomainError, InvalidValue
from marketplace.models import Organization

TABLE_CHARACTERS_MAX = 20_000  # five times the defaults
# What each field is, for people; the fields themselves and their bounds are the protocol's.
_LABELS = {
    "free_after_seconds": "Free after so many quiet seconds",
    "parked_after_seconds": "Parked after so many seconds",
    "memory_used_bytes_max": "Memory that an idle GPU may show, bytes",
    "utilization_percent_max": "Load that counts as none, percent",
    "power_floor_percent": "Power that counts as rest, percent of the card's own",
    "missed_samples_max": "Looks that may be missed",
    "xid_rules": "Xids: number to tenant, watch, suspect or quarantine",
    "xid_rule_default": "Xids that the table does not name",
    "tenant_xid_leases": "Leases with application errors that make a GPU suspect",
    "tenant_xid_days": "Days over which these leases count",
    "quarantine_repeats": "Quarantines by an Xid after which only the owner clears",
    "quarantine_repeat_days": "Days over which these quarantines count",
    "recovery_verdicts": "Recovery that the driver asks for: number to ignore, suspect or quarantine",
    "ecc_uncorrected": "Uncorrectable memory errors",
    "sram_uncorrected": "Uncorrectable errors of the on-chip memory",
    "dram_corrected_max": "Corrected errors that are still well",
    "dram_corrected": "More corrected errors",
    "row_remap_pending": "A remapped row waits for a reset",
    "row_remap_failed": "A row could not be remapped",
    "remapped_rows_uncorrected_max": "Remapped rows that are still well",
    "remapped_rows": "More remapped rows",
    "nvlink_inactive": "An NVLink is down",
    "pcie_width_reduced": "PCIe lanes are missing under load",
    "pcie_load_percent_min": "Load from which lanes are counted, percent",
    "fabric_incomplete": "The NVLink fabric is not complete",
    "ecc_mode_pending": "ECC will change with the next reset",
    "hardware_slowdown": "The hardware slows the GPU down",
    "hardware_slowdown_percent_max": "Looks that may show a slowdown, percent of ten minutes",
    "unread": "A value could not be read",
    "suspect_seconds": "A suspicion ends after so many seconds",
}
_TABLES = ("xid_rules", "recovery_verdicts")


class OwnerForm(forms.Form):
    """Whose nodes the policy is for."""

    organization = forms.ModelChoiceField(
        queryset=Organization.objects.filter(is_owner=True).order_by("name"),
        label="Owner",
        widget=UnfoldAdminSelectWidget,
    )


class PolicyForm(forms.Form):
    """Every field of a policy, with its bounds and its default; the version in force is filled in."""

    based_on = forms.IntegerField(widget=forms.HiddenInput)

    def __init__(self, data: QueryDict | None = None, *, current: NodePolicy) -> None:
        filled = protocol.to_json(current)
        initial: dict[str, Any] = {"based_on": current.version}
        for part in ("idle", "health"):
            for name, value in filled[part].items():
                initial[name] = json.dumps(value, indent=1) if name in _TABLES else value
        super().__init__(data, initial=initial)
        defaults = protocol.to_json(NodePolicy())
        self.parts = {part: list(defaults[part]) for part in ("idle", "health")}
        bounds = IDLE_BOUNDS | HEALTH_BOUNDS
        for part, names in self.parts.items():
            for name in names:
                self.fields[name] = _field(
                    name=name, default=defaults[part][name], bounds=bounds.get(name)
                )
        self.wide = _TABLES

    @property
    def sections(self) -> list[tuple[str, list[BoundField]]]:
        """Return the fields under their titles, in the order of the protocol."""
        titles = {"idle": "When a GPU counts as idle", "health": "What makes a GPU unfit for sale"}
        return [
            (title, [self[name] for name in self.parts[part]]) for part, title in titles.items()
        ]

    def document(self) -> dict[str, dict[str, Any]]:
        """Return what was entered, as a policy is published; the form is valid."""
        return {
            part: {name: self.cleaned_data[name] for name in names}
            for part, names in self.parts.items()
        }


class _TableField(forms.CharField):
    """A small JSON object."""

    def clean(self, value: Any) -> Any:  # noqa: ANN401 - Django's signature
        text = super().clean(value)
        try:
            table = json.loads(text)
        except ValueError as error:
            raise forms.ValidationError(f"This is not JSON: {error}") from None
        if not isinstance(table, dict):
            raise forms.ValidationError('This must be an object, such as {"79": "quarantine"}.')
        return table


def _field(*, name: str, default: Any, bounds: tuple[int, int] | None) -> forms.Field:  # noqa: ANN401 - JSON
    label = _LABELS[name]
    if name in _TABLES:
        return _TableField(
            label=label,
            max_length=TABLE_CHARACTERS_MAX,
            widget=UnfoldAdminTextareaWidget(attrs={"rows": 12}),
            help_text=f"A JSON object; the default has {len(default)} entries.",
        )
    if bounds is not None:
        least, most = bounds
        return forms.IntegerField(
            label=label,
            min_value=least,
            max_value=most,
            widget=UnfoldAdminIntegerFieldWidget,
            help_text=f"{least:,} to {most:,}; default {default:,}",
        )
    words = XidRule if name == "xid_rule_default" else Verdict
    return forms.ChoiceField(
        label=label,
        choices=[(word.value, word.value) for word in words],
        widget=UnfoldAdminSelectWidget,
        help_text=f"default {default}",
    )


def tell(*, form: PolicyForm, refusal: DomainError) -> None:
    """Show a refusal at the field that it is about, or above all of them."""
    parts = (refusal.pointer or "").split("/") if isinstance(refusal, InvalidValue) else []
    named = parts[2] if len(parts) > 2 and parts[2] in form.fields else None
    form.add_error(named, refusal.detail)
