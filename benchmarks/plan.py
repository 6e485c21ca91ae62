"""What `distmf plan` predicts beside what happens: seconds of an epoch, predicted / measured.

    python benchmarks/plan.py

*Training* is real: planted ratings on 1 and on 2 worker processes of this machine. The rates come from the same
machine: kernel and copies are measured in the workers before and after each training, the disk and what tasks take as
`distmf plan --measure-scheduler` measures them. An epoch is one after the first generation, in which the first factors
are drawn. Peak memory is that of new workers which do nothing but train.

*Sleeping* has many workers, which is more than one machine can train with: they live in this process, and their kernels
only sleep. The graph, the scheduler and the messages are those of a training. The rate of the scheduler, which here is
that of all workers too, is that of the same graph without any sleep.
"""

import argparse
import contextlib
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import dask.config
from distributed import Client, LocalCluster

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.common import machine, markdown  # noqa: E402
from distmf import MatrixFactorization, block_ratings  # noqa: E402
from distmf.cluster import SETTINGS, ClusterEngine, local_cluster  # noqa: E402
from distmf.datasets import planted_ratings  # noqa: E402
from distmf.footprint import Inputs, Rates, worker_bytes  # noqa: E402
from distmf.grid import Shape  # noqa: E402
from distmf.plan import describe_cluster, predict  # noqa: E402
from distmf.rates import Speed, hollow_generation, measure_disk, measure_kernel, measure_scheduler  # noqa: E402
from distmf.simulation import Work, simulate  # noqa: E402
from distmf.trainer import EPOCHS_PER_GENERATION  # noqa: E402

LOOPBACK = 1.5e9  # bytes per second between two processes of a machine
WITHIN = 0.3
MEMORY = "peak memory of a worker / planned"


def speed_in(client: Any, inputs: Inputs, shape: Shape) -> Speed:
    """Return how fast the workers are while all of them are at work."""
    what = inputs.n_ratings, inputs.n_users, inputs.n_items, inputs.rank, shape, 1, 1
    found = list(client.run(measure_kernel, *what).values())
    return Speed(*(median(values) for values in zip(*found, strict=True)))


def epoch_seconds(client: Any, blocks: str, rank: int, n_ratings: int) -> float:
    """Return the seconds of an epoch after the first generation."""
    ends = []
    for n_epochs in (EPOCHS_PER_GENERATION, 2 * EPOCHS_PER_GENERATION):
        mf = MatrixFactorization(rank, epochs=n_epochs, tol=0).fit(blocks, client=client)
        ends.append(n_epochs * n_ratings / (mf.history_.ratings_per_second or 1))
    return (ends[1] - ends[0]) / EPOCHS_PER_GENERATION


def training(folder: Path, inputs: Inputs, sizes: list[int], rounds: int) -> Iterator[list[object]]:
    """Yield workers, grid, measured and predicted seconds, and their ratio; grids take turns."""
    planted_ratings(folder / "ratings", inputs.n_ratings, inputs.n_users, inputs.n_items)
    for size in sizes:
        block_ratings(folder / "ratings", folder / f"{size}", grid=(size, size))
    for workers in (1, 2):
        found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
        with local_cluster(workers) as client:
            for _, size in itertools.product(range(rounds), sizes):
                shape = Shape(size, size)
                before = speed_in(client, inputs, shape)
                measured = epoch_seconds(client, str(folder / f"{size}"), inputs.rank, inputs.n_ratings)
                speed = Speed(*map(median, zip(before, speed_in(client, inputs, shape), strict=True)))
                rates = inputs.rates._replace(kernel=speed.kernel, copy=speed.copy)
                predicted = predict(replace(inputs, workers=workers, rates=rates), shape).seconds
                found[size].append((measured, predicted))
        for size, pairs in found.items():
            planned = worker_bytes(replace(inputs, workers=workers), Shape(size, size)).total
            memory = f"{peak_of_workers(workers, str(folder / f'{size}'), inputs.rank) / planned:.2f}"
            yield [f"{workers} × 1", f"{size} × {size}", *summary(pairs), memory]


def peak_of_workers(workers: int, blocks: str, rank: int) -> int:
    """Return the most memory that one of some new workers has in a training."""
    with local_cluster(workers) as client:
        MatrixFactorization(rank, epochs=EPOCHS_PER_GENERATION + 1, tol=0).fit(blocks, client=client)
        return max(client.run(peak_bytes).values())


