"""The Kubernetes manifests, against KubeRay's own definitions and against what we promise about them."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

FILES = ["raycluster.yaml", "rayjob.yaml"]
CRDS = Path(__file__).parent / "crds"
WHOLE = {"int32": 31, "int64": 63}  # formats of integers, and their bits
OBJECT_NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object", "properties": {"name": OBJECT_NAME, "labels": STRINGS, "annotations": STRINGS},
    "required": ["name"], "additionalProperties": False,
}  # fmt: skip
SELECTOR = {"type": "object", "properties": {"matchLabels": STRINGS}, "additionalProperties": False}
INGRESS = {
    "type": "object", "additionalProperties": False, "properties": {
        "from": {"type": "array", "minItems": 1, "items": {
            "type": "object", "minProperties": 1, "additionalProperties": False,
            "properties": {"podSelector": SELECTOR, "namespaceSelector": SELECTOR},
        }},
        "ports": {"type": "array", "items": {
            "type": "object", "required": ["protocol", "port"], "additionalProperties": False,
            "properties": {"protocol": {"enum": ["TCP"]}, "port": {"type": "integer", "minimum": 1, "maximum": 65535}},
        }},
    },
    "required": ["from"],
}  # fmt: skip
# What we use of Kubernetes' own two kinds; they have no CRD.
NATIVE = {
    "ServiceAccount": {"apiVersion": {"const": "v1"}, "kind": {}, "metadata": METADATA},
    "NetworkPolicy": {
        "apiVersion": {"const": "networking.k8s.io/v1"}, "kind": {}, "metadata": METADATA,
        "spec": {
            "type": "object", "required": ["podSelector", "policyTypes", "ingress"], "additionalProperties": False,
            "properties": {"podSelector": SELECTOR, "policyTypes": {"const": ["Ingress"]},
                           "ingress": {"type": "array", "items": INGRESS}},
        },
    },
}  # fmt: skip


def plain(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema, where a field that nobody knows is a mistake.

    kubectl refuses such a field too; the API server would drop it in silence.
    """
    if not isinstance(schema, dict):
        return schema
    out = {key: plain(value) for key, value in schema.items() if key not in ("properties", "description", "default")}
    for key in ("anyOf", "allOf", "oneOf"):
        if key in schema:
            out[key] = [plain(one) for one in schema[key]]
    if "properties" in schema:
        out["properties"] = {name: plain(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if schema.get("nullable"):
        out["type"] = [schema["type"], "null"]
    if bits := WHOLE.get(schema.get("format")):
        out |= {"minimum": schema.get("minimum", -(2**bits)), "maximum": schema.get("maximum", 2**bits - 1)}
    return out


def no_key_twice(validator: Any, keys: list[str], items: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """x-kubernetes-list-map-keys: entries of such a list differ in these keys (its containers, its env)."""
    found = [tuple(item.get(key) for key in keys) for item in items]
    if len(found) != len(set(found)):
        yield jsonschema.ValidationError(f"{keys} stand twice among {found}")


def not_evaluated(validator: Any, rules: list[Any], value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """x-kubernetes-validations are rules in CEL, which nothing here can evaluate: the manifests use no such field."""
    yield jsonschema.ValidationError(f"a field with rules that this test cannot check: {rules}")


Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"x-kubernetes-list-map-keys": no_key_twice, "x-kubernetes-validations": not_evaluated},
)


def schema_of(kind: str) -> dict[str, Any]:
    if known := NATIVE.get(kind):
        return {"type": "object", "properties": known, "required": [*known], "additionalProperties": False}
    definition = json.loads(gzip.decompress((CRDS / f"{kind.lower()}s.v1.json.gz").read_bytes()))
    schema = plain(definition["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "metadata": METADATA}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


@pytest.fixture(scope="module")
def check() -> Callable[[dict[str, Any]], None]:
    kinds = ("RayCluster", "RayJob", *NATIVE)
    validators = {kind: Validator(schema_of(kind)) for kind in kinds}
    return lambda document: validators[document["kind"]].validate(document)


def resource_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(document for document in documents if document["kind"].startswith("Ray"))


def ray_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The RayCluster's spec, also inside a RayJob."""
    spec = resource_of(documents)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods_of(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every pod template: head, each worker group, a job's submitter."""
    ray, spec = ray_of(documents), resource_of(documents)["spec"]
    pods = {"head": ray["headGroupSpec"]["template"]}
    pods |= {group["groupName"]: group["template"] for group in ray["workerGroupSpecs"]}
    return pods | ({"submitter": spec["submitterPodTemplate"]} if "submitterPodTemplate" in spec else {})


def seconds_before_the_end(pod: dict[str, Any]) -> tuple[int, int]:
    """What the preStop command tells Ray, and how long it waits."""
    command = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    told, waits = re.search(r"--deadline-remaining-seconds (\d+)", command), re.search(r"seq (\d+)", command)
    return int(told[1]), int(waits[1])


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_is_what_its_definition_allows(name, documents, check):
    for document in documents(f"kuberay/{name}"):
        check(document)


def changed(documents: list[dict[str, Any]], path: str, new: Any) -> list[dict[str, Any]]:
    """The documents with another value at a path of the Ray resource; None deletes what is there."""
    copies = json.loads(json.dumps(documents))  # what YAML's aliases share is then there twice
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    value = resource_of(copies)
    for part in parents:
        value = value[part]
    value[last] = new
    if new is None:
        del value[last]
    return copies


HEAD, WORKER = "spec/headGroupSpec/template/spec", "spec/workerGroupSpecs/0/template/spec"


@pytest.mark.parametrize(("path", "new"), [
    ("apiVersion", "ray.io/v2"),
    ("metadata/name", "Ktse_Voc"),
    ("spec/headGroupSpec", None),
    ("spec/authOptions/mode", "password"),
    ("spec/authOption", {"mode": "token"}),
    ("spec/workerGroupSpecs/0/groupName", None),
    ("spec/workerGroupSpecs/0/maxReplicas", "8"),
    ("spec/workerGroupSpecs/0/maxReplicas", 2**31),
    ("spec/headGroupSpec/rayStartParams/num-cpus", 0),
    (f"{WORKER}/containers/0/resources/limits/memory", "48 GB"),
    (f"{WORKER}/containers/0/securityContext/runAsRoot", True),
    (f"{WORKER}/terminationGracePeriodSeconds", "120s"),
    (f"{HEAD}/containers/0/env/0/name", "AWS_ACCESS_KEY_ID"),
    (f"{HEAD}/containers/0/livenessProbe/httpGet/path", 1),
    (f"{HEAD}/volumes/1/emptyDir/sizeLimit", "plenty"),
    ("spec/managedBy", "someone"),
])  # fmt: skip
def test_a_mistake_in_a_manifest_is_refused(path, new, documents, check):
    mistaken = changed(documents("kuberay/raycluster.yaml"), path, new)
    with pytest.raises(jsonschema.ValidationError):
        check(resource_of(mistaken))


def test_an_open_network_policy_is_refused(documents, check):
    policy = next(d for d in documents("kuberay/rayjob.yaml") if d["kind"] == "NetworkPolicy")
    policy["spec"]["ingress"].append({})
    with pytest.raises(jsonschema.ValidationError):
        check(policy)


def insecurities(documents: list[dict[str, Any]]) -> list[str]:
    """What would let a stranger in, or a process out."""
    found = []
    ray = ray_of(documents)
    policies = [d["spec"]["podSelector"]["matchLabels"] for d in documents if d["kind"] == "NetworkPolicy"]
    if ray.get("authOptions", {}).get("mode") != "token" or tuple(map(int, ray["rayVersion"].split("."))) < (2, 52, 0):
        found.append("Ray asks nobody for a token")
    for name, pod in pods_of(documents).items():
        spec = pod["spec"]
        if not any(label.items() <= pod["metadata"]["labels"].items() for label in policies):
            found.append(f"{name}: no network policy")
        context = spec.get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser", 0) > 0):
            found.append(f"{name}: root")
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            found.append(f"{name}: every system call")
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            found.append(f"{name}: the machine's own network or processes")
        if any("hostPath" in volume for volume in spec.get("volumes", ())):
            found.append(f"{name}: the machine's own files")
        for container in spec["containers"]:
            inner = container.get("securityContext", {})
            if inner.get("allowPrivilegeEscalation") is not False or inner.get("privileged"):
                found.append(f"{name}: privileges")
            if inner.get("capabilities", {}).get("drop") != ["ALL"]:
                found.append(f"{name}: capabilities")
            if {"cpu", "memory"} - container.get("resources", {}).get("limits", {}).keys():
                found.append(f"{name}: no limits")
            found += [f"{name}: {v['name']} is written down" for v in container.get("env", ())
                      if re.search("KEY|SECRET|TOKEN|PASSWORD", v["name"]) and "value" in v]  # fmt: skip
    autoscaler = ray.get("autoscalerOptions", {}).get("securityContext", {})
    if ray.get("enableInTreeAutoscaling") and autoscaler.get("allowPrivilegeEscalation") is not False:
        found.append("autoscaler: privileges")
    # A job's dashboard has to answer the operator; a cluster's need not leave its pod.
    listens = "0.0.0.0" if resource_of(documents)["kind"] == "RayJob" else "127.0.0.1"
    if ray["headGroupSpec"]["rayStartParams"].get("dashboard-host") != listens:
        found.append("dashboard")
    if ray["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        found.append("the head is reached from outside")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_opens_nothing_that_need_not_be_open(name, documents):
    assert insecurities(documents(f"kuberay/{name}")) == []


@pytest.mark.parametrize(("path", "new", "found"), [
    ("spec/authOptions", None, "Ray asks nobody for a token"),
    ("spec/rayVersion", "2.51.0", "Ray asks nobody for a token"),
    ("spec/headGroupSpec/rayStartParams/dashboard-host", "0.0.0.0", "dashboard"),
    ("spec/headGroupSpec/rayStartParams/dashboard-host", None, "dashboard"),
    ("spec/headGroupSpec/serviceType", "LoadBalancer", "the head is reached from outside"),
    ("spec/workerGroupSpecs/0/template/metadata/labels", {}, "gpu: no network policy"),
    (f"{WORKER}/securityContext", {}, "gpu: root"),
    (f"{WORKER}/hostNetwork", True, "gpu: the machine's own network or processes"),
    (f"{WORKER}/volumes/0", {"name": "ktse", "hostPath": {"path": "/"}}, "gpu: the machine's own files"),
    (f"{WORKER}/containers/0/securityContext", {}, "gpu: privileges"),
    (f"{WORKER}/containers/0/resources/limits", {"cpu": "8"}, "gpu: no limits"),
    (f"{HEAD}/containers/0/env/1", {"name": "AWS_ACCESS_KEY_ID", "value": "x"},
     "head: AWS_ACCESS_KEY_ID is written down"),
    ("spec/autoscalerOptions/securityContext", None, "autoscaler: privileges"),
])  # fmt: skip
def test_an_opened_manifest_is_noticed(path, new, found, documents):
    opened = changed(documents("kuberay/raycluster.yaml"), path, new)
    assert found in insecurities(opened)


@pytest.mark.parametrize("name", FILES)
def test_workers_run_on_spot_machines_and_the_head_does_not(name, documents):
    pods = pods_of(documents(f"kuberay/{name}"))
    spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    assert spot <= {one["key"] for one in pods["gpu"]["spec"]["tolerations"]}
    assert "tolerations" not in pods["head"]["spec"]
    terms = pods["head"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    refused = {e["key"] for term in terms["nodeSelectorTerms"] for e in term["matchExpressions"]}
    assert {"cloud.google.com/gke-spot", "karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType"} <= refused


@pytest.mark.parametrize("name", FILES)
def test_a_worker_tells_ray_of_its_end_and_waits_within_its_grace(name, documents):
    worker = pods_of(documents(f"kuberay/{name}"))["gpu"]
    told, waits = seconds_before_the_end(worker)
    assert 0 < told <= waits < worker["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", FILES)
def test_every_ray_container_has_the_shared_folder_shared_memory_and_a_cache_of_its_own(name, documents):
    pods = pods_of(documents(f"kuberay/{name}"))
    for pod in (pods["head"], pods["gpu"]):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for m in pod["spec"]["containers"][0]["volumeMounts"]}
        assert "persistentVolumeClaim" in mounts["/mnt/ktse"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert "emptyDir" in mounts["/cache"]  # a node's own


def test_the_job_asks_for_as_many_workers_as_it_has_gpus(documents):
    loaded = documents("kuberay/rayjob.yaml")
    gpus = sum(
        g["replicas"] * int(g["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for g in ray_of(loaded)["workerGroupSpecs"]
    )
    assert f"ray.workers={gpus}" in resource_of(loaded)["spec"]["entrypoint"].split()
