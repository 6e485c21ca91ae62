"""Clusters for tests, and what can happen to them in the middle of a training."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distributed import Client

from distmf.cluster import local_cluster

DASK = (sys.executable, "-m", "dask")


@contextlib.contextmanager
def cluster(n_workers: int, folder: Path) -> Iterator[Client]:
    """Yield a client of worker processes whose own files lie in `folder`."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        with local_cluster(n_workers) as client:
            tempfile.tempdir = before
            yield client
            tempfile.tempdir = str(folder)
    finally:
        tempfile.tempdir = before


def worker_pids(client: Client) -> list[int]:
    """Return the process ids of the workers."""
    return list(client.run(os.getpid).values())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def at_epoch(epoch: int, act: Callable[[], Any]) -> Iterator[list[int]]:
    """Do something, once, in the middle of the generation in which an epoch has passed; yields what was done."""
    done: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("epoch") and not done and record.args[1] >= epoch:  # type: ignore[index, operator]
                done.append(epoch)
                act()

    handler, logger = Handler(), logging.getLogger("distmf.trainer")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield done
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """Start `distmf` with arguments; its progress is on standard error."""
    command = [sys.executable, "-m", "distmf", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def wait_for(process: subprocess.Popen[str], text: str, seconds: float = 60) -> str:
    """Return the first line of its progress that begins with `text`."""
    assert process.stderr is not None
    deadline = time.monotonic() + seconds
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(text):
            return line
        assert time.monotonic() < deadline
    raise AssertionError(f"{text!r} did not come, but {''.join(seen)}")


@contextlib.contextmanager
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield a list; the processes that were put into it are ended."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _run(command: list[str | Path], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(folder), "TMPDIR": str(folder)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=environment)


def start_scheduler(started: list[subprocess.Popen[bytes]], folder: Path, *options: str | Path) -> Path:
    """Start a scheduler on loopback and return its file, which is in `folder` as is all that it writes."""
    file = folder / "scheduler.json"
    listen = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    started.append(_run([*DASK, "scheduler", "--scheduler-file", file, *listen, *options], folder))
    for _ in range(300):
        with contextlib.suppress(OSError, ValueError):
            json.loads(file.read_text())
            return file
        time.sleep(0.1)
    raise AssertionError(f"no {file.name}")


def start_worker(
    started: list[subprocess.Popen[bytes]], folder: Path, name: str, *options: str | Path, before: str = ""
) -> None:
    """Start a worker of one thread; `before` is a shell command that is run first, in a file system of its own."""
    join = ["--scheduler-file", folder / "scheduler.json", "--host", "127.0.0.1", "--nthreads", "1"]
    command = [*DASK, "worker", *join, "--name", name]
    command += ["--local-directory", folder, "--dashboard-address", "127.0.0.1:0", *options]
    if before:
        command = ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    started.append(_run(command, folder))