def peak_bytes() -> int:
    """Return the most memory that this process has had at any time."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def summary(pairs: list[tuple[float, float]]) -> list[str]:
    """Return the medians of what was measured and predicted, and the median ratio."""
    measured, predicted = (median(values) for values in zip(*pairs, strict=True))
    ratio = median(guess / real for real, guess in pairs)
    return [f"{measured:.3f} s", f"{predicted:.3f} s", f"{ratio:.2f}{'' if abs(ratio - 1) <= WITHIN else ' (!)'}"]


@contextlib.contextmanager
def workers_in_process(n_workers: int) -> Iterator[ClusterEngine]:
    """Yield the engine of a cluster whose scheduler and workers all live in this process."""
    quiet = {"distributed.admin.system-monitor.interval": "60s", "distributed.admin.tick.interval": "60s"}
    with (
        tempfile.TemporaryDirectory(prefix="distmf-workers-") as folder,
        dask.config.set({**SETTINGS, **quiet, "temporary-directory": folder}),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            local_directory=folder,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        ClusterEngine(client) as engine,
    ):
        yield engine


def sleep(engine: ClusterEngine, shape: Shape, seconds: float) -> tuple[float, float, int]:
    """Return the seconds of an epoch of kernels that sleep, those of a mean kernel, and the number of tasks."""
    pause = functools.partial(time.sleep, seconds) if seconds else None
    start = time.perf_counter()
    generation = hollow_generation(shape, 1, engine.owners(shape.rows), pause)
    values = engine.run(generation.graph, [*generation.epochs.values(), *generation.snapshots.values()])
    epoch = time.perf_counter() - start
    seconds = [visit.seconds for visit in values[0].visits]
    return epoch, sum(seconds) / len(seconds), len(generation.graph.tasks)


def sleeping(n_workers: int, sizes: list[int], pauses: list[float], rounds: int) -> Iterator[list[object]]:
    """Yield workers, grid, pause, measured and predicted seconds, and their ratio; pauses take turns."""
    with workers_in_process(n_workers) as engine:
        for size in sizes:
            shape = Shape(size, size)
            sleep(engine, shape, 0.0)  # the first is slow
            found: dict[float, list[tuple[float, float]]] = {pause: [] for pause in pauses}
            for _ in range(rounds):
                empty, _, n_tasks = sleep(engine, shape, 0.0)
                cluster = describe_cluster(n_workers, 1, float("inf"), n_tasks / empty)
                for pause in pauses:
                    measured, kernel, _ = sleep(engine, shape, pause)
                    found[pause].append((measured, simulate(Work(shape, kernel), cluster).seconds))
            for pause, pairs in found.items():
                yield [f"{n_workers} × 1", f"{size} × {size}", f"{1000 * pause:.0f} ms", *summary(pairs)]


def main() -> None:
    """Run both and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small data, one round: to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["training", "sleeping"])
    args = parser.parse_args()
    print(f"{machine()}\n")
    header = ["workers", "grid", "measured", "predicted", "predicted / measured"]
    if args.only != "sleeping":
        rates = Rates(1.0, 1.0, measure_disk().rate, LOOPBACK, *measure_scheduler())  # the first two come with each run
        n, n_users, n_items = (20_000, 700, 300) if args.toy else (20_000_000, 138_000, 27_000)
        inputs = Inputs(
            n, n_users, n_items, rank=8 if args.toy else 64, workers=1, threads=1, memory=0, rates=rates, value_bytes=4
        )
        sizes, rounds = ([4], 1) if args.toy else ([4, 8], args.rounds)
        with tempfile.TemporaryDirectory(prefix="distmf-") as folder:
            rows = list(training(Path(folder), inputs, sizes, rounds))
        print(f"Training, {n:,} ratings, {n_users:,} × {n_items:,}, rank {inputs.rank}\n")
        print(markdown([*header, MEMORY], rows) + "\n")
    if args.only != "training":
        what = (4, [4], [0.01], 1) if args.toy else (32, [32, 64], [0.05, 0.1, 0.2], args.rounds)
        print(f"Sleeping\n\n{markdown([*header[:2], 'kernel sleeps', *header[2:]], sleeping(*what))}")


if __name__ == "__main__":
    main()
