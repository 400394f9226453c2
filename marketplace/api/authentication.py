"""Who is calling: `Authorization: Bearer hr_live_…`."""

from dataclasses import dataclass

from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from marketplace import organizations
from marketplace.models import ApiKey, Organization

AUTHORIZATION_LENGTH_MAX = 200  # "Bearer " and 51 characters; more is no key of ours


@dataclass(frozen=True, slots=True)
class Caller:
    """The organization that calls, through one of its keys."""

    organization: Organization
    api_key: ApiKey
    is_authenticated: bool = True
    is_active: bool = True

    @property
    def actor(self) -> str:
        """Return the name under which this caller's doings are recorded."""
        return self.api_key.id

    @property
    def pk(self) -> str:
        return self.api_key.pk


class ApiKeyAuthentication(BaseAuthentication):
    """Authenticate by bearer key. No header is no caller; a wrong one is refused even on public addresses."""

    def authenticate(self, request: Request) -> tuple[Caller, ApiKey] | None:
        """Return the caller, or None when there is no Authorization header.

        :raises InvalidApiKey: when there is one and it holds no usable key.
        """
        header = request.META.get("HTTP_AUTHORIZATION", "")
        if not header:
            return None
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or len(header) > AUTHORIZATION_LENGTH_MAX:
            raise organizations.InvalidApiKey("send the header Authorization: Bearer hr_live_…")
        api_key = organizations.authenticate(secret=secret.strip(), at=timezone.now())
        return Caller(organization=api_key.organization, api_key=api_key), api_key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="headroom"'


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call] # drf-spectacular registers it untyped
    """How the OpenAPI document names the key."""

    target_class = ApiKeyAuthentication
    name = "apiKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "hr_live_…",
            "description": "A key of an organization. It has scopes and may expire or be revoked.",
        }
