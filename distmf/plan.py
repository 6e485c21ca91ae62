"""Ratings and a cluster, described -> grid, memory, tasks and seconds of an epoch, and what would change them.

Pure: no files, no Dask. Amounts are bytes and seconds; rates are measured elsewhere or given.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from distmf.choices import MAX_BLOCKS
from distmf.errors import MemoryBudgetError
from distmf.footprint import Inputs, WorkerBytes, block_bytes, factor_bytes, miss_share, most_rows, worker_bytes
from distmf.grid import Shape, bytes_per_line
from distmf.memory import Sizes, TrainingBytes, both_ways, finer_shapes
from distmf.simulation import Cluster, Simulated, Split, Work, count_moves, simulate
from distmf.sizes import format_bytes
from distmf.trainer import generation_epochs

SPREAD = 0.1  # of the kernel's seconds from block to block
HANDLING_SECONDS = 0.001  # of a worker, between a message and a thread, and for what is fetched from another
SUBMIT_SHARE = 0.2  # of the scheduler's seconds for a task, spent before the first task starts
GENERATION_SECONDS = 0.06  # from the last result of a generation to the first task of the next, besides submission
HALF_RANK = 1.4  # the kernel's updates per second at half the rank, over those at the rank (README: 1.3 to 1.6)

SCHEDULER_BYTES = 10_000  # of the scheduler's memory, for each task of a generation

CANDIDATES = 3  # grids that look best by a formula are simulated
CANDIDATE_VISITS = 5_000
CLOSE = 1.1  # grids whose times differ by less are alike


class Change(NamedTuple):
    """What a plan would be if one thing were different.

    Attributes
    ----------
    what : str
        In words.
    shape : Shape or None
        The grid that is then best; None if nothing fits.
    seconds : float or None
        Of an epoch; None if nothing fits.
    ratio : float or None
        Over those of the plan.
    """

    what: str
    shape: Shape | None
    seconds: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan.

    Attributes
    ----------
    inputs : Inputs
        What it is for.
    shape : Shape
        Of the grid.
    memory : WorkerBytes
        Of the fullest worker.
    n_tasks : int
        Of an epoch.
    epoch : Simulated
        Where its time goes.
    bottleneck : str
        The part of the epoch that would shorten it most if it were twice as fast.
    changes : tuple of Change
        What would be different if …
    """

    inputs: Inputs
    shape: Shape
    memory: WorkerBytes
    n_tasks: int
    epoch: Simulated
    bottleneck: str
    changes: tuple[Change, ...]

    @property
    def alone(self) -> dict[str, TrainingBytes]:
        """What one process with the threads and the memory of a worker takes, without a cluster, by where P lies."""
        return _alone(self.inputs, self.shape, self.inputs.memory)

    @property
    def driver_bytes(self) -> int:
        """Memory of the driver at the end: the factors, and two more copies while it sorts a side by id."""
        users, items = (bytes_per_line(self.inputs.rank) * n for n in (self.inputs.n_users, self.inputs.n_items))
        return users + items + max(2 * users, users + 2 * items)

    @property
    def scheduler_bytes(self) -> int:
        """Memory of the scheduler for the tasks of a generation."""
        return SCHEDULER_BYTES * self.n_tasks * generation_epochs(self.shape)


def make_plan(inputs: Inputs) -> Plan:
    """Return the plan for the fastest grid that fits, or for the grid that is given.

    Raises
    ------
    MemoryBudgetError
        If no grid fits in the memory of a worker.
    """
    shape = choose_shape(inputs)
    epoch = predict(inputs, shape)
    changes = tuple(_changes(inputs, shape, epoch.seconds))
    memory, n_tasks = worker_bytes(inputs, shape), tasks(inputs, shape)
    return Plan(inputs, shape, memory, n_tasks, epoch, _bottleneck(inputs, shape), changes)


def _bottleneck(inputs: Inputs, shape: Shape) -> str:
    """Return the part of an epoch that would shorten it most if it were twice as fast."""
    rates = {name: {name: 2.0} for name in Split._fields} | {"scheduler": {"scheduler": 2.0, "task": 0.5}}
    return min(rates, key=lambda name: predict(_with_rates(inputs, **rates[name]), shape).seconds)


def _with_rates(inputs: Inputs, **factors: float) -> Inputs:
    """Return the same with some rates times a factor."""
    rates = inputs.rates
    return replace(inputs, rates=rates._replace(**{name: getattr(rates, name) * f for name, f in factors.items()}))


