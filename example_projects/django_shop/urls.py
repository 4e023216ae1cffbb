"""Every address of the shop."""

from __future__ import annotations

from django.urls import include, path

from example_projects.django_shop import views

urlpatterns = [
    path("hello", views.hello),
    path("products", views.products),
    path("products/<int:product_id>", views.product),
    path("orders", views.create_order),
    path("orders/<int:order_id>", views.order),
    path("orders/<int:order_id>/notify", views.notify),
    path("orders.csv", views.orders_csv),
    path("login", views.login),
    path("users/<str:name>", views.user),
    path("quote/<int:product_id>", views.quote),
    path("where", views.where),
    path("sleep", views.sleep),
    path("poolkit/", include("poolkit_django.urls")),
]
