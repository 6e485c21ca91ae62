"""The manifests of deploy/kubernetes: valid, wired up, and told apart from broken ones; their commands run."""

import copy
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import distributed
import pytest

import distmf
from tests.manifests import Document, expand, load, operator_objects, pods, problems

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
MISSING = [
    name for name in ("dask_kubernetes", "jsonschema", "kubernetes_validate") if not importlib.util.find_spec(name)
]
needs_schemas = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: pip install '.[deploy]'")


@pytest.fixture
def manifests() -> dict[str, Document]:
    return load(FOLDER)


def container(doc: Document, part: str) -> Document:
    """Return the container of the job, the scheduler or the worker of a DaskJob."""
    pod = doc["spec"]["job"]["spec"] if part == "job" else doc["spec"]["cluster"]["spec"][part]["spec"]
    return pod["containers"][0]


def replace(command: list[str], old: str, new: str) -> None:
    command[command.index(old)] = new


@needs_schemas
def test_manifests__are_valid_and_wired_up(manifests: dict[str, Document]) -> None:
    assert sorted(doc["kind"] for doc in manifests.values()) == [
        "DaskCluster",
        "DaskJob",
        "Job",
        "PersistentVolumeClaim",
    ]
    assert problems(manifests) == []


def cluster(doc: Document) -> Document:
    return doc["spec"]["cluster"]["spec"]


BROKEN: dict[str, tuple[str, Callable[[Document], Any], str]] = {
    "no service": (
        "train.yaml",
        lambda doc: cluster(doc)["scheduler"].pop("service"),
        "spec/cluster/spec/scheduler: 'service' is a required property",
    ),
    "unknown field": (
        "train.yaml",
        lambda doc: cluster(doc)["worker"].update(replica=3),
        "spec/cluster/spec/worker: Additional properties are not allowed ('replica' was unexpected)",
    ),
    "typo in a container": (
        "cluster.yaml",
        lambda doc: doc["spec"]["worker"]["spec"]["containers"][0].update(imagePullPolice="Always"),
        "spec/worker/spec/containers/0: Additional properties are not allowed ('imagePullPolice' was unexpected)",
    ),
    "number for a quantity": (
        "train.yaml",
        lambda doc: container(doc, "worker")["resources"]["requests"].update(cpu=1),
        "spec/cluster/spec/worker/spec/containers/0/resources/requests/cpu: 1 is not of type 'string'",
    ),
    "job without a template": (
        "block.yaml",
        lambda doc: doc["spec"].pop("template"),
        "Job: spec: 'template' is a required property",
    ),
    "claim with an unknown field": (
        "storage.yaml",
        lambda doc: doc["spec"].update(accessMode=[]),
        "PersistentVolumeClaim: spec: Additional properties are not allowed ('accessMode' was unexpected)",
    ),
    "volume of one node": (
        "storage.yaml",
        lambda doc: doc["spec"].update(accessModes=["ReadWriteOnce"]),
        "volumes: the claim 'distmf' is not ReadWriteMany",
    ),
    "another claim": (
        "block.yaml",
        lambda doc: doc["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"].update(claimName="data"),
        "Job distmf-block: volumes: there is no claim 'data'",
    ),
    "selector of another cluster": (
        "train.yaml",
        lambda doc: cluster(doc)["scheduler"]["service"]["selector"].update({"dask.org/cluster-name": "distmf"}),
        "Service: selector: no pod has the labels",
    ),
    "port of another name": (
        "train.yaml",
        lambda doc: container(doc, "scheduler")["ports"][0].update(name="comm"),
        "Service: ports: tcp-comm is no port of the chosen pods",
    ),
    "no readiness probe": (
        "train.yaml",
        lambda doc: container(doc, "worker").pop("readinessProbe"),
        "worker: readinessProbe: nobody would see that it hangs",
    ),
    "no liveness probe": (
        "cluster.yaml",
        lambda doc: doc["spec"]["scheduler"]["spec"]["containers"][0].pop("livenessProbe"),
        "scheduler: livenessProbe: nobody would see that it hangs",
    ),
    "no limits": (
        "train.yaml",
        lambda doc: container(doc, "worker")["resources"].pop("limits"),
        "worker: resources: without a request and a limit of memory",
    ),
    "probe of another port": (
        "train.yaml",
        lambda doc: container(doc, "worker")["readinessProbe"]["httpGet"].update(port="health"),
        "worker: probe: there is no port 'health'",
    ),
    "volume not mounted": (
        "train.yaml",
        lambda doc: container(doc, "worker").pop("volumeMounts"),
        "worker: volumeMounts: the claim is mounted on [], not on /data",
    ),
    "worker beyond its container": (
        "train.yaml",
        lambda doc: replace(container(doc, "worker")["args"], "0.9", "4GiB"),
        "worker: args: --memory-limit 4GiB is 1.00 of the container's 4294967296 bytes",
    ),
    "worker's port": (
        "train.yaml",
        lambda doc: replace(container(doc, "worker")["args"], "8788", "8787"),
        "worker: args: the port http-dashboard is 8788, not 8787",
    ),
    "root": (
        "train.yaml",
        lambda doc: cluster(doc)["worker"]["spec"].pop("securityContext"),
        "Deployment distmf-train-default-worker-0: securityContext: must be the image's user 1000",
    ),
    "unknown option of distmf": (
        "train.yaml",
        lambda doc: replace(container(doc, "job")["args"], "--checkpoint", "--checkpont"),
        "train: args: distmf train: No such option '--checkpont'.",
    ),
    "unknown option of dask": (
        "train.yaml",
        lambda doc: replace(container(doc, "worker")["args"], "--nthreads", "--threads"),
        "worker: args: dask worker: No such option '--threads'.",
    ),
    "unknown variable": (
        "train.yaml",
        lambda doc: replace(container(doc, "job")["args"], "$(DASK_SCHEDULER_ADDRESS)", "$(SCHEDULER)"),
        "train: args: nothing sets $(SCHEDULER)",
    ),
    "unknown setting": (
        "train.yaml",
        lambda doc: container(doc, "scheduler")["env"][0].update(name="DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURE"),
        "Dask has no setting distributed.scheduler.allowed_failure",
    ),
    "lost route": (
        "train.yaml",
        lambda doc: container(doc, "scheduler")["env"][-1].update(value="['distributed.http.scheduler.api']"),
        "distributed.http.health",
    ),
    "job that runs for ever": (
        "train.yaml",
        lambda doc: doc["spec"]["job"]["spec"].pop("restartPolicy"),
        "Pod distmf-train-runner: restartPolicy: Always makes a job run for ever",
    ),
    "server that stops": (
        "train.yaml",
        lambda doc: cluster(doc)["worker"]["spec"].update(restartPolicy="OnFailure"),
        "Deployment distmf-train-default-worker-0: restartPolicy: OnFailure makes a server stop",
    ),
}


