"""The addresses of /v1."""

from django.urls import path

from marketplace.api import (
    bills,
    changes,
    documents,
    leases,
    market,
    not_built,
    offerings,
    owner_urls,
    prices,
    quotes,
    reservations,
    top_ups,
    wallet,
)

urlpatterns = [
    path("openapi.json", documents.openapi_json, name="openapi"),
    path("docs", documents.DocsPage.as_view(), name="docs"),
    path("market", market.MarketView.as_view()),
    path("gpu-models", offerings.GpuModelsView.as_view()),
    path("offerings", offerings.OfferingsView.as_view()),
    path("price-curve", offerings.PriceCurveView.as_view()),
    path("price-history", prices.PriceHistoryView.as_view()),
    path("quotes", quotes.QuotesView.as_view()),
    path("quotes/<str:quote_id>", quotes.QuoteView.as_view()),
    path("reservations", reservations.ReservationsView.as_view()),
    path("reservations/<str:reservation_id>", reservations.ReservationView.as_view()),
    path("reservations/<str:reservation_id>/bill", bills.BillView.as_view()),
    path(
        "reservations/<str:reservation_id>/cancellation-quote",
        changes.CancellationQuoteView.as_view(),
    ),
    path("reservations/<str:reservation_id>/cancellation", changes.CancellationView.as_view()),
    path("reservations/<str:reservation_id>/extension-quote", changes.ExtensionQuoteView.as_view()),
    path("reservations/<str:reservation_id>/extensions", changes.ExtensionsView.as_view()),
    path("reservations/<str:reservation_id>/change-quote", changes.ChangeQuoteView.as_view()),
    path("reservations/<str:reservation_id>/changes", changes.ChangesView.as_view()),
    path("leases", leases.LeasesView.as_view()),
    path("leases/<str:lease_id>", leases.LeaseView.as_view()),
    path("leases/<str:lease_id>/utilization", leases.UtilizationView.as_view()),
    path("wallet", wallet.WalletView.as_view()),
    path("wallet/top-ups", top_ups.TopUpsView.as_view()),
    path("wallet/top-ups/<str:payment_id>", top_ups.TopUpView.as_view()),
    path("wallet/entries", wallet.WalletEntriesView.as_view()),
    *owner_urls.urlpatterns,
    *not_built.urlpatterns,
]
