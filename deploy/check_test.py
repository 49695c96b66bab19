"""Breaks each file in one place and expects check.py to say so."""

import sys

from check import FILES, HERE, Checks

BROKEN = [
    ("service.yaml", "containerConcurrency: 80", "containerConcurency: 80", "containerConcurency"),
    ("service.yaml", "timeoutSeconds: 30\n", "timeoutSeconds: soon\n", "timeoutSeconds"),
    ("service.yaml", "cpu-throttling:", "cpu-throtling:", "no annotation"),
    ("service.yaml", "guestbook:${TAG}", "guestbook:latest", "placeholders"),
    ("service.yaml", "path: /health", "path: /helath", "no route"),
    ("service.yaml", "memory: 512Mi", "memory: 384Mi", "no memory"),
    ("service.yaml", "cache_size=192MB", "cache_size=300MB", "no memory"),
    ("service.yaml", "file:/tmp/", "file:/data/", "/tmp only"),
    ("service.yaml", "gcs&durability=commit", "gcs&durability=background", "durable"),
    ("service.yaml", "name: SQLITE_GCS_BUCKET", "name: SQLITEGCS_BUCKET", "reads no"),
    ("main.tf", "retention_duration_seconds = 0", "retention_duration_seconds = 604800", "soft delete"),
    ("main.tf", "uniform_bucket_level_access = true", "uniform_bucket_level_access = false", "uniform"),
    ("main.tf", ".startsWith(\"projects/_", ".endsWith(\"projects/_", "condition"),
    ("main.tf", "max_instance_request_concurrency", "max_request_concurrency", "has no"),
    ("main.tf", "memory = \"512Mi\"", "memory = \"1Gi\"", "limits"),
    ("main.tf", "google_service_account.app.email", "google_service_account.me.email", "no resource"),
    ("main.tf", "template {", "template {{", "terraform"),
    ("Dockerfile", "USER 65532", "USER 0", "root"),
    ("Dockerfile", "ENTRYPOINT [\"/guestbook\"]", "ENTRYPOINT /guestbook", "shell"),
    ("Dockerfile", "ARG OUT=/out", "ARG OUT=/other", "copies"),
    ("service.yaml", "&cache_size=192MB", "&cachesize=192MB&cache_size=192MB", "no setting"),
    ("RUNBOOK.md", "SQLITE_GCS_BUCKET", "SQLITE_GCS_BUKCET", "reads no"),
    ("RUNBOOK.md", "```sh\n", "```sh\nif true; then\n", "RUNBOOK.md"),
]

whole = {name: (HERE / name).read_text() for name in FILES}
failed = 0
for name, old, new, said in BROKEN:
    if old not in whole[name]:
        print(f"{name}: has no {old!r} to break", file=sys.stderr)
        failed += 1
        continue
    found = Checks({**whole, name: whole[name].replace(old, new, 1)}).run()
    if not any(said in line for line in found):
        print(f"{name}: {old!r} -> {new!r} was not found; said {found}", file=sys.stderr)
        failed += 1
print(f"{len(BROKEN) - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
