"""Checks the files of deploy/ against what they are for, beyond what a linter sees.

service.yaml   against the Cloud Run Admin API v1 (the description that Google's Python client carries): unknown keys, wrong types
main.tf        parsed as HCL; references; the service against the Cloud Run Admin API v2; the rights
Dockerfile     stages: what is copied is built, the end is not root
RUNBOOK.md     its shell blocks parse, its links lead somewhere
and the files agree with each other, and name only settings of the VFS that there are.
"""

import json
import pathlib
import re
import subprocess
import sys

import dockerfile_parse
import googleapiclient
import hcl2
import jsonschema
import yaml

HERE = pathlib.Path(__file__).resolve().parent
FILES = ("Dockerfile", "service.yaml", "main.tf", "RUNBOOK.md")
FILLED = {"PROJECT_ID": "a-project", "REGION": "europe-west1", "BUCKET": "a-bucket", "TAG": "1"}


def api(name):
    """One of Google's API descriptions."""
    folder = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    return json.loads((folder / f"{name}.json").read_text())["schemas"]


def strict(schemas):
    """The descriptions as JSON schemas that refuse what they do not name."""
    def convert(node):
        if "$ref" in node:
            return {"$ref": f"#/$defs/{node['$ref']}"}
        kept = {key: node[key] for key in ("type", "enum") if key in node}
        if "properties" in node:
            kept["properties"] = {key: convert(value) for key, value in node["properties"].items()}
            kept["additionalProperties"] = False
        if isinstance(node.get("additionalProperties"), dict):
            kept["additionalProperties"] = convert(node["additionalProperties"])
        if "items" in node:
            kept["items"] = convert(node["items"])
        return kept
    return {name: convert(schema) for name, schema in schemas.items()}


