"""A control group with a memory limit, and commands that run in it: what they take, and whether one was killed.

Linux with control groups of version 1 or 2, as root.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import SECONDS_BETWEEN_SAMPLES, own_of

ROOT = Path("/sys/fs/cgroup")


class Peaks(NamedTuple):
    """What the processes of a group took at the peak, in bytes.

    Attributes
    ----------
    group : int
        Of the whole group, with the pages of files that it reads and writes.
    own : int
        Memory that is really the processes' own, all together.
    by_process : dict
        The same of each process.
    kills : int
        Processes that were killed because the group was at its limit.
    """

    group: int
    own: int
    by_process: dict[int, int]
    kills: int


class Group:
    """A control group; made by `limited`."""

    def __init__(self, folder: Path, *, is_v1: bool) -> None:
        self.folder, self._is_v1 = folder, is_v1

    def run(self, command: Sequence[str], **options: object) -> tuple[subprocess.CompletedProcess[str], float, Peaks]:
        """Run a command in the group; return how it ended, after how many seconds, and the peaks of its processes."""
        procs, stop, own, by_process = self.folder / "cgroup.procs", threading.Event(), [0], dict[int, int]()

        def enter() -> None:
            procs.write_text(str(os.getpid()))

        def watch() -> None:
            while not stop.wait(SECONDS_BETWEEN_SAMPLES):
                own.append(self._own())
                for pid in map(int, procs.read_text().split()):
                    by_process[pid] = max(by_process.get(pid, 0), own_of(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            done = subprocess.run(command, preexec_fn=enter, text=True, check=False, **options)  # type: ignore[call-overload]
        finally:
            seconds = time.perf_counter() - start
            stop.set()
            watcher.join()
        return done, seconds, Peaks(self._peak(), max(own), by_process, self._kills())

    def _peak(self) -> int:
        return int((self.folder / ("memory.max_usage_in_bytes" if self._is_v1 else "memory.peak")).read_text())

    def _own(self) -> int:
        lines = (self.folder / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == ("rss" if self._is_v1 else "anon"))

    def _kills(self) -> int:
        lines = (self.folder / ("memory.oom_control" if self._is_v1 else "memory.events")).read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")


@contextlib.contextmanager
def limited(n_bytes: int) -> Iterator[Group]:
    """Yield a control group that may use `n_bytes`, pages of files included, and no swap; it is gone afterwards.

    Raises
    ------
    OSError
        If none can be made here.
    """
    is_v1 = (ROOT / "memory").is_dir()
    folder = (ROOT / "memory" if is_v1 else ROOT) / f"distmf-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(n_bytes))
        with contextlib.suppress(OSError):  # where there is no swap, there is nothing to say
            (folder / ("memory.memsw.limit_in_bytes" if is_v1 else "memory.swap.max")).write_text(
                str(n_bytes if is_v1 else 0)
            )
        yield Group(folder, is_v1=is_v1)
    finally:
        folder.rmdir()


def forget_pages(folder: Path) -> None:
    """Let the system drop the pages of all files in a folder, so that they are read from the disk again."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