def tasks(inputs: Inputs, shape: Shape) -> int:
    """Return the tasks of an epoch in the mean.

    A visit to every block, one for every column block that moves on to another worker, and one where it rests, as all
    but one do where there are more of them than row blocks; the costs of each worker, their sum and the step size; and
    every so many epochs one for each factor block that is saved, and one for all of them.
    """
    n_visits, moves = shape.rows * shape.cols, count_moves(shape, inputs.workers, inputs.threads)
    rests = shape.cols - 1 if shape.cols > shape.rows else 0
    saved = -(-(shape.rows + shape.cols + 1) // inputs.save_every)
    return n_visits + moves + rests + min(inputs.workers, *shape) + 2 + saved


def describe_work(inputs: Inputs, shape: Shape) -> Work:
    """Return what the tasks do."""
    rates, size = inputs.rates, block_bytes(inputs, shape)
    rows, cols = factor_bytes(inputs, shape)
    missed = miss_share(inputs.cache / (most_rows(inputs, shape) * shape.cols * size))
    return Work(
        shape,
        kernel=inputs.n_ratings / (shape.rows * shape.cols) / rates.kernel,
        copy=(rows + cols) / rates.copy,
        disk=missed * size / rates.disk,
        column_bytes=cols,
        overhead=rates.task,
        spread=SPREAD,
    )


def describe_cluster(workers: int, threads: int, network: float, scheduler: float) -> Cluster:
    """Return what runs the tasks; `network` is in bytes per second, `scheduler` in tasks per second."""
    return Cluster(
        workers, threads, network, (1 - SUBMIT_SHARE) / scheduler, SUBMIT_SHARE / scheduler, HANDLING_SECONDS
    )


def predict(inputs: Inputs, shape: Shape, max_visits: int = 20_000) -> Simulated:
    """Return what an epoch takes in the mean: simulate a generation, and add checkpoints and what comes in between."""
    work = describe_work(inputs, shape)
    cluster = describe_cluster(inputs.workers, inputs.threads, inputs.rates.network, inputs.rates.scheduler)
    n_epochs = generation_epochs(shape)
    found = simulate(work, cluster, n_epochs=n_epochs, max_visits=max_visits)
    n_saved, pair = most_rows(inputs, shape), sum(factor_bytes(inputs, shape))
    disk = n_saved * pair / inputs.rates.disk / inputs.save_every
    at_once = min(inputs.threads, n_saved)
    scheduler = 2 * n_saved * inputs.rates.task / at_once / inputs.save_every + GENERATION_SECONDS / n_epochs
    split = found.split._replace(disk=found.split.disk + disk, scheduler=found.split.scheduler + scheduler)
    return found._replace(seconds=found.seconds + disk + scheduler, split=split)


def lower_bound(inputs: Inputs, shape: Shape) -> float:
    """Return the seconds that an epoch takes if its busiest part never waits for another."""
    work = describe_work(inputs, shape)
    cluster = describe_cluster(inputs.workers, inputs.threads, inputs.rates.network, inputs.rates.scheduler)
    visit = work.kernel + work.copy + work.disk + work.overhead
    hop = 2 * cluster.handling_seconds + cluster.scheduler_seconds + cluster.scheduler_interval / 2
    n_visits, size = shape.rows * shape.cols, max(shape)
    at_once = min(inputs.slots, *shape)
    return max(
        n_visits * visit / at_once,
        size * (visit + hop) + count_moves(shape, inputs.workers, inputs.threads) / shape.cols * hop,
        tasks(inputs, shape) / inputs.rates.scheduler,
        shape.cols * work.column_bytes / cluster.network if inputs.workers > 1 else 0.0,
        n_visits / inputs.workers * work.disk,
    )


def choose_shape(inputs: Inputs) -> Shape:
    """Return the grid that is given, or else one that fits and takes about the least time.

    Of grids that are about as fast, one with two blocks or more for every thread is taken, as a thread then has
    something to do while another is late for whatever reason; and of those the one with the fewest tasks.

    Raises
    ------
    MemoryBudgetError
        If it does not fit in the memory of a worker, or none does.
    """
    shapes = [inputs.shape] if inputs.shape else list(_shapes(inputs))
    fitting = [shape for shape in shapes if worker_bytes(inputs, shape).total <= inputs.memory]
    if len(fitting) < 2:
        _check(inputs, min(fitting or shapes, key=lambda shape: worker_bytes(inputs, shape).total))
        return fitting[0]
    best = sorted(fitting, key=lambda shape: lower_bound(inputs, shape))[:CANDIDATES]
    best += [shape for shape in (full_shape(inputs),) if shape in fitting and shape not in best]
    seconds = {shape: predict(inputs, shape, CANDIDATE_VISITS).seconds for shape in best}
    close = [shape for shape in best if seconds[shape] <= CLOSE * min(seconds.values())]
    return min(close, key=lambda shape: (min(shape) < 2 * inputs.slots, tasks(inputs, shape)))


def full_shape(inputs: Inputs) -> Shape:
    """Return the grid with two blocks for every thread, as far as there are enough users and items."""
    return Shape(min(2 * inputs.slots, inputs.n_users), min(2 * inputs.slots, inputs.n_items))


def _shapes(inputs: Inputs) -> Iterator[Shape]:
    """Yield grids of as many row blocks, and column blocks, as there are slots, times or over a power of two."""
    sizes = [inputs.slots]
    while sizes[-1] < MAX_BLOCKS:
        sizes.append(2 * sizes[-1])
    while sizes[0] > 1:
        sizes.insert(0, sizes[0] // 2)
    found = set()
    for rows, cols in itertools.product(sizes, repeat=2):
        shape = Shape(min(rows, inputs.n_users, MAX_BLOCKS), min(cols, inputs.n_items, MAX_BLOCKS))
        if rows <= 2 * cols and cols <= 2 * rows and shape not in found:
            found.add(shape)
            yield shape


def _check(inputs: Inputs, shape: Shape) -> None:
    """Refuse a grid that does not fit."""
    needed = worker_bytes(inputs, shape)
    if needed.total > inputs.memory:
        largest = max(needed._fields, key=lambda name: getattr(needed, name))
        raise MemoryBudgetError(
            f"a worker needs {needed.total:,} bytes at rank {inputs.rank} on a grid of {shape.rows} × {shape.cols} "
            f"blocks, of which {getattr(needed, largest):,} for {largest}, but its memory is {inputs.memory:,}; "
            f"take more workers, more memory, or a lower rank{_without_a_cluster(inputs)}"
        )


def _alone(inputs: Inputs, shape: Shape, limit: int) -> dict[str, TrainingBytes]:
    """Return what one process takes without a cluster, in either way; its cache has what is left of `limit`."""
    n_bytes = shape.rows * shape.cols * block_bytes(inputs, shape)
    sizes = Sizes.expected(inputs.n_users, inputs.n_items, inputs.rank, shape, inputs.n_ratings, n_bytes)
    return both_ways(sizes, inputs.threads, limit)


def _without_a_cluster(inputs: Inputs) -> str:
    """Return, as a way out, in how much memory one process trains, if that is what a worker has."""
    coarse = Shape(min(2 * inputs.threads, inputs.n_users), min(2 * inputs.threads, inputs.n_items))
    for shape in finer_shapes(coarse, inputs.n_users):
        least = min(_alone(inputs, shape, 0).values(), key=lambda needs: needs.total)
        if least.total <= inputs.memory:
            return (
                f"; or take no cluster: one process with --threads {inputs.threads} and a grid of {shape.rows} × "
                f"{shape.cols} trains in {format_bytes(least.total)}, with ratings and user factors on disk"
            )
    return ""


def _changes(inputs: Inputs, shape: Shape, before: float) -> Iterator[Change]:
    """Yield what would be different if one thing were; an epoch takes `before` seconds as it is."""
    for what, changed in _variants(inputs, shape):
        try:
            other = choose_shape(changed)
        except MemoryBudgetError:
            yield Change(what, None, None, None)
            continue
        seconds = predict(changed, other).seconds
        yield Change(what, other, seconds, seconds / before)


def _variants(inputs: Inputs, shape: Shape) -> Iterator[tuple[str, Inputs]]:
    yield "twice the workers", replace(inputs, workers=2 * inputs.workers)
    if inputs.threads > 1:
        yield "half the threads a worker", replace(inputs, threads=inputs.threads // 2)
    if inputs.rank > 1:
        yield "half the rank", replace(_with_rates(inputs, kernel=HALF_RANK), rank=inputs.rank // 2)
    yield "a kernel twice as fast", _with_rates(inputs, kernel=2)
    yield "copies twice as fast", _with_rates(inputs, copy=2)
    yield "a disk ten times as fast", _with_rates(inputs, disk=10)
    if inputs.workers > 1:
        yield "a network ten times as fast", _with_rates(inputs, network=10)
    yield "a scheduler twice as fast", _with_rates(inputs, scheduler=2)
    coarser, finer = Shape(max(1, shape.rows // 2), max(1, shape.cols // 2)), Shape(2 * shape.rows, 2 * shape.cols)
    if coarser != shape:
        yield f"a grid of {coarser.rows} × {coarser.cols}", replace(inputs, shape=coarser)
    if finer.rows <= min(MAX_BLOCKS, inputs.n_users) and finer.cols <= min(MAX_BLOCKS, inputs.n_items):
        yield f"a grid of {finer.rows} × {finer.cols}", replace(inputs, shape=finer)
