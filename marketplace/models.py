"""The catalogue: who takes part, what kinds of GPU there are, and what owners wish to sell."""

import datetime as dt
from typing import ClassVar, Self

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from marketplace.core import ids
from marketplace.core.limits import NAME_LENGTH_MAX, TURN_ROUND_SECONDS_MAX
from marketplace.core.money import RATE_MAX
from marketplace.states import (
    LISTING_ARROWS,
    DeliveryState,
    ListingMode,
    ListingStatus,
    Scope,
    Tier,
)


class Organization(models.Model):
    """A company: an owner sells, a tenant buys, and one may be both."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_organization_id
    )
    name = models.CharField(max_length=NAME_LENGTH_MAX)
    is_owner = models.BooleanField(default=False, db_comment="may enrol nodes and publish listings")
    is_tenant = models.BooleanField(default=False, db_comment="may reserve")
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["name"], name="organization_name_is_unique"),
            models.CheckConstraint(
                condition=Q(is_owner=True) | Q(is_tenant=True), name="organization_has_a_role"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class User(AbstractUser):
    """A person who signs in to the admin or the console. Staff belong to no organization."""

    organization = models.ForeignKey(
        Organization, null=True, blank=True, on_delete=models.PROTECT, related_name="users"
    )


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)

    def usable(self, *, at: dt.datetime) -> Self:
        """Keep the keys that are neither revoked nor expired."""
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=at), revoked_at__isnull=True
        )


class ApiKey(models.Model):
    """A bearer key of an organization. The secret is shown once; only its SHA-256 is kept.

    The secret has 256 random bits, so a fast hash is enough: there is nothing to guess.
    """

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_api_key_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="api_keys"
    )
    name = models.CharField(max_length=NAME_LENGTH_MAX)
    prefix = models.CharField(
        max_length=16, db_comment="first characters of the secret, to recognise it by"
    )
    secret_sha256 = models.CharField(
        max_length=64, unique=True, db_comment="hex SHA-256 of the whole secret"
    )
    scopes = ArrayField(models.CharField(max_length=40, choices=Scope.choices))
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class GpuModel(models.Model):
    """A kind of GPU that the market knows: `h100-sxm-80gb`."""

    id = models.SlugField(primary_key=True, max_length=60)
    name = models.CharField(max_length=NAME_LENGTH_MAX)
    memory_gib = models.PositiveIntegerField(
        db_comment="as the driver reports it, rounded to whole GiB"
    )
    nvml_names = ArrayField(
        models.CharField(max_length=NAME_LENGTH_MAX),
        db_comment="product names under which NVML reports this model",
    )

    class Meta:
        verbose_name = "GPU model"
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return self.name


class ListingQuerySet(models.QuerySet["Listing"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)

    def published(self) -> Self:
        return self.filter(status=ListingStatus.PUBLISHED)


class Listing(models.Model):
    """The owner's standing wish: these GPUs, this period, at least this rate.

    It selects by attributes of nodes, so that a node enrolled tomorrow is on offer without a new listing.
    An empty selector field matches everything. A change never touches what is already sold.
    """

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_listing_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="listings"
    )
    name = models.CharField(max_length=NAME_LENGTH_MAX)
    status = models.CharField(max_length=20, choices=ListingStatus, default=ListingStatus.DRAFT)
    gpu_model = models.ForeignKey(GpuModel, on_delete=models.PROTECT, related_name="listings")
    region = models.CharField(max_length=60, blank=True)
    fabric = models.CharField(max_length=100, blank=True)
    labels = models.JSONField(
        default=dict, blank=True, db_comment="text to text; a node must carry all of them"
    )
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True, blank=True)
    floor_rate = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        db_comment="per GPU-hour; what the owner receives at least, fee excluded",
    )
    currency = models.CharField(max_length=3)
    tier = models.CharField(max_length=20, choices=Tier, default=Tier.FIRM)
    reclaim_notice_seconds = models.PositiveIntegerField(
        default=0, db_comment="0 for the firm tier"
    )
    duration_seconds_min = models.PositiveIntegerField(default=0)
    duration_seconds_max = models.PositiveIntegerField(null=True, blank=True)
    gpus_min = models.PositiveIntegerField(default=1)
    turnaround_seconds = models.PositiveIntegerField(
        default=0, db_comment="after a tenant's window nobody else has the GPUs for this long"
    )
    blackouts = models.JSONField(
        default=list,
        blank=True,
        db_comment="[[starts_at, ends_at], …] RFC 3339 UTC, half-open: never on offer",
    )
    mode = models.CharField(max_length=20, choices=ListingMode, default=ListingMode.ALWAYS)
    idle_for_seconds = models.PositiveIntegerField(
        default=0, db_comment="when_idle: quiet at least this long"
    )
    rolling_seconds = models.PositiveIntegerField(
        default=0, db_comment="when_idle: offered from now at most this far ahead"
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    objects = ListingQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            # PostgreSQL sorts NaN above every number: the upper bound is what keeps it out.
            models.CheckConstraint(
                condition=Q(floor_rate__gt=0, floor_rate__lte=RATE_MAX),
                name="listing_floor_is_a_price",
            ),
            models.CheckConstraint(
                condition=Q(ends_at__isnull=True) | Q(ends_at__gt=F("starts_at")),
                name="listing_ends_after_start",
            ),
            models.CheckConstraint(
                condition=Q(duration_seconds_max__isnull=True)
                | Q(duration_seconds_max__gte=F("duration_seconds_min")),
                name="listing_durations_are_ordered",
            ),
            models.CheckConstraint(
                condition=Q(tier=Tier.FIRM, reclaim_notice_seconds=0)
                | Q(tier=Tier.RECLAIMABLE, reclaim_notice_seconds__gt=0),
                name="listing_notice_fits_tier",
            ),
            models.CheckConstraint(
                condition=Q(gpus_min__gte=1), name="listing_gpus_min_is_positive"
            ),
            models.CheckConstraint(
                condition=Q(turnaround_seconds__lte=TURN_ROUND_SECONDS_MAX),
                name="listing_turnaround_is_bounded",
            ),
            models.CheckConstraint(
                condition=Q(mode=ListingMode.ALWAYS, idle_for_seconds=0, rolling_seconds=0)
                | Q(mode=ListingMode.WHEN_IDLE, idle_for_seconds__gt=0, rolling_seconds__gt=0),
                name="listing_durations_fit_mode",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["gpu_model"],
                condition=Q(status=ListingStatus.PUBLISHED),
                name="listing_published_by_model",
            )
        ]

    def __str__(self) -> str:
        return self.name


class ListingTransition(models.Model):
    """One move of a listing: append-only."""

    listing = models.ForeignKey(Listing, on_delete=models.PROTECT, related_name="transitions")
    from_status = models.CharField(max_length=20, blank=True)
    to_status = models.CharField(max_length=20, choices=ListingStatus)
    actor = models.CharField(max_length=100)
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=LISTING_ARROWS.as_check(), name="listing_transition_is_legal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.listing_id}: {self.from_status or '∅'} → {self.to_status}"


class IdempotencyRecord(models.Model):
    """The first answer to a POST that moves capacity or money, kept for seven days per organization."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE)
    key = models.CharField(max_length=255)
    request_sha256 = models.CharField(max_length=64, db_comment="hex; over method, path and body")
    response_status = models.PositiveSmallIntegerField(
        null=True, db_comment="null while the first call runs"
    )
    response_body = models.TextField(null=True, db_comment="as it was sent, byte for byte")  # noqa: DJ001 - null while the first call runs
    created_at = models.DateTimeField()
    locked_until = models.DateTimeField(
        db_comment="a call that died is forgotten after this instant"
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "key"], name="idempotency_key_is_unique"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["created_at"], name="idempotency_created_at")]

    def __str__(self) -> str:
        return self.key


