"""What a tenant says of its own reservation: names, tags, keys, and when it wants to be warned of the end."""

import re
from dataclasses import dataclass, field

from marketplace.core.errors import InvalidValue
from marketplace.core.limits import (
    NAME_LENGTH_MAX,
    SSH_KEY_LENGTH_MAX,
    SSH_KEYS_MAX,
    TAG_VALUE_LENGTH_MAX,
    TAGS_MAX,
)
from marketplace.core.text import check_text

IMAGE_LENGTH_MAX = 500  # the column's width; a reference with a digest takes about 150
TAG_LENGTH_MAX = 200
WARNING_SECONDS_DEFAULT = 1_800  # time to save a large model's state, and to take it away
WARNING_SECONDS_MIN = 60
WARNING_SECONDS_MAX = 7 * 86_400
WARNINGS_MAX = 5  # a week, a day, an hour and two more; each is a message to somebody
# As in authorized_keys(5): a type, base64 and a comment on one line; options are not taken.
_SSH_KEY = re.compile(
    r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]{3,60} [A-Za-z0-9+/]{16,}={0,3}(?: [^\x00-\x1f\x7f]{0,200})?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationDetails:
    """What the tenant says of its own reservation, and what its machines need to let it in.

    `warn_before_seconds` are the notices that it wants of the end, in any order; none: it wants none.
    """

    name: str = ""
    project: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    ssh_public_keys: list[str] = field(default_factory=list)
    image: str = ""
    warn_before_seconds: list[int] = field(default_factory=lambda: [WARNING_SECONDS_DEFAULT])


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailChanges:
    """What of the details is to change; `None` leaves it. Keys reach leases that start later."""

    name: str | None = None
    project: str | None = None
    tags: dict[str, str] | None = None
    ssh_public_keys: list[str] | None = None
    warn_before_seconds: list[int] | None = None


def check_details(details: ReservationDetails) -> None:
    """Refuse details that could not be stored, or that would break a machine's file of keys.

    :raises InvalidValue: with the pointer to the first one.
    """
    for name, text, length_max in (
        ("name", details.name, NAME_LENGTH_MAX),
        ("project", details.project, NAME_LENGTH_MAX),
        ("image", details.image, IMAGE_LENGTH_MAX),
    ):
        check_text(text, length_max=length_max, pointer=f"/{name}")
    if len(details.tags) > TAGS_MAX:
        raise InvalidValue(f"at most {TAGS_MAX} tags", pointer="/tags")
    for key, value in details.tags.items():
        if not key:
            raise InvalidValue("a tag needs a name", pointer="/tags")
        check_text(key, length_max=TAG_LENGTH_MAX, pointer="/tags")
        check_text(value, length_max=TAG_VALUE_LENGTH_MAX, pointer="/tags")
    if len(details.ssh_public_keys) > SSH_KEYS_MAX:
        raise InvalidValue(f"at most {SSH_KEYS_MAX} keys", pointer="/ssh_public_keys")
    for place, text in enumerate(details.ssh_public_keys):
        if len(text) > SSH_KEY_LENGTH_MAX or not _SSH_KEY.fullmatch(text):
            raise InvalidValue(
                "must be one OpenSSH public key, such as `ssh-ed25519 AAAA… name`",
                pointer=f"/ssh_public_keys/{place}",
            )
    _check_warnings(details.warn_before_seconds)


def _check_warnings(warnings: list[int]) -> None:
    if len(warnings) > WARNINGS_MAX:
        raise InvalidValue(f"at most {WARNINGS_MAX} warnings", pointer="/warn_before")
    if len(set(warnings)) < len(warnings):
        raise InvalidValue("names one notice twice", pointer="/warn_before")
    for place, seconds in enumerate(warnings):
        if not WARNING_SECONDS_MIN <= seconds <= WARNING_SECONDS_MAX:
            raise InvalidValue("must be one minute to seven days", pointer=f"/warn_before/{place}")
