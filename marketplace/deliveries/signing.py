"""Secrets of endpoints and signatures by them, as Standard Webhooks has it: pure but for the key of the seal.

What is signed is `{id}.{timestamp}.{body}` by HMAC-SHA256. A secret is shown once; we need it to sign, so it
is kept, sealed by a key that the database does not have.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from cryptography.fernet import Fernet, MultiFernet
from django.conf import settings
from django.utils.encoding import force_bytes

PREFIX = "whsec_"
SECRET_BYTES = 32  # the specification asks for 24 to 64
_PURPOSE = b"secrets of webhook endpoints:"


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def seal(secret: str) -> str:
    return _box().encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    return _box().decrypt(sealed.encode()).decode()


def sign(*, keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header's value: a signature by each of some secrets, the newest first."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    marks = (
        hmac.digest(base64.b64decode(key.removeprefix(PREFIX)), signed, "sha256") for key in keys
    )
    return " ".join(f"v1,{base64.b64encode(mark).decode()}" for mark in marks)


def _box() -> MultiFernet:
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return MultiFernet(
        Fernet(base64.urlsafe_b64encode(hashlib.sha256(_PURPOSE + force_bytes(key)).digest()))
        for key in keys
    )
