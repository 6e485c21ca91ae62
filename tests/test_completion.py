"""Words that the shell completes: with Bash itself, and the scripts for others."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 60
SOURCE = 'eval "$(_DISTMF_COMPLETE=bash_source distmf)"'

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def environment() -> dict[str, str]:
    """Return variables with which a shell finds the command that belongs to this Python, and says nothing else."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PS1": "",
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


def completed(typed: str) -> list[str]:
    """Return what Bash offers when Tab is pressed after the last of the words that are typed."""
    script = f"{SOURCE}\nCOMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
    script += '$(complete -p distmf | sed "s/.*-F \\([^ ]*\\).*/\\1/") distmf; printf "%s\\n" "${COMPREPLY[@]}"'
    command = "bash", "--norc", "--noprofile", "-euc", script
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.split()


def after_tab(typed: str, folder: Path) -> str:
    """Return the words of the line into which Tab turns what is typed in an interactive Bash, each as <word>."""
    terminal, of_shell = pty.openpty()
    command = "bash", "--norc", "--noprofile", "-i"
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=of_shell, stdout=of_shell, stderr=of_shell, start_new_session=True
    ) as shell:
        os.close(of_shell)
        # Ctrl-A: what prints the words goes to the beginning of the line.
        os.write(terminal, f"{SOURCE}\n{typed}\t\x01printf '<%s>' \nexit\n".encode())
        shown, until = "", time.monotonic() + SECONDS
        while shell.poll() is None and time.monotonic() < until:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    shown += os.read(terminal, 1 << 16).decode()
                except OSError:  # Linux says so when the shell has gone
                    break
        shell.kill()
    os.close(terminal)
    assert "<distmf>" in shown, shown
    return "<distmf>" + shown.split("<distmf>", 1)[1].split("\n", 1)[0].split("exit", 1)[0].strip()


@needs_bash
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("distmf tr", ["train"]),
        ("distmf train --ran", ["--rank"]),
        ("distmf train ratings model --loss h", ["huber", "hinge"]),
        ("distmf tune blocks --tls-", ["--tls-ca-file", "--tls-cert", "--tls-key"]),
    ],
)
def test_completion__in_bash_is_of_commands_options_and_values(typed: str, words: list[str]) -> None:
    assert completed(typed) == words


@needs_bash
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("distmf train rat", "<distmf><train><ratings.parquet>"),
        ("distmf recommend mo", "<distmf><recommend><model/>"),
        ("distmf recommend model best --users us", "<distmf><recommend><model><best><--users><users.parquet>"),
        ("distmf tune blocks --checkpoint mo", "<distmf><tune><blocks><--checkpoint><model/>"),
    ],
)
def test_completion__in_bash_goes_on_with_files_or_with_folders(typed: str, line: str, tmp_path: Path) -> None:
    for name in "ratings.parquet", "users.parquet", "model.txt":
        (tmp_path / name).touch()
    (tmp_path / "model").mkdir()
    assert after_tab(typed, tmp_path) == line


@pytest.mark.parametrize(
    ("shell", "line"), [("zsh", "#compdef distmf"), ("fish", "complete --no-files --command distmf")]
)
def test_completion__has_scripts_for_other_shells(shell: str, line: str) -> None:
    variables = environment() | {"_DISTMF_COMPLETE": f"{shell}_source"}
    done = subprocess.run(["distmf"], env=variables, capture_output=True, text=True, check=True)
    assert line in done.stdout
