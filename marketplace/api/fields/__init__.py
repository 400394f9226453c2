"""Strict fields: nothing is guessed, nothing is converted that the contract does not name.

Django REST framework's own fields take `"8"` for 8, `1` for true and 8 for `"8"`; these refuse. Errors
carry stable codes: `unknown_field`, `repeated_parameter`, `required`, `null`, `wrong_type`, `wrong_form`,
`out_of_range`, `too_long`, `too_many`, `invalid_choice`, `blank`.
"""

from marketplace.api.fields.lists import CURSOR_LENGTH_MAX, PageQuery, StrictListField
from marketplace.api.fields.money import MoneyField, MoneySerializer, PriceBreakdownField, RateField
from marketplace.api.fields.numbers import SwitchField, WholeNumberField
from marketplace.api.fields.strict import NoParameters, StrictSerializer
from marketplace.api.fields.text import (
    ID_FORM,
    TAG_LENGTH_MAX,
    ChoiceField,
    TagsField,
    TextField,
    is_storable,
)
from marketplace.api.fields.times import (
    DurationField,
    InstantField,
    SecondsAsDurationField,
    StartField,
)

__all__ = [
    "CURSOR_LENGTH_MAX",
    "ID_FORM",
    "TAG_LENGTH_MAX",
    "ChoiceField",
    "DurationField",
    "InstantField",
    "MoneyField",
    "MoneySerializer",
    "NoParameters",
    "PageQuery",
    "PriceBreakdownField",
    "RateField",
    "SecondsAsDurationField",
    "StartField",
    "StrictListField",
    "StrictSerializer",
    "SwitchField",
    "TagsField",
    "TextField",
    "WholeNumberField",
    "is_storable",
]
