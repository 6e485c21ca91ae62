"""What the benchmarks share: the machine in words, tables, and medians of runs that take turns."""

import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeVar

Key = TypeVar("Key")

PROGRAM = [sys.executable, "-m", "distmf"]


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


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
