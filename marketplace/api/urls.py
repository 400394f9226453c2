"""The addresses of /v1."""

from django.urls import path

from marketplace.api import documents, market, owner_urls

urlpatterns = [
    path("openapi.json", documents.openapi_json, name="openapi"),
    path("docs", documents.DocsPage.as_view(), name="docs"),
    path("market", market.MarketView.as_view()),
    *owner_urls.urlpatterns,
]
