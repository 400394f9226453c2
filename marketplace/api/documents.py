"""The OpenAPI document as it was committed, and a page that shows it with nothing from other hosts."""

from functools import cache
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularSwaggerView
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api import simulation

SIDECAR = "drf_spectacular_sidecar/swagger-ui-dist"  # plain names: no manifest needed
COMMITTED = Path(__file__).with_name("openapi.json")


@cache
def committed_document() -> bytes:
    """Return the committed document; a test keeps it equal to what the views say."""
    return COMMITTED.read_bytes()


@require_safe
def openapi_json(request: HttpRequest) -> HttpResponse:
    """Serve the document."""
    return HttpResponse(committed_document(), content_type="application/json")


class DocsPage(SpectacularSwaggerView):
    """A readable page of the contract; scripts and styles come from this host."""

    url_name = "openapi"
    template_name = "api/docs.html"
    authentication_classes = ()
    content_negotiation_class = DefaultContentNegotiation

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: object, **kwargs: object) -> Response:
        """Show the page, with a banner above it while anything here is simulated."""
        response: Response = super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]  # theirs
        response.data["simulated"] = " and ".join(simulation.simulated_parts())
        return response

    @staticmethod
    def _swagger_ui_resource(filename: str) -> str:
        return f"{settings.STATIC_URL}{SIDECAR}/{filename}"

    @staticmethod
    def _swagger_ui_favicon() -> str:
        return DocsPage._swagger_ui_resource("favicon-32x32.png")
