"""A guestbook on Flask whose SQLite database lives in a bucket.

    gunicorn --workers 3 --bind 127.0.0.1:8080 app:app

GUESTBOOK_DB          a SQLite URI; default file:/tmp/guestbook-python/guestbook.db?vfs=gcs&durability=commit
SQLITE_GCS_EXTENSION  path of libsqlite_gcs.so, with or without the suffix; default: libsqlite_gcs, found as the dynamic linker finds it
SQLITE_GCS_BUCKET     gs://bucket/prefix or file:///folder

Every worker is a process with connections of its own; one of them uploads for all. Nothing is opened before the fork:
a worker opens its connection at its first request.
"""

import os
import sqlite3
import threading
import urllib.parse

from flask import Flask, abort, jsonify, redirect, render_template_string, request

DATABASE = os.environ.get("GUESTBOOK_DB", "file:/tmp/guestbook-python/guestbook.db?vfs=gcs&durability=commit")
EXTENSION = os.environ.get("SQLITE_GCS_EXTENSION", "libsqlite_gcs")
WAIT_SECONDS = float(os.environ.get("GUESTBOOK_WAIT_SECONDS", "5"))

app = Flask(__name__)
_registered = threading.Lock()
_registered_by = None


def register():
    """Makes `vfs=gcs` known to this process; once, from any connection."""
    global _registered_by
    with _registered:
        if _registered_by == os.getpid() or "vfs=gcs" not in DATABASE:
            return
        db = sqlite3.connect(":memory:")
        if not hasattr(db, "enable_load_extension"):
            raise RuntimeError(
                "this Python's sqlite3 module was built without loadable extensions (pyenv's and macOS's are). "
                "Use the python3 of Debian or of the python:slim images, or the drop-in library (examples/django)."
            )
        db.enable_load_extension(True)
        db.load_extension(EXTENSION)
        db.close()
        _registered_by = os.getpid()


_kept = threading.local()


def database():
    """This thread's connection. It is kept: an open asks the bucket what is newest, and a close waits for the upload."""
    if getattr(_kept, "db", None) is None:
        register()
        path = urllib.parse.urlparse(DATABASE).path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # isolation_level=None: transactions begin where the code says BEGIN.
        _kept.db = sqlite3.connect(DATABASE, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
        _kept.db.row_factory = sqlite3.Row
    return _kept.db


@app.errorhandler(sqlite3.OperationalError)
def refused(error):
    """A database that refused a commit, or whose log went on elsewhere, is opened anew for the next request."""
    app.logger.error("database: %s", error)
    db, _kept.db = getattr(_kept, "db", None), None
    if db is not None:
        db.close()
    return "It is not sure that this was done. Please look, and try again.\n", 500


def entries():
    try:
        return database().execute("SELECT id, name, message, worker FROM entry ORDER BY id DESC LIMIT 1000").fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Guestbook</title><h1>Guestbook</h1>
<form action="/entries" method="post"><p><label>Name <input name="name" required maxlength="60"></label>
<p><label>Message <textarea name="message" required maxlength="1000"></textarea></label><p><button>Sign the book</button></form>
{% for entry in entries %}<p>{{ entry.message }} &ndash; <strong>{{ entry.name }}</strong> (worker {{ entry.worker }}){% endfor %}
"""


@app.get("/")
def home():
    return render_template_string(PAGE, entries=entries())


@app.get("/entries.json")
def entries_json():
    return jsonify(entries=[dict(row) for row in entries()])


@app.get("/health")
def health():
    database().execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return "ready\n"


@app.post("/entries")
def sign():
    name, message = request.form.get("name", "").strip(), request.form.get("message", "").strip()
    if not 0 < len(name) <= 60 or not 0 < len(message) <= 1000:
        abort(422)
    db = database()
    try:
        # IMMEDIATE: the lease is asked for here, where the timeout applies; an upgrade in the middle would be refused at once.
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        refused(error)
        return "Another instance is writing just now.\n", 503, {"Retry-After": "2"}
    db.execute("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, name TEXT, message TEXT, worker INTEGER)")
    db.execute("INSERT INTO entry (name, message, worker) VALUES (?, ?, ?)", (name, message, os.getpid()))
    # With durability=commit this returns when the entry is in the bucket.
    db.execute("COMMIT")
    return redirect("/", 303)
