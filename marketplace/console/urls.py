"""The addresses of the pages for people."""

from django.urls import path

from marketplace.console import market, pay, prices

urlpatterns = [
    path("", market.page, name="market"),
    path("pay/<str:payment_id>", pay.page, name="pay"),
    path("prices", prices.page, name="prices"),
]
