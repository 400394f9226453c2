"""The addresses of the pages for people."""

from django.urls import path

from marketplace.console import market

urlpatterns = [path("", market.page, name="market")]
