"""The files of deploy/slurm: read by Dask, and, where Slurm is installed, run on a Slurm of one node."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distmf.cluster import SETTINGS
from tests.deploying import DEPLOY, PATH, needs, run, setting_problems

SLURM = DEPLOY / "slurm"
needs_jobqueue = pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="no dask_jobqueue: pip install '.[deploy]'"
)
needs_slurm = needs("munged", "slurmctld", "slurmd", "sbatch", "openssl", install="deploy/install-debian.sh")


def output_of(code: str, **environment: str) -> str:
    """Return what Python prints in a process of its own, as dask_jobqueue takes Ctrl-C for itself when imported."""
    done = run(sys.executable, "-c", code, PYTHONPATH=str(SLURM), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tls__holds_for_every_role() -> None:
    code = """if True:
        import json, dask.config
        from distributed.security import Security
        security = Security()
        roles = {role: security.get_tls_config_for_role(role) for role in ("scheduler", "worker", "client")}
        scheme = dask.config.get("distributed.comm.default-scheme")
        print(json.dumps([scheme, security.require_encryption, roles]))"""
    scheme, is_required, roles = json.loads(output_of(code, DASK_CONFIG=str(DEPLOY / "tls.yaml")))
    assert (scheme, is_required) == ("tls", True)
    folder = "/path/to/tls"
    for role, files in roles.items():
        found = {part: files[part] for part in ("ca_file", "cert", "key")}
        assert found == {part: f"{folder}/{part.removesuffix('_file')}.pem" for part in found}, role


@needs_jobqueue
def test_login_node__gives_its_workers_the_settings_of_our_own_clusters() -> None:
    lines = output_of("import login_node; print(*login_node.PROLOGUE, sep='\\n')")
    variables = run("env", "--ignore-environment", "bash", "-ec", f"{lines}env").stdout.splitlines()
    environment = dict(line.split("=", 1) for line in variables if line.startswith("DASK_"))
    assert setting_problems(environment) == []
    names = [name for name in SETTINGS if name.startswith(("distributed.admin.", "distributed.worker."))]
    code = f"import dask.config; print([dask.config.get(name) for name in {names}])"
    assert output_of(code, **environment).strip() == str([SETTINGS[name] for name in names])


@pytest.mark.parametrize("name", ["login_node", "runner"])
@needs_jobqueue
def test_program__is_imported_without_doing_anything(name: str) -> None:
    assert output_of(f"import {name}") == ""


def test_job__refuses_what_cannot_go_on_or_work() -> None:
    done = run("bash", SLURM / "distmf.sbatch", "train", "blocks", "model", "--checkpoint-every", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a training needs --checkpoint FOLDER" in done.stderr
    done = run("bash", SLURM / "distmf.sbatch", "block", "ratings", "blocks", SLURM_NTASKS="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--ntasks=2: 3 at least" in done.stderr


@needs_jobqueue
def test_login_node__names_the_interfaces_that_are_there() -> None:
    done = run(sys.executable, SLURM / "login_node.py", "--interface", "nowhere", "train", "blocks", "model")
    assert done.returncode == 2
    assert "there is no 'nowhere' here, but lo" in done.stderr
    assert "Traceback" not in done.stderr


def test_job__on_several_nodes_asks_for_their_interface() -> None:
    command = ("train", "blocks", "model", "--checkpoint=folder")
    done = run("bash", SLURM / "distmf.sbatch", *command, SLURM_JOB_NUM_NODES="2", DISTMF_INTERFACE="")
    assert done.returncode == 1
    assert "DISTMF_INTERFACE: is not set; it names the network interface" in done.stderr


@needs_jobqueue
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"DISTMF_INTERFACE": "nowhere"}, "'nowhere' is not a valid network interface"),
        ({"DISTMF_INTERFACE": "lo", "DASK_CONFIG": str(DEPLOY / "tls.yaml")}, "No such file or directory"),
    ],
    ids=["interface", "certificates"],
)
def test_runner__ends_every_task_at_once_if_all_are_set_up_wrongly(wrong: dict[str, str], complaint: str) -> None:
    task = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}  # a worker, and there is no scheduler
    done = run(sys.executable, SLURM / "runner.py", "scheduler.json", "train", **task, **wrong)
    assert done.returncode == 1
    assert complaint in done.stderr


def processes_beside(folder: Path) -> list[str]:
    """Return the command lines of processes that were told of a Slurm in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_CONF={folder}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


@pytest.mark.deploy
@needs_slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_node__leaves_nothing_when_it_is_ended(no_leaks: Path, number: signal.Signals) -> None:
    script = """sbatch --output=/dev/null --wrap='sleep 1000'
        until squeue --noheader --states=running | grep -q .; do sleep 0.2; done
        echo runs
        sleep 1000"""
    command = [str(SLURM / "one_node.sh"), "bash", "-c", script]
    environment = {**os.environ, "PATH": PATH}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as slurm:
        assert slurm.stdout is not None
        assert [slurm.stdout.readline() for _ in range(2)][1] == "runs\n"
        assert len(processes_beside(no_leaks)) > 4  # daemons, the command, and the job
        slurm.send_signal(number)
        assert slurm.wait(60) == 128 + number
    assert processes_beside(no_leaks) == []


@pytest.mark.deploy
@needs_slurm
@needs_jobqueue
def test_try__ends_with_the_same_bytes_whatever_was_killed(no_leaks: Path) -> None:
    # `timeout` ends it by SIGTERM, on which the script removes what it made.
    limited = ["timeout", "--kill-after=60", "900", str(SLURM / "try.sh")]
    done = subprocess.run(limited, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same bytes") == 2
    assert done.stdout.count("it goes on") == 2
    assert "ports of 127.0.0.1 only" in done.stdout
    assert "ends with exit code 1, and is not repeated" in done.stdout
    assert processes_beside(no_leaks) == []
