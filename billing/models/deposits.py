"""A price that is paid in two parts: a deposit at booking, and the balance some time before the start."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q

from billing.provider_states import DepositStatus
from scheduler.models import Reservation

_WAITING = (DepositStatus.OPEN, DepositStatus.ASKED)


class Deposit(models.Model):
    """The two parts of one reservation's price, and when the second is due.

    The net parts add up to the total; those with tax to what it costs with tax, by cumulative difference.
    """

    reservation = models.OneToOneField(
        Reservation, primary_key=True, on_delete=models.PROTECT, related_name="deposit"
    )
    status = models.CharField(max_length=20, choices=DepositStatus, default=DepositStatus.AWAITED)
    net_minor = models.BigIntegerField(db_comment="of the deposit, without tax")
    gross_minor = models.BigIntegerField(db_comment="of the deposit, with tax")
    balance_net_minor = models.BigIntegerField()
    balance_gross_minor = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    balance_due_at = models.DateTimeField(db_comment="the saved card is charged then")
    announced_at = models.DateTimeField(null=True, db_comment="told that the balance comes")
    return_by = models.DateTimeField(
        null=True, db_comment="unless it is paid by then, the reservation is given up"
    )
    act_due_at = models.DateTimeField(null=True, db_comment="the next step; null: there is none")
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-reservation"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(
                    net_minor__gt=0,
                    balance_net_minor__gt=0,
                    gross_minor__gte=F("net_minor"),
                    balance_gross_minor__gte=F("balance_net_minor"),
                ),
                name="deposit_has_two_parts",
            ),
            models.CheckConstraint(
                condition=Q(status=DepositStatus.ASKED, return_by__isnull=False)
                | ~Q(status=DepositStatus.ASKED),
                name="deposit_says_by_when_to_return",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["act_due_at"], condition=Q(status__in=_WAITING), name="deposit_due"
            )
        ]

    def __str__(self) -> str:
        return f"deposit of {self.reservation_id}"
