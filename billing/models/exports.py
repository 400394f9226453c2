"""What the files of closed months were when somebody first asked what they are."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from marketplace.models import Organization


class ExportDigest(models.Model):
    """One file of a closed month, counted once: the file owns it, and the nightly check reads it again."""

    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="export_digests"
    )
    month = models.CharField(max_length=7, db_comment="YYYY-MM, of UTC; it is closed")
    version = models.CharField(max_length=5)
    dataset = models.CharField(max_length=30)
    layout = models.PositiveSmallIntegerField(
        db_comment="which release's words its rows have: another one's file is another file"
    )
    rows = models.BigIntegerField(db_comment="without the header")
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, db_comment="of its bytes, in lower-case hexadecimal")
    made_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "month", "version", "dataset", "layout"],
                name="export_is_digested_once",
            ),
            models.CheckConstraint(
                condition=Q(sha256__regex=r"^[0-9a-f]{64}$", rows__gte=0, size_bytes__gt=0),
                name="export_digest_is_one",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} {self.month} {self.dataset} {self.version}"
