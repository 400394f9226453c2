"""Which face answers which path."""

from django.contrib import admin
from django.urls import include, path

from billing.admin.checks import books_view
from marketplace.api import agent, health, provider_webhook

urlpatterns = [
    path("admin/books/", admin.site.admin_view(books_view), name="books"),
    path("admin/", admin.site.urls),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics_text),
    *agent.urlpatterns,
    path("webhooks/stripe", provider_webhook.receive),
    path("v1/", include("marketplace.api.urls")),
    path("", include("marketplace.console.urls")),
]
handler400 = "marketplace.api.errors.bad_request"
handler404 = "marketplace.api.errors.not_found"
handler500 = "marketplace.api.errors.server_error"
