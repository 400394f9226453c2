"""The addresses of the owner's side of /v1."""

from django.urls import path

from marketplace.api import (
    owner_fleet,
    owner_gpus,
    owner_leases,
    owner_listings,
    owner_money,
    owner_statements,
    owner_utilization,
    payout_account,
)

urlpatterns = [
    path("enrolment-tokens", owner_fleet.EnrolmentTokensView.as_view()),
    path("nodes", owner_fleet.NodesView.as_view()),
    path("nodes/<str:node_id>", owner_fleet.NodeView.as_view()),
    path("nodes/<str:node_id>/drain", owner_fleet.DrainView.as_view()),
    path("nodes/<str:node_id>/resume", owner_fleet.ResumeView.as_view()),
    path("gpus", owner_gpus.GpusView.as_view()),
    path("leases/<str:lease_id>/reclaim", owner_leases.ReclaimView.as_view()),
    path("listings", owner_listings.ListingsView.as_view()),
    path("listings/<str:listing_id>", owner_listings.ListingView.as_view()),
    path("listings/<str:listing_id>/publish", owner_listings.PublishView.as_view()),
    path("listings/<str:listing_id>/pause", owner_listings.PauseView.as_view()),
    path("listings/<str:listing_id>/retire", owner_listings.RetireView.as_view()),
    path("owner/earnings", owner_money.EarningsView.as_view()),
    path("owner/statements/<str:month>", owner_statements.StatementView.as_view()),
    path("owner/utilization", owner_utilization.UtilizationView.as_view()),
    path("owner/payout-account", payout_account.PayoutAccountView.as_view()),
    path("payouts", owner_money.PayoutsView.as_view()),
]
