"""The files of deploy/ssh: where sshd is installed, run over an sshd of this machine."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploying import DEPLOY, PATH, needs, run

SSH = DEPLOY / "ssh"
needs_asyncssh = pytest.mark.skipif(
    importlib.util.find_spec("asyncssh") is None, reason="no asyncssh: pip install '.[deploy]'"
)


def test_over_ssh__explains_itself(tmp_path: Path) -> None:
    done = run(sys.executable, SSH / "over_ssh.py", "--help")
    assert done.returncode == 0
    assert "machines that ssh reaches" in done.stdout
    hosts = tmp_path / "hosts"
    hosts.write_text("# none yet\n")
    done = run(sys.executable, SSH / "over_ssh.py", "--hosts", str(hosts), "--interface", "lo", "train")
    assert done.returncode == 2
    assert f"{hosts} names no machine" in done.stderr


@pytest.mark.deploy
@needs("sshd", "ssh", "ssh-keygen", "openssl", install="deploy/install-debian.sh")
@needs_asyncssh
def test_try__ends_with_the_same_bytes_whatever_was_killed(tmp_path: Path) -> None:
    # `timeout` ends it by SIGTERM, on which the script removes what it made.
    limited = ["timeout", "--kill-after=60", "600", str(SSH / "try.sh")]
    environment = {**os.environ, "PATH": PATH, "TMPDIR": str(tmp_path)}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same bytes") == 2
    assert "ended its session, killed a worker: another one is there" in done.stdout
    assert "killed the driver: scheduler and workers have ended" in done.stdout
    assert "a machine is missing: it says so, and nothing is left running" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp.")]
