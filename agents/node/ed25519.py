"""Ed25519 signatures in pure Python (RFC 8032 section 5.1), so that the agent needs no compiled package.

Points are kept in extended coordinates (X, Y, Z, T) with x = X/Z, y = Y/Z and x*y = T/Z; multiples of the
base point come from a window table of 64 rows of 16 points that is built at the first use. One signature
takes about a millisecond and one report needs one or two of them.

This code is not constant-time: how long a signature takes depends on the key. That is acceptable here
because the key never leaves a host that its owner controls, whoever can time this process from inside that
host can read the key file anyway, and from outside the time of a report is dominated by the network.
Verification of strangers' signatures happens at the market with a compiled library, never here.
"""

from __future__ import annotations

import functools
import hashlib

SEED_BYTES = 32
_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_BASE_Y = 4 * pow(5, _P - 2, _P) % _P
_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_WINDOW_BITS = 4
_WINDOWS = 64  # 64 windows of 4 bits cover a 256-bit scalar

_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)
_BASE: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def public_key(*, seed: bytes) -> bytes:
    """Return the 32 bytes of the public key that belongs to a 32-byte seed.

    :raises ValueError: when the seed has another length.
    """
    scalar, _ = _expand(seed)
    return _compress(_multiply_base(scalar))


def sign(*, seed: bytes, message: bytes) -> bytes:
    """Return the 64-byte signature of `message` by the key that grew from `seed`.

    :raises ValueError: when the seed has another length than 32 bytes.
    """
    scalar, prefix = _expand(seed)
    public = _compress(_multiply_base(scalar))
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % _ORDER
    commitment = _compress(_multiply_base(nonce))
    challenge = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little")
    answer = (nonce + challenge * scalar) % _ORDER
    return commitment + answer.to_bytes(32, "little")


def _expand(seed: bytes) -> tuple[int, bytes]:
    """Split the hash of a seed into the clamped scalar and the prefix (RFC 8032 section 5.1.5)."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little")
    scalar &= (1 << 254) - 8
    scalar |= 1 << 254
    return scalar, digest[32:]


def _add(p: _Point, q: _Point) -> _Point:
    """Add two points; the formula is complete, so that it also doubles (RFC 8032 section 5.1.4)."""
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


@functools.cache
def _base_table() -> tuple[tuple[_Point, ...], ...]:
    """Return row i, column j = j * 16^i * base point."""
    rows: list[tuple[_Point, ...]] = []
    step = _BASE
    for _ in range(_WINDOWS):
        row = [_NEUTRAL]
        for _ in range((1 << _WINDOW_BITS) - 1):
            row.append(_add(row[-1], step))
        rows.append(tuple(row))
        step = _add(row[-1], step)
    return tuple(rows)


def _multiply_base(scalar: int) -> _Point:
    total = _NEUTRAL
    for row in _base_table():
        total = _add(total, row[scalar & 15])
        scalar >>= _WINDOW_BITS
    return total


def _compress(point: _Point) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, _P - 2, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")
