"""Request signatures: a subset of HTTP Message Signatures (RFC 9421) with content digests (RFC 9530)."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import math
import re
from dataclasses import dataclass

SIGNATURE_SKEW_SECONDS_MAX = 120
ENROL_KEY_ID = "enrolment"  # key id of the first request: the node has no id yet

SIGNED_COMPONENTS = ("@method", "@authority", "@path", "content-digest")


class BadSignature(ValueError):
    """Say why the signature headers of a request cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureInput:
    """The parsed `Signature-Input` of a request."""

    key_id: str
    created_at: dt.datetime
    signature: bytes
    parameters: str


def content_digest(body: bytes) -> str:
    """Return the `Content-Digest` header of a body (RFC 9530, sha-256)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signature_parameters(*, key_id: str, created_at: dt.datetime) -> str:
    """Return the value of `Signature-Input` after `sig1=`."""
    components = " ".join(f'"{name}"' for name in SIGNED_COMPONENTS)
    return f'({components});created={math.floor(created_at.timestamp())};keyid="{key_id}";alg="ed25519"'


def signature_base(
    *, method: str, authority: str, path: str, digest: str, parameters: str
) -> bytes:
    """Return the bytes that are signed (RFC 9421 section 2.5)."""
    values = (method.upper(), authority.lower(), path, digest)
    lines = [f'"{name}": {value}' for name, value in zip(SIGNED_COMPONENTS, values, strict=True)]
    lines.append(f'"@signature-params": {parameters}')
    return "\n".join(lines).encode()


_SIGNATURE_INPUT = re.compile(
    r'sig1=(\("@method" "@authority" "@path" "content-digest"\)'
    r';created=(\d{1,12});keyid="([A-Za-z0-9_-]{1,64})";alg="ed25519")',
    flags=re.ASCII,
)
_SIGNATURE = re.compile(r"sig1=:([A-Za-z0-9+/]{86}==):", flags=re.ASCII)


def parse_signature(*, signature_input: str, signature: str) -> SignatureInput:
    """Read the two signature headers of a request.

    :raises BadSignature: when they are missing or not of the one form that agents send.
    """
    parameters = _SIGNATURE_INPUT.fullmatch(signature_input)
    value = _SIGNATURE.fullmatch(signature)
    if parameters is None or value is None:
        raise BadSignature(
            "Signature-Input and Signature must name sig1 with the four covered components"
        )
    return SignatureInput(
        key_id=parameters[3],
        created_at=dt.datetime.fromtimestamp(int(parameters[2]), tz=dt.UTC),
        signature=base64.b64decode(value[1]),
        parameters=parameters[1],
    )