@needs_schemas
@pytest.mark.parametrize("case", BROKEN)
def test_problems__name_what_is_broken_and_where(case: str, manifests: dict[str, Document]) -> None:
    file, harm, expected = BROKEN[case]
    broken = copy.deepcopy(manifests)
    broken[file] = json.loads(json.dumps(broken[file]))  # parts that YAML shares are broken in one place
    harm(broken[file])
    assert any(expected in text for text in problems(broken)), problems(broken)


def test_train__resumes_after_every_restart(manifests: dict[str, Document]) -> None:
    job = manifests["train.yaml"]["spec"]["job"]["spec"]
    command = job["containers"][0]["args"]
    assert job["restartPolicy"] == "OnFailure"
    assert job["activeDeadlineSeconds"] > 0
    assert "--resume" in command
    assert command[command.index("--checkpoint") + 1].startswith("/data/")
    assert command[command.index("--scheduler") + 1] == "$(DASK_SCHEDULER_ADDRESS)"


def test_block__writes_what_train_reads(manifests: dict[str, Document]) -> None:
    block = manifests["block.yaml"]["spec"]["template"]["spec"]["containers"][0]["args"]
    train = container(manifests["train.yaml"], "job")["args"]
    assert block[:2] == ["distmf", "block"]
    assert block[3] == train[2]


def test_cluster__is_that_of_the_job_but_for_name_and_size(manifests: dict[str, Document]) -> None:
    lasting, of_job = (
        json.dumps(spec) for spec in (manifests["cluster.yaml"]["spec"], cluster(manifests["train.yaml"]))
    )
    lasting = re.sub(r'"idleTimeout": \d+, ', "", lasting)
    of_job = of_job.replace('"distmf-train"', '"distmf"')
    same_size = re.compile(r'"replicas": \d+')
    assert same_size.sub("", lasting) == same_size.sub("", of_job)


