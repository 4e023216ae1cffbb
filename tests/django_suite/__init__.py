"""Django's own test suite on poolkit's engines and on Django's own: `python -m tests.django_suite --help`."""
