"""One table."""

from django.db import models


class Note(models.Model):
    """A word."""

    word = models.CharField(max_length=40)

    def __str__(self):
        return self.word
