"""The shop with Django: the ORM as ever, one transaction for each request."""
