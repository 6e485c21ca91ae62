"""What is to be trained on what, and a grid -> bytes of factor blocks, of blocks of ratings, and of a worker.

Pure: no files, no Dask.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from distmf.grid import Shape, bytes_per_line, offset_dtype, tile_shape
from distmf.kernel import GROUP_SIZES
from distmf.simulation import owners

LIBRARIES = 400 << 20  # of a worker process: Python, Arrow, Dask, the compiler and what it made
LARGEST_BLOCK = 1.2  # ratings of the largest block over the mean: blocks are balanced by a random permutation


class Rates(NamedTuple):
    """How fast the parts are.

    Attributes
    ----------
    kernel : float
        Updates per second of a thread, while the other threads of its machine are at work too.
    copy : float
        Bytes per second at which a thread copies factors.
    disk : float
        Bytes per second that a worker reads, or writes, where the blocks lie.
    network : float
        Bytes per second into and out of each worker.
    scheduler : float
        Tasks per second of client and scheduler, from the graph to the last result.
    task : float
        Seconds of a core that a worker takes for a task besides reading, copying and the kernel: of the task's thread
        and of the threads that talk to the others, which share the cores where there is a kernel on each of them.
    """

    kernel: float
    copy: float
    disk: float
    network: float
    scheduler: float
    task: float


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is to be planned.

    Attributes
    ----------
    n_ratings, n_users, n_items, rank : int
        The ratings, and the number of latent factors.
    workers, threads, memory : int
        Worker processes; threads and bytes of each.
    rates : Rates
        How fast they are.
    cache : int
        Bytes of blocks that a worker keeps in memory.
    value_bytes : int
        Of a rating on disk: 1 if there are at most 256 distinct ones, else 2; 4 where steps of 16 bits are too coarse.
    save_every : int
        Epochs from one checkpoint to the next.
    shape : Shape or None
        Of the grid, if it is not to be chosen.
    """

    n_ratings: int
    n_users: int
    n_items: int
    rank: int
    workers: int
    threads: int
    memory: int
    rates: Rates
    cache: int = 1 << 30
    value_bytes: int = 1
    save_every: int = 1
    shape: Shape | None = None

    @property
    def slots(self) -> int:
        """Threads of all workers."""
        return self.workers * self.threads


class WorkerBytes(NamedTuple):
    """Memory of the fullest worker, in bytes.

    Attributes
    ----------
    factors : int
        P_i and Q_j of its row blocks, each with the column block that visited last.
    copies : int
        Of P_i and Q_j that its tasks at work write to, and as many that others still have to fetch.
    cache : int
        Blocks of ratings kept from epoch to epoch.
    reading : int
        Blocks of ratings of its tasks at work, beside the cache.
    libraries : int
        Python and what it imports.
    """

    factors: int
    copies: int
    cache: int
    reading: int
    libraries: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def factor_bytes(inputs: Inputs, shape: Shape) -> tuple[int, int]:
    """Return the bytes of the factors and biases of a row block and of a column block."""
    line = bytes_per_line(inputs.rank)
    return line * -(-inputs.n_users // shape.rows), line * -(-inputs.n_items // shape.cols)


def block_bytes(inputs: Inputs, shape: Shape) -> int:
    """Return the bytes of a mean block on disk: a column and a value for each rating, a row for each group.

    And two tables of tiles: of the ratings to train on, and of those held out.
    """
    height, width = tile_shape(inputs.n_users, inputs.n_items, inputs.n_ratings)
    n_rows, n_cols = -(-inputs.n_users // shape.rows), -(-inputs.n_items // shape.cols)
    in_a_row = inputs.n_ratings / inputs.n_users * min(width, n_cols) / inputs.n_items  # ratings, in a tile
    # A quarter of the ratings, and what is left over of each row: 0, 1, 1 or 2 groups instead of as many quarters.
    groups = min(1.0, 0.25 + 0.625 / in_a_row)
    per_rating = groups * offset_dtype(height).itemsize + offset_dtype(width).itemsize + inputs.value_bytes
    n_tiles = -(-n_rows // height) * -(-n_cols // width)
    return int(per_rating * -(-inputs.n_ratings // (shape.rows * shape.cols))) + 2 * 4 * len(GROUP_SIZES) * n_tiles


def worker_bytes(inputs: Inputs, shape: Shape) -> WorkerBytes:
    """Return the memory of the worker that owns the most row blocks."""
    n_rows = most_rows(inputs, shape)
    at_work = min(inputs.threads, n_rows, shape.cols)
    pair = sum(factor_bytes(inputs, shape))
    largest = int(LARGEST_BLOCK * block_bytes(inputs, shape))
    return WorkerBytes(
        n_rows * pair,
        2 * at_work * pair,
        min(inputs.cache, n_rows * shape.cols * largest),
        at_work * largest,
        LIBRARIES,
    )


def most_rows(inputs: Inputs, shape: Shape) -> int:
    """Return the row blocks of the worker that owns the most."""
    own = owners(shape.rows, inputs.workers, inputs.threads)
    return max(len(list(rows)) for _, rows in itertools.groupby(own))


def miss_share(cached: float) -> float:
    """Return the share of reads that go to the disk when a worker's cache holds this share of its blocks.

    Each epoch visits the blocks of a row in a random order of its own, and the cache drops the block that was not asked
    for the longest: a block at position x of one epoch and y of the next is still there if x (1 − y) ≥ 1 − `cached`.
    """
    if cached >= 1:
        return 0.0
    return (1 - cached) * (1 - math.log(1 - cached))
