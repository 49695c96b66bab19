"""Routes."""

from book import views
from django.urls import path

urlpatterns = [
    path("", views.home),
    path("entries", views.sign),
    path("entries.json", views.entries_json),
    path("health", views.health),
]
