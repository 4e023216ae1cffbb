"""One table."""

from django.db import models
from django.db.models.functions import Cast


class Port(models.Func):
    """The port of the server that answers: tells who was read."""

    function = "CURRENT_SETTING"
    template = "%(function)s('port')"
    output_field = models.TextField()


class Notes(models.QuerySet):
    """Notes that may know where they come from."""

    def with_port(self):
        """Each note with the port of its server."""
        return self.annotate(port=Cast(Port(), models.IntegerField()))


class Note(models.Model):
    """What is written and read."""

    word = models.CharField(max_length=50)
    parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="children")

    objects = Notes.as_manager()

    class Meta:
        app_label = "notes"

    def __str__(self):
        return self.word


def found(word):
    """Count the notes of a word, and tell which server was asked."""
    port = Note.objects.with_port().values_list("port", flat=True)[0]
    return {"count": Note.objects.filter(word=word).count(), "port": port}
