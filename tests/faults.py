"""One long training on a cluster whose processes are killed again and again: the model is that of one left in peace.

    python -m tests.faults --kills 20 --seed 0

Scheduler, workers and driver are processes of their own, as on a real cluster. Each kill is SIGKILL, at a moment drawn
at random, of the driver, which is started again and goes on from its checkpoint; of one worker or two at once, which
their nannies replace; or of a worker with its nanny, for which another joins. At the end the model must be the same
bytes, the folders must hold nothing else, and no process may be left.
"""

import argparse
import collections
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from distmf import MatrixFactorization, block_ratings
from distmf.datasets import planted_ratings
from tests.clusters import processes, start, start_scheduler, start_worker
from tests.helpers import files

RANK = 24
LAST = 0.8  # of the epochs, in which something is killed
MAX_DELAY = 1.0  # seconds from the end of an epoch to the kill after it
MARK = "DISTMF_FAULTS"  # in the environment of all processes of a run
VICTIMS = {"driver": 0.35, "worker": 0.35, "two workers": 0.15, "worker and nanny": 0.15}
N_STATES = 3  # two that can be resumed, and the one before them
SECONDS = 600.0


class Kill(NamedTuple):
    """One fault: after which epoch, how many seconds later, of what."""

    epoch: int
    delay: float
    victim: str


def draw(n_kills: int, n_epochs: int, seed: int) -> list[Kill]:
    """Return kills in the order of time."""
    rng = np.random.default_rng(seed)
    epochs = np.sort(rng.integers(1, int(LAST * n_epochs), n_kills, endpoint=True))
    victims = rng.choice(list(VICTIMS), n_kills, p=list(VICTIMS.values()))
    return [
        Kill(int(epoch), rng.uniform(0, MAX_DELAY), str(victim)) for epoch, victim in zip(epochs, victims, strict=True)
    ]


class Driver:
    """A training that is started again when it is killed.

    Attributes
    ----------
    epoch : int
        The last one that it reported.
    said : collections.deque of str
        Its last lines.
    n_resumed : int
        How often it went on from a checkpoint.
    """

    def __init__(self, *command: str | Path) -> None:
        self.command, self.epoch, self.n_resumed = command, 0, 0
        self.said: collections.deque[str] = collections.deque(maxlen=20)
        self.start()

    def start(self) -> None:
        """Start it, the first time or again."""
        self.process = start(*self.command)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("epoch "):
                self.epoch = int(line.split()[1].split("/")[0])
            self.n_resumed += line.startswith("going on after epoch")

    def wait_until(self, epoch: int, deadline: float, workers: "Workers") -> None:
        """Wait for an epoch, and fail if the process has ended."""
        while self.epoch < epoch:
            assert time.monotonic() < deadline, f"epoch {epoch} did not come: {''.join(self.said)}"
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {''.join(self.said)}"
            workers.replace_dead()
            time.sleep(0.005)

    def end(self, seconds: float) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(seconds)
        self.reader.join()
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.process.stderr.close()
        self.process.stdout.close()
        return code


class Workers:
    """Worker processes, each below a nanny, below `dask worker`."""

    def __init__(self, started: list[subprocess.Popen[bytes]], folder: Path, n: int) -> None:
        self.started, self.folder = started, folder
        self.nannies = [self._start() for _ in range(n)]

    def _start(self) -> psutil.Process:
        start_worker(self.started, self.folder, f"w{len(self.started)}")
        return psutil.Process(self.started[-1].pid)

    def replace_dead(self) -> None:
        """Start a nanny again that has ended: a worker that dies while it starts takes its nanny with it."""
        for n, nanny in enumerate(self.nannies):
            if nanny.status() == psutil.STATUS_ZOMBIE:
                self.nannies[n] = self._start()

    def _worker(self, n: int, deadline: float) -> psutil.Process:
        """Return a worker as soon as it is there."""
        while True:
            assert time.monotonic() < deadline, f"worker {n} did not come"
            with contextlib.suppress(psutil.Error):
                for child in self.nannies[n].children():
                    if any("spawn_main" in part for part in child.cmdline()):
                        return child
            self.replace_dead()
            time.sleep(0.01)

    def kill(self, victims: list[int], deadline: float, *, nanny: bool) -> list[int]:
        """Kill workers at once, as soon as they are there; return the ids of the processes."""
        killed = [self._worker(n, deadline) for n in victims]
        if nanny:
            killed = [self.nannies[n] for n in victims] + killed
        for process in killed:
            process.kill()
        return [process.pid for process in killed]


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """Mark all processes that are started from here on."""
    os.environ[MARK] = uuid.uuid4().hex
    try:
        yield os.environ[MARK]
    finally:
        del os.environ[MARK]


