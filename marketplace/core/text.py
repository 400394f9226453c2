"""Text that comes from outside: what every room refuses in it."""

from collections.abc import Mapping

from marketplace.core.errors import InvalidValue
from marketplace.core.limits import NAME_LENGTH_MAX

LABELS_MAX = 64  # more is a database, not a label
LABEL_KEY_LENGTH_MAX = 63  # as Kubernetes, whose habits operators bring along
LABEL_VALUE_LENGTH_MAX = 255


def check_text(text: str, *, length_max: int, pointer: str) -> None:
    """Refuse text that is too long or holds control characters; PostgreSQL cannot store U+0000 at all.

    :raises InvalidValue: when it does.
    """
    if not isinstance(text, str) or len(text) > length_max:
        raise InvalidValue(f"must be text of at most {length_max} characters", pointer=pointer)
    if any(
        ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF or ord(character) == 127
        for character in text
    ):
        raise InvalidValue("must not hold control characters", pointer=pointer)


def check_name(name: str, *, pointer: str) -> None:
    """Refuse a name that is blank, too long, or not printable.

    :raises InvalidValue: when it is.
    """
    check_text(name, length_max=NAME_LENGTH_MAX, pointer=pointer)
    if not name.strip():
        raise InvalidValue("must not be blank", pointer=pointer)


def check_labels(labels: Mapping[str, str], *, pointer: str) -> None:
    """Refuse labels that are not a small mapping of text to text.

    :raises InvalidValue: when there are too many, or one is empty, too long or not text.
    """
    if len(labels) > LABELS_MAX:
        raise InvalidValue(f"there may be at most {LABELS_MAX} labels", pointer=pointer)
    for key, value in labels.items():
        check_text(key, length_max=LABEL_KEY_LENGTH_MAX, pointer=pointer)
        check_text(value, length_max=LABEL_VALUE_LENGTH_MAX, pointer=f"{pointer}/{key}")
        if not key.strip():
            raise InvalidValue("a label's name must not be blank", pointer=pointer)