def megabytes(text):
    """192MB, 512Mi, 1Gi as bytes."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()
    return int(number) * {"MB": 10**6, "GB": 10**9, "Mi": 2**20, "Gi": 2**30}[unit]


class Checks:
    def __init__(self, texts):
        self.texts = texts
        self.found = []

    def need(self, truth, what):
        if not truth:
            self.found.append(what)
        return truth

    def run(self):
        for check in (self.service, self.terraform, self.agreement, self.dockerfile, self.runbook, self.settings):
            try:
                check()
            except Exception as error:  # a file that cannot be read at all is a finding like any other
                self.found.append(f"{check.__name__}: {type(error).__name__}: {error}")
        return self.found

    def service(self):
        text = self.texts["service.yaml"]
        named = set(re.findall(r"\$\{(\w+)\}", text))
        self.need(named == set(FILLED), f"service.yaml: placeholders are {sorted(named)}, not {sorted(FILLED)}")
        text = re.sub(r"\$\{(\w+)\}", lambda m: FILLED.get(m[1], ""), text)
        self.svc = yaml.safe_load(text)
        schemas = api("run.v1")
        schema = {"$ref": "#/$defs/Service", "$defs": strict(schemas)}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(self.svc):
            self.need(False, f"service.yaml: {'/'.join(map(str, error.absolute_path))}: {error.message}")
        self.need((self.svc["apiVersion"], self.svc["kind"]) == ("serving.knative.dev/v1", "Service"), "service.yaml: kind")
        template = self.svc["spec"]["template"]
        known = json.dumps(schemas)
        for annotations in (self.svc["metadata"]["annotations"], template["metadata"]["annotations"]):
            for key, value in annotations.items():
                self.need(isinstance(value, str), f"service.yaml: annotation {key} has to be a string")
                self.need(key in known or key in EXTRA_ANNOTATIONS, f"service.yaml: the API knows no annotation {key}")
        spec = template["spec"]
        [box] = spec["containers"]
        [port] = box["ports"]
        for probe in ("startupProbe", "livenessProbe"):
            get = box[probe]["httpGet"]
            self.need(get["port"] == port["containerPort"], f"service.yaml: {probe} asks another port")
            self.need(not get["path"].endswith("z") or probe == "livenessProbe", f"service.yaml: {probe} path")
            self.need(f'"{get["path"]}"' in self.routes(), f"service.yaml: the app has no route {get['path']}")
            self.need(box[probe].get("timeoutSeconds", 1) <= box[probe]["periodSeconds"], f"service.yaml: {probe} overlaps")
        env = {entry["name"]: entry["value"] for entry in box["env"]}
        settings = (HERE.parent / "examples/guestbook/src/settings.rs").read_text()
        for name in env:
            self.need(name.startswith("SQLITE_GCS_") or f'"{name}"' in settings, f"service.yaml: the app reads no {name}")
        uri = env["GUESTBOOK_DB"]
        self.need(uri.startswith("file:/tmp/"), "service.yaml: the image can write under /tmp only")
        cache = megabytes(re.search(r"cache_size=(\w+)", uri)[1])
        memory = megabytes(box["resources"]["limits"]["memory"])
        self.need(cache + megabytes("256Mi") <= memory, "service.yaml: cache_size leaves the process no memory")
        throttled = template["metadata"]["annotations"]["run.googleapis.com/cpu-throttling"] == "true"
        durable = "durability=commit" in uri or env.get("GUESTBOOK_ANSWER") == "flush"
        self.need(durable or not throttled, "service.yaml: without CPU between requests writes have to be durable when answered")

    def routes(self):
        return (HERE.parent / "examples/guestbook/src/web.rs").read_text()

    def terraform(self):
        self.tf = plain(hcl2.loads(self.texts["main.tf"]))
        variables = {name for block in self.tf["variable"] for name in block}
        resources = {}
        for block in self.tf["resource"]:
            for kind, named in block.items():
                for name, body in named.items():
                    self.need((kind, name) not in resources, f"main.tf: {kind}.{name} twice")
                    resources[kind, name] = body
        self.resources = resources
        code = re.sub(r"(?m)#.*$", "", self.texts["main.tf"])
        used = set(re.findall(r"\bvar\.(\w+)", code))
        self.need(used == variables, f"main.tf: variables used and declared differ: {sorted(used ^ variables)}")
        for kind, name in set(re.findall(r"\b(google_\w+)\.(\w+)\b", code)):
            self.need((kind, name) in resources, f"main.tf: no resource {kind}.{name}")
        schemas = api("run.v2")
        service = resources["google_cloud_run_v2_service", "app"]
        walk(service["template"][0], "GoogleCloudRunV2RevisionTemplate", schemas, "template", self.need)
        bucket = resources["google_storage_bucket", "databases"]
        self.need(bucket["soft_delete_policy"][0]["retention_duration_seconds"] == 0, "main.tf: soft delete is on")
        self.need(bucket["uniform_bucket_level_access"] is True, "main.tf: no uniform access")
        self.need(bucket["public_access_prevention"] == "enforced", "main.tf: public access is possible")
        for policy in ("lifecycle_rule", "retention_policy"):
            self.need(policy not in bucket, f"main.tf: a {policy} breaks the log")
        rights = [(kind, body) for (kind, _), body in resources.items() if kind.startswith("google_storage_bucket_iam")]
        self.need(len(rights) == 1 and rights[0][0] == "google_storage_bucket_iam_member", "main.tf: one right on the bucket")
        condition = rights[0][1].get("condition", [{"expression": ""}])[0]["expression"]
        for part in ('resource.name.startsWith("projects/_/buckets/${var.bucket}/objects/${var.prefix}/")',
                     '"storage.googleapis.com/objectListPrefix", "").startsWith("${var.prefix}/")'):
            self.need(part in condition.replace('\\"', '"'), f"main.tf: the condition lacks {part}")
        self.need("google_project_iam" not in code, "main.tf: a right on the whole project")

    def agreement(self):
        """The service is written twice; the two say the same."""
        spec = self.svc["spec"]["template"]["spec"]
        [box] = spec["containers"]
        [other] = self.resources["google_cloud_run_v2_service", "app"]["template"]
        [others] = other["containers"]
        pairs = {
            "concurrency": (spec["containerConcurrency"], other["max_instance_request_concurrency"]),
            "timeout": (f"{spec['timeoutSeconds']}s", other["timeout"]),
            "limits": (box["resources"]["limits"], others["resources"][0]["limits"]),
            "port": (box["ports"][0]["containerPort"], others["ports"][0]["container_port"]),
            "variables": ([e["name"] for e in box["env"]], [e["name"] for e in others["env"]]),
            "database": (box["env"][1]["value"], others["env"][1]["value"]),
        }
        for probe, block in (("startupProbe", "startup_probe"), ("livenessProbe", "liveness_probe")):
            here, there = box[probe], others[block][0]
            pairs[probe] = ((here["httpGet"]["path"], here["periodSeconds"], here["failureThreshold"]),
                            (there["http_get"][0]["path"], there["period_seconds"], there["failure_threshold"]))
        for what, (here, there) in pairs.items():
            self.need(here == there, f"{what}: service.yaml says {here}, main.tf says {there}")

    def dockerfile(self):
        lines = stages(self.texts["Dockerfile"])
        self.need(len(lines) == 2, "Dockerfile: a stage that builds and one that runs")
        build, final = lines
        last = {line["instruction"]: line["value"] for line in final}
        user = last.get("USER", "root")
        self.need(user.isdigit() and int(user) > 0, "Dockerfile: runs as root")
        self.need(last["ENTRYPOINT"].startswith("["), "Dockerfile: the entry point goes through a shell, which eats SIGTERM")
        self.need(int(last["EXPOSE"]) == 8080, "Dockerfile: another port than the service's")
        self.need("RUN" not in last, "Dockerfile: the final image has no shell to run anything")
        out = dict(line["value"].split("=") for line in build if line["instruction"] == "ARG")["OUT"]
        copied = [line["value"] for line in final if line["instruction"] == "COPY"]
        self.need(copied == [f"--from=build {out}/bin/guestbook /guestbook"], f"Dockerfile: copies {copied}")

    def runbook(self):
        text = self.texts["RUNBOOK.md"]
        blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
        self.need(blocks, "RUNBOOK.md: no commands")
        for block in blocks:
            # Not findings here: envsubst's quoted names, and names that another block sets or uses.
            command = ["shellcheck", "--shell=bash", "--exclude=SC2016,SC2034,SC2154", "-"]
            run = subprocess.run(command, input=block, text=True, capture_output=True)
            self.need(run.returncode == 0, f"RUNBOOK.md: {run.stdout}")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            self.need((HERE / link).exists(), f"RUNBOOK.md: nothing at {link}")
        for name in FILLED:
            self.need(re.search(rf"\b{name}=", text), f"RUNBOOK.md: never says what {name} is")


    def settings(self):
        """What stands behind `vfs=gcs` is accepted by the VFS; it refuses what it does not know."""
        source = (HERE.parent / "vfs/src/config.rs").read_text()
        known = set(re.search(r'const NAMES: &str = "(.*)";', source)[1].split(", "))
        for name, text in self.texts.items():
            for parameters in re.findall(r"vfs=gcs((?:&\w+=[^&\s\"']*)+)", text):
                for key in re.findall(r"&(\w+)=", parameters):
                    self.need(key in known, f"{name}: the VFS has no setting {key}")
            for variable in re.findall(r"\bSQLITE_GCS_(\w+)", text):
                self.need(variable.lower() in known, f"{name}: the VFS reads no SQLITE_GCS_{variable}")


# Known to `gcloud run services replace`, though the API's description does not name them.
EXTRA_ANNOTATIONS = {
    "run.googleapis.com/cpu-throttling", "run.googleapis.com/startup-cpu-boost",
    "run.googleapis.com/execution-environment", "run.googleapis.com/ingress",
}


def plain(node):
    """HCL as its parser gives it, without the quotes around strings and names."""
    if isinstance(node, dict):
        return {key.strip('"'): plain(value) for key, value in node.items() if not key.startswith("__")}
    if isinstance(node, list):
        return [plain(item) for item in node]
    if isinstance(node, str) and len(node) > 1 and node[0] == node[-1] == '"':
        return node[1:-1]
    return node


def walk(block, schema, schemas, where, need):
    """Every argument of a Terraform block has its counterpart, in camel case, in the API."""
    for name, value in block.items():
        camel = re.sub(r"_(\w)", lambda m: m[1].upper(), name)
        found = schemas[schema]["properties"].get(camel)
        if not need(found is not None, f"main.tf: {where} has no {name}"):
            continue
        inner = found.get("$ref") or found.get("items", {}).get("$ref")
        if inner and isinstance(value, list):
            for item in value:
                walk(item, inner, schemas, f"{where}.{name}", need)
        elif "enum" in found:
            need(value in found["enum"], f"main.tf: {where}.{name} is not one of {found['enum']}")


def stages(text):
    """The instructions of a Dockerfile, by stage."""
    parser = dockerfile_parse.DockerfileParser(fileobj=__import__("io").BytesIO(text.encode()))
    found = []
    for line in parser.structure:
        if line["instruction"] == "FROM":
            found.append([])
        if line["instruction"] != "COMMENT" and found:
            found[-1].append(line)
    return found


if __name__ == "__main__":
    trouble = Checks({name: (HERE / name).read_text() for name in FILES}).run()
    for line in trouble:
        print(f"deploy: {line}", file=sys.stderr)
    if not trouble:
        print("deploy: service.yaml, main.tf, Dockerfile and RUNBOOK.md are in order")
    sys.exit(1 if trouble else 0)
