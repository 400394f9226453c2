"""The addresses of the pages for people."""

from django.urls import path

from marketplace.console import market, prices

urlpatterns = [
    path("", market.page, name="market"),
    path("prices", prices.page, name="prices"),
]
