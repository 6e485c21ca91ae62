"""Clusters for tests, and what can happen to them in the middle of a training."""

import contextlib
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


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `distmf` with arguments; its progress is on standard error."""
    command = [sys.executable, "-m", "distmf", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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
