"""What arrives from a node: the sealed request, its signature and its strict reading. No database here."""

import base64
import binascii
import datetime as dt
import zlib
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agents import protocol
from marketplace.core.errors import DomainError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
MessageT = TypeVar("MessageT")


class BadSignature(DomainError):
    """The request is not signed by the key of the node that it names, or its content was altered."""

    code = "bad_signature"
    title = "The signature does not fit the request"


class ClockSkew(DomainError):
    """The request was signed at another time; `extra["now"]` is the server's, to sign with."""

    code = "clock_skew"
    title = "The clocks differ too much"


class MalformedReport(DomainError):
    """The body is no such message: nothing of it was used."""

    code = "malformed_report"
    title = "The message cannot be read"


class BodyTooLarge(DomainError):
    """The body is larger than any honest report."""

    code = "body_too_large"
    title = "The body is too large"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A request as it came over the wire. `body` is what was signed: still compressed if it was sent so.

    `client_address` is whence it came, as far as our own proxies can tell: nobody signed it.
    """

    method: str
    authority: str
    path: str
    body: bytes
    content_encoding: str
    content_digest: str
    signature_input: str
    signature: str
    client_address: str | None = None


def read_signature(*, signed: SignedRequest) -> protocol.SignatureInput:
    """Return who claims to have signed a request, and when.

    :raises BadSignature: when the headers cannot be read or the digest is not that of the body.
    """
    if signed.content_digest != protocol.content_digest(signed.body):
        raise BadSignature("Content-Digest is not the SHA-256 of the body")
    try:
        return protocol.parse_signature(
            signature_input=signed.signature_input, signature=signed.signature
        )
    except protocol.BadSignature as error:
        raise BadSignature(str(error)) from None
    except (ValueError, OverflowError, OSError):
        raise BadSignature("created is no instant that a clock can show") from None


def verify(
    *,
    signed: SignedRequest,
    claim: protocol.SignatureInput,
    public_key: str,
    at: dt.datetime,
) -> None:
    """Check that a request was signed by `public_key` within two minutes of `at`.

    The signature covers method, authority, path and content digest (RFC 9421), so a request recorded for
    one market is worthless at another.

    :raises BadSignature: when it was not.
    :raises ClockSkew: when it was signed by that key, but too long ago or in the future.
    """
    base = protocol.signature_base(
        method=signed.method,
        authority=signed.authority,
        path=signed.path,
        digest=signed.content_digest,
        parameters=claim.parameters,
    )
    if not is_signed_by(public_key=public_key, signature=claim.signature, message=base):
        raise BadSignature("the signature is not of this request by this key")
    skew_seconds = abs((claim.created_at - at).total_seconds())
    if skew_seconds > protocol.SIGNATURE_SKEW_SECONDS_MAX:
        raise ClockSkew(
            f"signed {skew_seconds:.0f} s from the server's time,"
            f" at most {protocol.SIGNATURE_SKEW_SECONDS_MAX} s are taken",
            extra={"now": protocol.to_json(at)},
        )


def is_signed_by(*, public_key: str, signature: bytes, message: bytes) -> bool:
    """Say whether `signature` is that of `message` by a public key (base64url, as stored)."""
    try:
        Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public_key)).verify(
            signature, message
        )
    except InvalidSignature:
        return False
    return True


def is_receipt_signed_by(*, public_key: str, receipt: protocol.Receipt) -> bool:
    """Say whether a receipt carries the signature (base64) of its other fields by a public key."""
    try:
        signature = base64.b64decode(receipt.signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    if len(signature) != SIGNATURE_BYTES:
        return False
    return is_signed_by(public_key=public_key, signature=signature, message=receipt.signed_bytes())


def normalize_public_key(text: str) -> str:
    """Return a public key in its one stored form: padded base64url of 32 bytes that are a point.

    :raises MalformedReport: when it is none.
    """
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if len(key) != PUBLIC_KEY_BYTES:
            raise ValueError(f"has {len(key)} bytes")
        Ed25519PublicKey.from_public_bytes(key)
    except (binascii.Error, ValueError) as error:
        raise MalformedReport(f"the public key {error}", pointer="/public_key") from None
    return base64.urlsafe_b64encode(key).decode()


def decode(*, message_type: type[MessageT], signed: SignedRequest) -> MessageT:
    """Read a message strictly, after unpacking it if it was compressed.

    :raises BodyTooLarge: when it unpacks to more than a report may have.
    :raises MalformedReport: when it is no such message, or holds text that is no Unicode.
    """
    body = _unpack(signed=signed)
    try:
        body.decode("utf-8")  # json.loads would also take UTF-16, UTF-32 and raw surrogates
        message = protocol.decode(message_type, body)
        if b"\\u" in body:
            protocol.encode(message)  # "\ud800" parses, but no database can store half a character
    except UnicodeError:
        raise MalformedReport("the body is not Unicode text in UTF-8", pointer="") from None
    except protocol.MalformedMessage as error:
        raise MalformedReport(str(error), pointer=error.pointer) from None
    return message


def check_protocol(*, protocol_version: int) -> None:
    """Refuse a message of a protocol that this market does not speak.

    :raises MalformedReport: then.
    """
    if protocol_version not in protocol.PROTOCOL_VERSIONS:
        spoken = " and ".join(str(version) for version in protocol.PROTOCOL_VERSIONS)
        raise MalformedReport(
            f"protocol {protocol_version} is not spoken here, only {spoken}", pointer="/protocol"
        )


def check_length(*, text: str, length_max: int, pointer: str) -> None:
    """Refuse a text that its column could not hold, or that is empty where a name is needed.

    :raises MalformedReport: then.
    """
    if not 1 <= len(text) <= length_max:
        raise MalformedReport(f"{pointer}: must have 1 to {length_max} characters", pointer=pointer)


def _unpack(*, signed: SignedRequest) -> bytes:
    """Return the body, unpacked if it came as gzip, never more than a report may have."""
    limit = protocol.REPORT_BODY_BYTES_MAX
    encoding = signed.content_encoding.strip().lower()
    if encoding in {"", "identity"}:
        body = signed.body
    elif encoding == "gzip":
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: a gzip header is expected
        try:
            body = unpacker.decompress(signed.body, limit + 1)
        except zlib.error:
            raise MalformedReport("the body is not gzip", pointer="") from None
        if len(body) <= limit and not unpacker.eof:
            raise MalformedReport("the gzip body ends too early", pointer="")
    else:
        raise MalformedReport("Content-Encoding must be gzip or absent", pointer="")
    if len(body) > limit:
        raise BodyTooLarge(f"a report has at most {limit} bytes")
    return body