def alive(mark: str) -> list[str]:
    """Return what still runs of the marked processes, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(f"{process.pid}: {' '.join(process.cmdline())}")
    return found


def say(text: str) -> None:
    """Print a line, now."""
    print(text, flush=True)  # noqa: T201


def torment(folder: Path, kills: list[Kill], n_epochs: int, n_workers: int, n_ratings: int, seed: int) -> None:
    """Train with kills in `folder`; raise AssertionError if anything is not as if there had been none."""
    planted_ratings(folder / "ratings", n_ratings, 3 * n_ratings // 100, n_ratings // 100)
    blocks = block_ratings(folder / "ratings", folder / "blocks", grid=(2 * n_workers, 2 * n_workers), holdout=0.1)
    MatrixFactorization(RANK, epochs=n_epochs, tol=0, patience=0).fit(blocks).save(folder / "expected")
    before = files(folder / "blocks")
    rng, deadline = np.random.default_rng(seed), time.monotonic() + SECONDS
    (folder / "cluster").mkdir()
    with marked() as mark:
        with processes() as started:
            scheduler = start_scheduler(started, folder / "cluster")
            workers = Workers(started, folder / "cluster", n_workers)
            options = [
                "--rank",
                str(RANK),
                "--epochs",
                str(n_epochs),
                "--tol",
                "0",
                "--patience",
                "0",
                "--scheduler",
                str(scheduler),
            ]
            options += ["--checkpoint", str(folder / "checkpoint"), "--resume"]
            driver = Driver("train", folder / "blocks", folder / "model", *options)
            try:
                for n, (epoch, delay, victim) in enumerate(kills):
                    driver.wait_until(epoch, deadline, workers)
                    time.sleep(delay)
                    if victim == "driver":
                        driver.process.kill()
                        assert driver.end(10) == -signal.SIGKILL, "the driver ended before it could be killed"
                        pids = [driver.process.pid]
                        driver.start()
                    else:
                        chosen = rng.choice(n_workers, 1 + (victim == "two workers"), replace=False).tolist()
                        pids = workers.kill(chosen, deadline, nanny=victim == "worker and nanny")
                    say(f"kill {n + 1:2}  in epoch {driver.epoch + 1:3}  {victim} ({', '.join(map(str, pids))})")
                driver.wait_until(n_epochs, deadline, workers)
                assert driver.end(60) == 0, "".join(driver.said)
            finally:
                driver.process.kill()
                driver.end(10)
        # Workers whose nanny was killed notice it after a moment.
        until = time.monotonic() + 10
        while alive(mark) and time.monotonic() < until:
            time.sleep(0.1)
        assert not alive(mark), alive(mark)
    assert files(folder / "model") == files(folder / "expected"), "the models differ"
    assert files(folder / "blocks") == before, "the blocks have changed"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["blocks", "checkpoint", "cluster", "expected", "model", "ratings"], names
    names = sorted(path.name for path in (folder / "checkpoint").iterdir())
    assert names == ["checkpoint.json", "factors"], names
    states = [sorted(file.name for file in state.iterdir()) for state in (folder / "checkpoint/factors").iterdir()]
    assert len(states) <= N_STATES, states
    whole = sorted(f"{side}-{n:05}.bin" for side in ("rows", "cols") for n in range(2 * n_workers))
    assert all(state == whole for state in states), states
    say(f"{len(kills)} kills, {driver.n_resumed} times resumed: same bytes, nothing else in the folders, no processes")


def main(arguments: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ratings", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    kills = draw(args.kills, args.epochs, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            torment(Path(folder), kills, args.epochs, args.workers, args.ratings, args.seed)
        except AssertionError as err:
            sys.exit(f"failed: {err}")


if __name__ == "__main__":
    main()
