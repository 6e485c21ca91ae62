"""What the benchmarks share: the machine in words, tables, medians of runs that take turns, and memory, sampled."""

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil

Key = TypeVar("Key")

PROGRAM = [sys.executable, "-m", "distmf"]
SECONDS_BETWEEN_SAMPLES = 0.02
SECONDS_BETWEEN_SEARCHES = 0.5  # for processes started meanwhile: the state of every process there is, is read for it


def count(text: str) -> int:
    """Return a whole number, also as 1e9."""
    return int(float(text))


def machine() -> str:
    """Return the CPU and the versions that the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    packages = ", ".join(f"{name} {version(name)}" for name in ("distmf", "dask", "numba", "numpy", "pyarrow"))
    return f"{len(os.sched_getaffinity(0))} cores of {cpu}; Python {platform.python_version()}, {packages}"


def in_turn(runs: dict[Key, Callable[[], float]], rounds: int) -> dict[Key, float]:
    """Return the median result of each run; they take turns, so that a busy machine slows all of them alike."""
    results: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            results[key].append(run())
    return {key: median(found) for key, found in results.items()}


def seconds_of(run: Callable[[], Any]) -> Callable[[], float]:
    """Return what runs it and returns how long it took."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


@contextlib.contextmanager
def sampled_memory(pid: int) -> Iterator[list[int]]:
    """Yield a list that grows by the bytes that a process and all that it started have of their own, until the end."""
    samples, ended = [0], threading.Event()

    def watch() -> None:
        processes, searched = [pid], -SECONDS_BETWEEN_SEARCHES
        while not ended.wait(SECONDS_BETWEEN_SAMPLES):
            if time.perf_counter() - searched >= SECONDS_BETWEEN_SEARCHES:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
                    processes = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
                searched = time.perf_counter()
            samples.append(sum(map(own_of, processes)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()


def own_of(pid: int) -> int:
    """Return the bytes that are really the process's own, 0 if it has ended."""
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0
