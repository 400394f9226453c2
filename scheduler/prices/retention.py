"""How long versions of prices are kept: all of them for a while, then one a day and what was promised by."""

import datetime as dt

from django.db.models import Exists, F, OuterRef
from django.db.models.functions import TruncDay

from scheduler.models import PriceVersion, Quote

KEPT_DAYS = 90  # every version; disputes about a price come within weeks
THIN_OUT_BATCH = 2_000  # per call; 100 pools make 2,400 a day


def thin_out(*, at: dt.datetime) -> int:
    """Forget a batch of versions that are older than `KEPT_DAYS`; return how many.

    What stays for ever: the first version of each day of a pool, for the history of prices, and every
    version that a quote names.
    """
    old = PriceVersion.objects.filter(made_at__lt=at - dt.timedelta(days=KEPT_DAYS))
    earlier_that_day = PriceVersion.objects.filter(
        gpu_model=OuterRef("gpu_model"),
        region=OuterRef("region"),
        tier=OuterRef("tier"),
        number__lt=OuterRef("number"),
        made_at__gte=OuterRef("day"),
    )
    superfluous = (
        old.annotate(day=TruncDay(F("made_at")))
        .filter(
            Exists(earlier_that_day), ~Exists(Quote.objects.filter(price_version=OuterRef("pk")))
        )
        .order_by("made_at")
        .values_list("pk", flat=True)[:THIN_OUT_BATCH]
    )
    deleted, _ = PriceVersion.objects.filter(pk__in=list(superfluous)).delete()
    return deleted
