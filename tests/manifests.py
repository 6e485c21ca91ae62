"""Checks of Kubernetes manifests without a cluster: the schemas, and what no schema knows.

The operator's own functions build from a DaskJob or a DaskCluster the objects that it would create; most checks are
made on these, so that they hold for what runs and not only for what is written.
"""

import copy
import functools
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from dask.utils import parse_bytes

from tests.deploying import command_problems, parse, setting_problems

Document = dict[str, Any]

DOCKERFILE = Path(__file__).parents[1] / "deploy" / "compose" / "Dockerfile"
NAMESPACE = "default"
CRDS = "operator/deployment/helm/dask-kubernetes-operator/crds"


class Pod(NamedTuple):
    """A pod that one of the manifests leads to."""

    name: str
    labels: dict[str, str]
    spec: Document
    restarts_always: bool


def load(folder: Path) -> dict[str, Document]:
    """Return the manifests of a folder by the names of their files; each file holds one."""
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))}


def problems(manifests: dict[str, Document]) -> list[str]:
    """Return what is wrong with manifests: of each, `file: path: message`."""
    found = []
    claims = {doc["metadata"]["name"]: doc for doc in manifests.values() if doc["kind"] == "PersistentVolumeClaim"}
    for name, doc in manifests.items():
        is_dask = doc["apiVersion"].startswith("kubernetes.dask.org")
        wrong = operator_schema_problems(doc) if is_dask else core_schema_problems(doc)
        if not wrong:  # what follows relies on the shape
            objects = operator_objects(doc) if is_dask else [doc]
            wrong = [text for built in objects[is_dask:] for text in core_schema_problems(built)]
            wrong += service_problems(objects)
            wrong += [f"{pod.name}: {text}" for pod in pods(objects) for text in pod_problems(pod, claims)]
        found += [f"{name}: {text}" for text in wrong]
    return found


def operator_schema_problems(doc: Document) -> list[str]:
    """Return what the operator's own schema, shipped with dask-kubernetes, finds wrong."""
    import jsonschema

    schema = operator_schema(doc["kind"], doc["apiVersion"].partition("/")[2])
    errors = jsonschema.Draft202012Validator(schema).iter_errors(doc)
    return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]


