"""Is the process alive, can it serve, and what does it count."""

from collections.abc import Callable
from http import HTTPStatus

import structlog
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe
from kombu import Connection
from kombu.exceptions import OperationalError as BrokerError
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

logger = structlog.get_logger(__name__)

# A load balancer asks every few seconds and wants an answer before it asks again.
BROKER_TIMEOUT_SECONDS = 2


class NotReady(Exception):
    """Say in one sentence what is missing; it is shown to whoever asks."""


def _check_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _check_migrations() -> None:
    executor = MigrationExecutor(connection)
    if missing := executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise NotReady(f"{len(missing)} migrations have not been applied")


def _check_broker() -> None:
    with Connection(settings.CELERY_BROKER_URL, connect_timeout=BROKER_TIMEOUT_SECONDS) as broker:
        broker.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_SECONDS)


_CHECKS: dict[str, Callable[[], None]] = {
    "database": _check_database,
    "broker": _check_broker,
    "migrations": _check_migrations,
}


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """Answer that the process is alive; it asks nobody else."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 when database, broker and migrations are there, else 503 and which one is not."""
    checks = {name: _outcome(name, check) for name, check in _CHECKS.items()}
    ready = all(outcome == "ok" for outcome in checks.values())
    return JsonResponse(
        {"status": "ok" if ready else "unavailable", "checks": checks},
        status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
    )


def _outcome(name: str, check: Callable[[], None]) -> str:
    try:
        check()
    except NotReady as reason:
        return str(reason)
    except (DatabaseError, BrokerError, OSError) as error:
        logger.warning("not ready", check=name, error=str(error))
        return "does not answer"
    return "ok"


@require_safe
def metrics_text(request: HttpRequest) -> HttpResponse:
    """Serve the counts in Prometheus' text form."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)
