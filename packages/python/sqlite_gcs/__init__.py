"""SQLite whose durable home is a Cloud Storage bucket, for the standard library's sqlite3.

    db = sqlite_gcs.connect("/tmp/app.db", bucket="gs://my-bucket", durability="commit")

or, where something else opens the connections, `load` once and then the URI file:/tmp/app.db?vfs=gcs.
"""

import os
import sqlite3
import urllib.parse

__all__ = ["LIBRARY", "connect", "load"]
__version__ = "0.1.0"

LIBRARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libsqlite_gcs.so")
"""The loadable extension, for whoever loads it in another way."""

# What sqlite3.connect takes itself; everything else is a setting of the VFS.
_SQLITES = {
    "timeout", "detect_types", "isolation_level", "check_same_thread", "factory", "cached_statements", "autocommit",
}


def load(connection):
    """Makes the VFS known to this process, for good, through a connection to any database; returns the connection.

    Doing it again does nothing.
    """
    if not hasattr(connection, "enable_load_extension"):
        raise NotImplementedError(
            "this Python's sqlite3 was built without loadable extensions (pyenv's and macOS's are); use the python3 of "
            "Debian or of the python:slim images, or the drop-in libsqlite3.so.0"
        )
    connection.enable_load_extension(True)
    try:
        connection.load_extension(LIBRARY)
    finally:
        connection.enable_load_extension(False)
    return connection


def connect(database, **settings):
    """Opens the database file `database`, a path, whose home is the bucket.

    `settings` are those of sqlite3.connect (timeout, isolation_level, ...) and those of the VFS (bucket, durability,
    cache_size, ...); the latter may also stand in the environment as SQLITE_GCS_BUCKET and so on.
    """
    own = {name: settings.pop(name) for name in _SQLITES & settings.keys()}
    if "uri" in settings:
        raise TypeError("connect() takes a path and makes the URI itself; for your own URI use load() and sqlite3.connect()")
    parameters = {"vfs": "gcs", **{name: str(value) for name, value in settings.items()}}
    path = urllib.parse.quote(os.path.abspath(os.fsencode(database)))
    first = sqlite3.connect(":memory:")
    try:
        load(first)
    finally:
        first.close()
    return sqlite3.connect(f"file:{path}?{urllib.parse.urlencode(parameters)}", uri=True, **own)