@functools.cache
def operator_schema(kind: str, version: str) -> Document:
    """Return the schema of one kind of the operator's objects."""
    crd = yaml.safe_load((files("dask_kubernetes") / CRDS / f"{kind.lower()}.yaml").read_text())
    (found,) = [entry["schema"] for entry in crd["spec"]["versions"] if entry["name"] == version]
    schema = strict(found["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}  # every object has them
    return schema


def strict(schema: Document) -> Document:
    """Return a schema of a CRD as JSON Schema that refuses unknown fields, which a server would drop without a word."""
    result = {key: value for key, value in schema.items() if key != "nullable"}
    if schema.get("nullable"):
        result["type"] = [schema["type"], "null"]
    if "items" in schema:
        result["items"] = strict(schema["items"])
    if "properties" in schema:
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        result.setdefault("additionalProperties", False)
    return result


def core_schema_problems(doc: Document) -> list[str]:
    """Return the first thing that Kubernetes' own schema finds wrong, if any."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(doc, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as err:
        return [f"{doc['kind']}: {'/'.join(map(str, err.path))}: {err.message[:200]}"]
    return []


def operator_objects(doc: Document) -> list[Document]:
    """Return a DaskJob or DaskCluster, and what the operator creates for it."""
    from dask_kubernetes.operator.controller import controller
    from dask_kubernetes.operator.validation import validate_cluster_name

    name, spec = doc["metadata"]["name"], copy.deepcopy(doc["spec"])
    objects = [doc]
    if doc["kind"] == "DaskJob":
        objects.append(controller.build_job_pod_spec(name, name, NAMESPACE, spec["job"]["spec"], {}, {}))
        spec = spec["cluster"]["spec"]
    validate_cluster_name(name)
    scheduler, worker = spec["scheduler"], spec["worker"]
    return [
        *objects,
        controller.build_scheduler_deployment_spec(name, scheduler["spec"], {}, {}),
        controller.build_scheduler_service_spec(name, scheduler["service"], {}, {}),
        controller.build_worker_deployment_spec(f"{name}-default", NAMESPACE, name, "0", worker["spec"], {}, {}),
    ]


def pods(objects: list[Document]) -> Iterator[Pod]:
    """Yield the pods that objects are or lead to."""
    for doc in objects:
        name = f"{doc['kind']} {doc['metadata']['name']}"
        if doc["kind"] == "Pod":
            yield Pod(name, doc["metadata"]["labels"], doc["spec"], restarts_always=False)
        elif doc["kind"] in ("Deployment", "Job"):
            template = doc["spec"]["template"]
            yield Pod(name, template["metadata"]["labels"], template["spec"], doc["kind"] == "Deployment")


def service_problems(objects: list[Document]) -> list[str]:
    """Return what keeps a service from reaching its pods, or the operator from finding its ports."""
    found = []
    for service in (doc["spec"] for doc in objects if doc["kind"] == "Service"):
        chosen = [pod for pod in pods(objects) if service["selector"].items() <= pod.labels.items()]
        if not chosen:
            found.append(f"Service: selector: no pod has the labels {service['selector']}")
        offered = {
            port["name"] for pod in chosen for container in pod.spec["containers"] for port in container["ports"]
        }
        found += [
            f"Service: ports: {port['targetPort']} is no port of the chosen pods"
            for port in service["ports"]
            if chosen and port["targetPort"] not in offered
        ]
        ports = {port["name"]: port["port"] for port in service["ports"]}
        if ports != {"tcp-comm": 8786, "http-dashboard": 8787}:
            found.append(f"Service: ports: {ports}, but the operator looks for tcp-comm 8786 and http-dashboard 8787")
    return found


def pod_problems(pod: Pod, claims: dict[str, Document]) -> list[str]:
    """Return what is wrong with a pod beyond its schema."""
    found = []
    restart = pod.spec.get("restartPolicy", "Always")
    if (restart == "Always") != pod.restarts_always:
        found.append(
            f"restartPolicy: {restart} makes {'a server stop' if pod.restarts_always else 'a job run for ever'}"
        )
    if pod.spec.get("enableServiceLinks") is not False:
        found.append("enableServiceLinks: variables of services could be taken for settings of Dask")
    volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod.spec.get("volumes", [])}
    for claim in volumes.values():
        if claim not in claims:
            found.append(f"volumes: there is no claim {claim!r}")
        elif claims[claim]["spec"]["accessModes"] != ["ReadWriteMany"]:
            found.append(f"volumes: the claim {claim!r} is not ReadWriteMany, but pods on several nodes write to it")
    user = pod.spec.get("securityContext", {})
    if not user.get("runAsNonRoot") or {user.get("runAsUser"), user.get("fsGroup")} != {image_user()}:
        found.append(f"securityContext: must be the image's user {image_user()}, and say that this is not root")
    for container in pod.spec["containers"]:
        if pod.restarts_always:
            missing = [probe for probe in ("readinessProbe", "livenessProbe") if probe not in container]
            found += [f"{container['name']}: {probe}: nobody would see that it hangs" for probe in missing]
        found += [f"{container['name']}: {text}" for text in container_problems(container, volumes)]
    return found


def image_user() -> int:
    """Return the user that the image runs as."""
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    return int(user)


def container_problems(container: Document, volumes: dict[str, str]) -> list[str]:
    """Return what is wrong with a container: its command, settings, volume, ports and memory."""
    environment = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    command = [expand(argument, environment) for argument in container["args"]]
    found = [f"args: nothing sets {word}" for argument in command for word in re.findall(r"\$\(\w+\)", argument)]
    found += [f"args: {text}" for text in command_problems(command)]
    found += [f"env: {text}" for text in setting_problems(environment)]
    mounts = {mount["mountPath"] for mount in container.get("volumeMounts", []) if mount["name"] in volumes}
    if mounts != {"/data"}:
        found.append(f"volumeMounts: the claim is mounted on {sorted(mounts)}, not on /data as everywhere")
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    probes = [container[probe] for probe in ("readinessProbe", "livenessProbe") if probe in container]
    found += [
        f"probe: there is no port {probe['httpGet']['port']!r}"
        for probe in probes
        if probe["httpGet"]["port"] not in ports
    ]
    resources = container.get("resources", {})
    if not all("memory" in resources.get(kind, {}) for kind in ("limits", "requests")):
        return [*found, "resources: without a request and a limit of memory, others may take it"]
    limit, request = (parse_bytes(resources[kind]["memory"]) for kind in ("limits", "requests"))
    if limit != request:
        found.append("resources: a node may promise more memory than it has when request and limit differ")
    if command[:2] == ["dask", "worker"] and not found:
        found += worker_problems(parse(command), limit, ports)
    return found


def worker_problems(options: dict[str, Any], limit: int, ports: dict[str, int]) -> list[str]:
    """Return what is wrong with the options of `dask worker`, beside the container's memory limit and ports."""
    found = []
    memory = options["memory_limit"]
    share = float(memory) if re.fullmatch(r"[\d.]+", memory) else parse_bytes(memory) / limit
    if not 0.5 <= share <= 0.95:
        found.append(f"args: --memory-limit {memory} is {share:.2f} of the container's {limit} bytes, not 0.5 to 0.95")
    if options["dashboard_address"] != str(ports["http-dashboard"]):
        found.append(f"args: the port http-dashboard is {ports['http-dashboard']}, not {options['dashboard_address']}")
    return found


def expand(argument: str, environment: dict[str, str]) -> str:
    """Return an argument with `$(NAME)` replaced, as Kubernetes does; unknown names stay."""
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), argument)