class AuditEvent(models.Model):
    """Who changed what in the catalogue: append-only, written in the transaction of the change."""

    at = models.DateTimeField()
    actor = models.CharField(max_length=100, db_comment="key id, user name or task name")
    action = models.CharField(max_length=60, db_comment="for example listing.published")
    object_id = models.CharField(max_length=ids.ID_LENGTH_MAX, db_index=True)
    organization = models.ForeignKey(Organization, null=True, on_delete=models.PROTECT)
    detail = models.JSONField(default=dict)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.action} {self.object_id}"


class EventQuerySet(models.QuerySet["Event"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class Event(models.Model):
    """Something that an organization is told, exactly once: `key` names the occasion."""

    id = models.CharField(primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_event_id)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="events")
    kind = models.CharField(max_length=60, db_comment="of EventKind: reservation.scheduled")
    object_id = models.CharField(max_length=ids.ID_LENGTH_MAX, db_comment="what it is about")
    data = models.JSONField(default=dict, db_comment="no secret")
    key = models.CharField(max_length=200, db_comment="one event per key, ever")
    at = models.DateTimeField()

    objects = EventQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["key"], name="event_is_told_once")]
        indexes: ClassVar = [models.Index(fields=["organization", "-id"], name="event_by_tenant")]

    def __str__(self) -> str:
        return f"{self.kind} {self.object_id}"


