"""How many calls a caller may make: a token bucket per caller, in the memory of each web process.

Memory, because a limit that costs a write to PostgreSQL per read would be the heaviest part of the read.
With several web processes each has its own buckets, so the true limit is a multiple; that is the price.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest

# The longest unused goes first: an attacker's addresses must not fill the memory.
BUCKETS_MAX = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class TokenBuckets:
    """Give each name `per_minute` tokens, filled evenly; a full bucket allows that many calls at once."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def seconds_to_wait(self, *, name: str, per_minute: int) -> int:
        """Take a token and return 0; when there is none, return in how many whole seconds there is one."""
        now = time.monotonic()
        per_second = per_minute / 60
        with self._lock:
            bucket = self._buckets.pop(name, None) or _Bucket(tokens=per_minute, filled_at=now)
            bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.filled_at) * per_second)
            bucket.filled_at = now
            self._buckets[name] = bucket
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return 0
            return int((1 - bucket.tokens) / per_second) + 1

    def clear(self) -> None:
        """Forget every caller."""
        with self._lock:
            self._buckets.clear()


buckets = TokenBuckets()


def client_address(*, remote_address: str, forwarded_for: str) -> str:
    """Return the address to count a keyless caller under.

    Each proxy of ours appends the address that it saw to X-Forwarded-For; what stands left of those entries
    is the client's own claim and is ignored. Without proxies the header is ignored altogether.
    """
    proxies = settings.TRUSTED_PROXIES
    entries = [entry.strip() for entry in forwarded_for.split(",") if entry.strip()]
    if not proxies or not entries:
        return remote_address
    return entries[-min(proxies, len(entries))]


def client_address_of(request: HttpRequest) -> str:
    """Return whence a request came, as far as our own proxies can tell."""
    return client_address(
        remote_address=request.META.get("REMOTE_ADDR", ""),
        forwarded_for=request.META.get("HTTP_X_FORWARDED_FOR", ""),
    )


def keyless_calls_per_minute() -> int:
    """Return how many calls an address may make without a key."""
    return int(settings.KEYLESS_CALLS_PER_MINUTE)
