#!/usr/bin/env python3
"""Drives an example as a person and a bad day would, and ends with an error if an entry is lost.

    examples/drive.py python|node|django [--extension libsqlite_gcs.so] [--library FOLDER] [--python /usr/bin/python3] [--plain]
    examples/drive.py python|node|django --install          only brings what the example needs into its folder

start -> 40 entries from 8 clients at once -> SIGTERM -> the disk wiped -> start -> all of them are there -> one more entry -> kill -9,
the disk wiped -> start -> all of them are there. --plain keeps the disk and uses SQLite as it is: it tries the example and this script.
Everything is on 127.0.0.1 and under one temporary folder.
"""

import argparse
import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent


@contextlib.contextmanager
def alone(folder):
    """Two of us at once would install into one folder."""
    with open(folder / ".installing", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def venv(folder, python):
    """The example's own environment, made at the first run."""
    with alone(folder):
        return make_venv(folder, python)


def make_venv(folder, python):
    home = folder / ".venv"
    wanted = (folder / "requirements.txt").read_text()
    if not (home / "wanted").exists() or (home / "wanted").read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", home], check=True)
        subprocess.run([home / "bin/pip", "install", "-q", "--disable-pip-version-check", "-r", folder / "requirements.txt"], check=True)
        (home / "wanted").write_text(wanted)
    return home / "bin"


class Example:
    """How an example is started on a disk and a bucket."""

    def __init__(self, options, work):
        self.options, self.work, self.folder = options, work, HERE / options.example
        self.disk, self.port, self.app = work / "disk", free_port(), None
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(work), "GCE_METADATA_HOST": "127.0.0.1:1",
            "SQLITE_GCS_BUCKET": f"file://{work}/bucket", "SQLITE_GCS_LEASE_TTL": "5s", "PORT": str(self.port),
        }
        if not options.plain:
            self.env |= {"SQLITE_GCS_DURABILITY": "commit", "SQLITE_GCS_EXTENSION": str(options.extension)}
        self.before, self.command = getattr(self, options.example)()

    def python(self):
        uri = f"file:{self.disk}/guestbook.db" + ("" if self.options.plain else "?vfs=gcs")
        self.env["GUESTBOOK_DB"] = uri
        self.env["GUESTBOOK_WAIT_SECONDS"] = "20"
        return None, self.gunicorn("app:app")

    def gunicorn(self, app):
        bin = venv(self.folder, self.options.python)
        return [bin / "gunicorn", "--workers", "3", "--bind", f"127.0.0.1:{self.port}", "--graceful-timeout", "6", app]

    def node(self):
        with alone(self.folder):
            if not (self.folder / "node_modules/better-sqlite3/build/Release/better_sqlite3.node").exists():
                home = pathlib.Path(shutil.which("node")).resolve().parents[1]
                # Built from its sources against the headers of the node that is here: nothing is downloaded but packages.
                env = {**os.environ, "npm_config_nodedir": str(home), "npm_config_build_from_source": "true"}
                subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=self.folder, env=env, check=True)
        self.env["GUESTBOOK_FILE"] = f"{self.disk}/guestbook.db"
        if self.options.plain:
            self.env.pop("SQLITE_GCS_EXTENSION", None)
        else:
            self.env["SQLITE_GCS_PATHS"] = f"{self.disk}/*.db"
        return None, ["node", "app.js"]

    def django(self):
        bin = venv(self.folder, self.options.python)
        self.env |= {"DJANGO_DB": f"{self.disk}/guestbook.db", "DJANGO_SECRET_KEY": "of this test only"}
        if not self.options.plain:
            self.env |= {"LD_LIBRARY_PATH": str(self.options.library), "SQLITE_GCS_PATHS": f"{self.disk}/*.db"}
        return [bin / "python", "manage.py", "migrate", "--verbosity", "0"], self.gunicorn("project.wsgi")

    def start(self):
        self.disk.mkdir(exist_ok=True)
        if self.before:
            subprocess.run(self.before, cwd=self.folder, env=self.env, check=True, timeout=60)
        self.app = subprocess.Popen(self.command, cwd=self.folder, env=self.env, start_new_session=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.app.poll() is None:
            try:
                return self.get("/health")
            except OSError:
                time.sleep(0.05)  # there is no sign of it to wait for but the answer itself
        sys.exit(f"{self.options.example}: not ready, exit code {self.app.poll()}")

    def stop(self, how):
        if how == signal.SIGKILL:
            os.killpg(self.app.pid, how)
        else:
            self.app.send_signal(how)
        code = self.app.wait(timeout=10)
        if how == signal.SIGTERM and code != 0:
            sys.exit(f"{self.options.example}: ended with {code} after SIGTERM")
        if not self.options.plain:
            shutil.rmtree(self.disk)

    def end(self):
        if self.app and self.app.poll() is None:
            os.killpg(self.app.pid, signal.SIGKILL)
            self.app.wait()

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def sign(self, message):
        """Submits the form as a browser would, again after a 503."""
        url = f"http://127.0.0.1:{self.port}"
        for _ in range(30):
            with urllib.request.urlopen(url, timeout=30) as answer:
                token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', answer.read().decode())
                cookie = (answer.headers.get("Set-Cookie") or "").split(";")[0]
            fields = {"name": "Ada", "message": message} | ({"csrfmiddlewaretoken": token[1]} if token else {})
            request = urllib.request.Request(f"{url}/entries", urllib.parse.urlencode(fields).encode(), {"Cookie": cookie})
            try:
                urllib.request.urlopen(request, timeout=60).close()
                return
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    sys.exit(f"{self.options.example}: {error.code} for {message}: {error.read().decode()[:300]}")
                time.sleep(float(error.headers.get("Retry-After", "1")))
        sys.exit(f"{self.options.example}: {message} was never taken")

    def expect(self, messages, when):
        found = {entry["message"] for entry in json.loads(self.get("/entries.json"))["entries"]}
        if found != messages:
            sys.exit(f"{self.options.example}: {when}: lost {sorted(messages - found)}, unknown {sorted(found - messages)}")
        print(f"{self.options.example}: {when}: {len(found)} entries, none lost", flush=True)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", choices=["python", "node", "django"])
    parser.add_argument("--extension", type=pathlib.Path)
    parser.add_argument("--library", type=pathlib.Path)
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drive-") as work:
        work = pathlib.Path(work)
        (work / "bucket").mkdir()
        example = Example(options, work)
        if options.install:
            return
        try:
            example.start()
            messages = {f"entry {n}" for n in range(40)}
            with concurrent.futures.ThreadPoolExecutor(8) as clients:
                list(clients.map(example.sign, sorted(messages)))
            example.expect(messages, "after 8 clients at once")
            example.stop(signal.SIGTERM)
            example.start()
            example.expect(messages, "after SIGTERM and the loss of the disk")
            example.sign("one more")
            messages.add("one more")
            example.stop(signal.SIGKILL)
            example.start()
            example.expect(messages, "after kill -9 and the loss of the disk")
        finally:
            example.end()


if __name__ == "__main__":
    main()