class WebhookEndpointQuerySet(models.QuerySet["WebhookEndpoint"]):
    def visible_to(self, organization: Organization) -> Self:
        return self.filter(organization=organization)


class WebhookEndpoint(models.Model):
    """An address of an organization that is called when there is an event. Its secrets are kept sealed."""

    id = models.CharField(
        primary_key=True, max_length=ids.ID_LENGTH_MAX, default=ids.new_webhook_endpoint_id
    )
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="webhook_endpoints"
    )
    url = models.CharField(max_length=500)
    kinds = ArrayField(
        models.CharField(max_length=60), db_comment="of EventKind; empty: every kind"
    )
    sealed_secret = models.TextField()
    sealed_secret_before = models.TextField(blank=True, db_comment="signs as well for a while")
    secret_before_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    failing_since = models.DateTimeField(null=True, db_comment="null: the last call was taken")
    disabled_at = models.DateTimeField(null=True)
    disabled_because = models.CharField(max_length=40, blank=True)

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(disabled_at__isnull=True, disabled_because="")
                | (Q(disabled_at__isnull=False) & ~Q(disabled_because="")),
                name="webhook_endpoint_is_disabled_for_a_reason",
            )
        ]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-id"], name="webhook_endpoint_by_tenant")
        ]

    def __str__(self) -> str:
        return self.url


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    def in_state(self, state: DeliveryState) -> Self:
        """Return those of which this has become; the property of a row says the same."""
        match state:
            case DeliveryState.DELIVERED:
                return self.filter(delivered_at__isnull=False)
            case DeliveryState.WAITING:
                return self.filter(delivered_at__isnull=True, due_at__isnull=False)
            case DeliveryState.GIVEN_UP:
                return self.filter(delivered_at__isnull=True, due_at__isnull=True)


class WebhookDelivery(models.Model):
    """One event on its way to one endpoint; `due_at` is null when it has arrived or was given up."""

    endpoint = models.ForeignKey(
        WebhookEndpoint, on_delete=models.CASCADE, related_name="deliveries"
    )
    event = models.ForeignKey(Event, on_delete=models.PROTECT, related_name="deliveries")
    due_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(db_comment="calls that were begun")
    delivered_at = models.DateTimeField(null=True)
    last_status = models.PositiveSmallIntegerField(null=True, db_comment="of HTTP; null: no answer")
    last_answer = models.CharField(
        max_length=500, blank=True, db_comment="what went wrong, or how the answer began"
    )

    objects = WebhookDeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "webhook deliveries"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["endpoint", "event"], name="delivery_is_one_per_event")
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["due_at"], condition=Q(due_at__isnull=False), name="delivery_is_due"
            )
        ]

    def __str__(self) -> str:
        return f"{self.event_id} to {self.endpoint_id}"

    @property
    def state(self) -> DeliveryState:
        """What has become of it; the same as `in_state` finds it by."""
        if self.delivered_at is not None:
            return DeliveryState.DELIVERED
        return DeliveryState.GIVEN_UP if self.due_at is None else DeliveryState.WAITING


class WebhookCall(models.Model):
    """One call of an endpoint that was made, and what came back: written when it ended, never changed."""

    delivery = models.ForeignKey(WebhookDelivery, on_delete=models.CASCADE, related_name="calls")
    at = models.DateTimeField(db_comment="the run that made it")
    response_status = models.PositiveSmallIntegerField(
        null=True, db_comment="of HTTP; null: no answer"
    )
    error = models.CharField(
        max_length=500, blank=True, db_comment="what went wrong, or how the refusal began"
    )

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.delivery_id} at {self.at:%Y-%m-%dT%H:%M:%SZ}: {self.response_status or self.error}"