def ask(url: str, message: Any = None, seconds: float = 30) -> bytes:
    """Return what a server answers, as soon as it does; a message is posted to it as JSON."""
    data = None if message is None else json.dumps(message).encode()
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, data, timeout=5) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Pods(NamedTuple):
    """The containers that the operator makes of a DaskJob, on this machine: their commands, variables and addresses."""

    folder: Path
    containers: dict[str, Document]
    ports: dict[str, int]

    def environment(self, name: str) -> dict[str, str]:
        given = {variable["name"]: variable["value"] for variable in self.containers[name].get("env", [])}
        return {**given, "DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{self.ports['comm']}", "TMPDIR": str(self.folder)}

    def start(self, name: str, *options: str) -> "subprocess.Popen[str]":
        environment = self.environment(name)
        words = [expand(word, environment).replace("/data", str(self.folder)) for word in self.containers[name]["args"]]
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *words, *options], env={**os.environ, **environment}, stdout=log, stderr=log
            )

    def is_alive(self, name: str) -> bool:
        """Ask as the probes do."""
        path = self.containers[name]["livenessProbe"]["httpGet"]["path"]
        return ask(f"http://127.0.0.1:{self.ports[name]}{path}") == b"ok"

    def epoch(self) -> int:
        """Return the last epoch in the log of the job."""
        return max(
            map(int, re.findall(r"^epoch +(\d+)/", (self.folder / "train.log").read_text(), re.MULTILINE)), default=0
        )


@pytest.fixture
def of_job(manifests: dict[str, Document], tmp_path: Path) -> Iterator[Pods]:
    """Start scheduler and worker as the operator does for train.yaml, but on free ports of 127.0.0.1."""
    made = [pod.spec["containers"][0] for pod in pods(operator_objects(manifests["train.yaml"]))]
    found = Pods(tmp_path, {part["name"]: part for part in made}, {})
    found.ports.update({name: free_port() for name in ("comm", "scheduler", "worker")})
    here = ["--host", "127.0.0.1", "--dashboard-address"]
    started = [
        found.start("scheduler", "--port", str(found.ports["comm"]), *here, f"127.0.0.1:{found.ports['scheduler']}"),
        found.start("worker", *here, f"127.0.0.1:{found.ports['worker']}"),
    ]
    try:
        yield found
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


@needs_schemas
def test_commands__make_a_cluster_that_probes_and_operator_can_talk_to(of_job: Pods) -> None:
    assert of_job.is_alive("scheduler")
    assert of_job.is_alive("worker")
    name = of_job.environment("worker")["DASK_WORKER_NAME"]
    with distributed.Client(of_job.environment("train")["DASK_SCHEDULER_ADDRESS"], timeout=30) as client:
        client.wait_for_workers(1, timeout=30)
        (details,) = client.scheduler_info(n_workers=-1)["workers"].values()
        assert details["name"] == name == "distmf-train-default-worker-0"
        assert details["nthreads"] == 1
    retired = ask(f"http://127.0.0.1:{of_job.ports['scheduler']}/api/v1/retire_workers", {"n": 1})
    assert [gone["name"] for gone in json.loads(retired).values()] == [name]


@needs_schemas
def test_job__goes_on_when_it_is_started_again_as_restart_policy_does(of_job: Pods, tmp_path: Path) -> None:
    distmf.datasets.planted_ratings(tmp_path / "ratings", 20_000, 300, 100)
    distmf.block_ratings(tmp_path / "ratings", tmp_path / "blocks", grid=(2, 2), holdout=0.1)
    options = ["--rank", "8", "--epochs", "60", "--tol", "0", "--patience", "0"]
    job = of_job.start("train", *options)
    while of_job.epoch() < 5:
        assert job.poll() is None, (tmp_path / "train.log").read_text()
        time.sleep(0.05)
    job.kill()
    assert job.wait() == -signal.SIGKILL
    assert of_job.start("train", *options).wait(120) == 0
    log = (tmp_path / "train.log").read_text()
    assert "going on after epoch" in log
    assert len(re.findall(r"^epoch +1/", log, re.MULTILINE)) == 1
    assert distmf.load(tmp_path / "model").history_.epochs[-1].epoch == 60
