"""`path("poolkit/", include("poolkit_django.urls"))`."""

from __future__ import annotations

from django.urls import path

from poolkit_django import views

app_name = "poolkit"
urlpatterns = [
    path("health", views.health, name="health"),
    path("ready", views.ready, name="ready"),
    path("stats.json", views.stats, name="stats"),
    path("pools/", views.pools, name="pools"),
]
