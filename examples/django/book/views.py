"""What the URLs answer."""

from django.forms import ModelForm
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from book.models import Entry


class EntryForm(ModelForm):
    class Meta:
        model = Entry
        fields = ["name", "message"]


def home(request):
    return render(request, "book.html", {"form": EntryForm(), "entries": Entry.objects.all()[:100]})


def entries_json(request):
    return JsonResponse({"entries": list(Entry.objects.values("id", "name", "message")[:1000])})


def health(request):
    Entry.objects.first()
    return HttpResponse("ready\n")


@require_POST
def sign(request):
    form = EntryForm(request.POST)
    if not form.is_valid():
        return render(request, "book.html", {"form": form, "entries": Entry.objects.all()[:100]}, status=422)
    form.save()
    response = redirect("/")
    response.status_code = 303
    return response
