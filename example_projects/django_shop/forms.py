"""What the requests have to bring."""

from __future__ import annotations

from django import forms


class OrderForm(forms.Form):
    """The body of POST /orders."""

    product_id = forms.IntegerField(min_value=1, max_value=2**63 - 1)
    quantity = forms.IntegerField(min_value=1, max_value=1000)


class LoginForm(forms.Form):
    """The body of POST /login."""

    user = forms.CharField()
    password = forms.CharField(strip=False)


class SleepForm(forms.Form):
    """The query of GET /sleep."""

    seconds = forms.FloatField(min_value=0, max_value=60)
