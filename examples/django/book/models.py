"""An entry of the guestbook."""

from django.db import models


class Entry(models.Model):
    name = models.CharField(max_length=60)
    message = models.TextField(max_length=1000)
    written = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
