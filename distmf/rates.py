"""The machine at hand -> how fast its kernel, its memory and its disk are. A few seconds of work."""

import functools
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import Task

from distmf import kernel
from distmf.blocks import BlockEntry, Blocks, Layout
from distmf.buffers import aligned_empty
from distmf.encoding import Encoding
from distmf.engine import new_token
from distmf.factors import First, frozen, thawed
from distmf.graph import Generation, ReadAhead, State, build_generation
from distmf.grid import BlockKey, Shape, bytes_per_line, tile_shape
from distmf.kernel import FactorBlock, Hyperparameters, Ratings, padded_rank
from distmf.moments import Moments
from distmf.records import group
from distmf.stepsize import StepRule
from distmf.store import Folder
from distmf.tasks import Column, Training, Visit, Visited, column_of, visit

MAX_RATINGS = 1_000_000  # of a synthetic block
MAX_FACTOR_BYTES = 128 << 20  # of all factors
SECONDS = 0.5  # of passes over it
SHIFT = 50  # line number k by activity weighs (k + 50) to the power of …
USER_POWER, ITEM_POWER = -0.75, -1.0
N_CODES = 10
HYPER = Hyperparameters(N_CODES / 2, N_CODES / 4, (0.05, 0.05), (0.02, 0.02))
FILE_BYTES = 64 << 20
READ_BYTES = 4 << 20
SCHEDULER_SHAPE, SCHEDULER_EPOCHS = Shape(16, 16), 4
PAUSE_SHAPE, PAUSE_SECONDS = Shape(8, 8), 0.01  # so long apart that messages do not wait for each other


class Speed(NamedTuple):
    """What a thread did per second.

    Attributes
    ----------
    kernel : float
        Updates.
    copy : float
        Bytes of factors that are copied.
    """

    kernel: float
    copy: float


class DiskSpeed(NamedTuple):
    """Bytes per second of reading blocks and checking their sums.

    Attributes
    ----------
    rate : float
        Bytes per second.
    from_disk : bool
        Whether the page cache was really empty; else this is the speed of memory.
    """

    rate: float
    from_disk: bool


class TaskSpeed(NamedTuple):
    """What tasks take besides their work.

    Attributes
    ----------
    scheduler : float
        Tasks per second of client and scheduler.
    task : float
        Seconds of a core of the worker, for each.
    """

    scheduler: float
    task: float


def measure_kernel(
    n_ratings: int, n_users: int, n_items: int, rank: int, shape: Shape, workers: int, threads: int
) -> Speed:
    """Measure copying factors and training on blocks such as a grid of that shape has.

    As many threads are at work at once as this machine has cores, or as the workers have threads if those are fewer:
    they share the memory of the machine.

    Parameters
    ----------
    n_ratings, n_users, n_items, rank : int
        What is to be trained; the block has the density, the tiles and the power laws of such ratings.
    shape : Shape
        Of the grid; of a block that is large only a part is made.
    workers, threads : int
        Worker processes, and threads of each.
    """
    ratings, n_rows, n_cols = synthetic_block(n_ratings, n_users, n_items, rank, shape)
    kernel.compile_for(ratings, rank, HYPER)
    at_once = min(workers * threads, len(os.sched_getaffinity(0)))
    pair_bytes = (n_rows + n_cols) * bytes_per_line(rank)
    n_pairs = max(1, min(-(-shape.rows // (workers * threads)), MAX_FACTOR_BYTES // (at_once * pair_bytes)))
    rng = np.random.default_rng(0)
    pairs = [(_factors(rng, n_rows, rank), _factors(rng, n_cols, rank)) for _ in range(at_once * n_pairs)]
    with ThreadPoolExecutor(at_once, thread_name_prefix="distmf") as pool:
        parts = pool.map(lambda n: _visits(ratings, pairs[n::at_once]), range(at_once))
        found = [seconds for part in parts for seconds in part]
    copying, training = (median(seconds) for seconds in zip(*found, strict=True))
    return Speed(len(ratings.values) / training, pair_bytes / copying)


def synthetic_block(n_ratings: int, n_users: int, n_items: int, rank: int, shape: Shape) -> tuple[Ratings, int, int]:
    """Return ratings such as those of a block, in tiles, and its numbers of rows and columns."""
    density, sides = n_ratings / (n_users * n_items), tile_shape(n_users, n_items, n_ratings)
    most_lines = MAX_FACTOR_BYTES // bytes_per_line(rank)
    n_cols = min(-(-n_items // shape.cols), most_lines // 2)
    n_rows = min(-(-n_users // shape.rows), most_lines - n_cols, max(sides[0], int(MAX_RATINGS / (density * n_cols))))
    n = max(1, min(MAX_RATINGS, round(density * n_rows * n_cols)))
    rng = np.random.default_rng(0)
    rows, cols = (
        _draw(rng, n, n_lines, n_all, power)
        for n_lines, n_all, power in ((n_rows, n_users, USER_POWER), (n_cols, n_items, ITEM_POWER))
    )
    n_tile_cols = -(-n_cols // sides[1])
    tiles = rows // sides[0] * n_tile_cols + cols // sides[1]
    cells = (tiles * sides[0] + rows % sides[0]) * sides[1] + cols % sides[1]
    values, encoding = rng.integers(0, N_CODES, n, dtype=np.uint8), Encoding(tuple(map(float, range(N_CODES))))
    arrays = group(np.sort(cells).astype(np.uint64), values, sides, -(-n_rows // sides[0]) * n_tile_cols)
    return Ratings(*arrays, encoding, sides, n_tile_cols), n_rows, n_cols


def _draw(rng: np.random.Generator, n: int, n_lines: int, n_all: int, power: float) -> npt.NDArray[np.int64]:
    """Return n lines of a block by their activity, as numbered by a hash: some of all lines, at random."""
    weights = np.cumsum((rng.integers(n_all, size=n_lines) + float(SHIFT)) ** power)
    lines: npt.NDArray[np.int64] = np.searchsorted(weights, rng.random(n) * weights[-1])
    return np.minimum(lines, n_lines - 1)


def _factors(rng: np.random.Generator, n_lines: int, rank: int) -> FactorBlock:
    factors = aligned_empty(n_lines, padded_rank(rank))
    factors[:] = 0
    factors[:, :rank] = rng.standard_normal((n_lines, rank), dtype=np.float32) * np.float32(0.1)
    return FactorBlock(factors, np.zeros(n_lines, dtype=np.float32))


def _visits(ratings: Ratings, pairs: list[tuple[FactorBlock, FactorBlock]]) -> list[tuple[float, float]]:
    """Visit the block with one pair after the other, as tasks do; return the seconds of copying and of training."""
    found = list[tuple[float, float]]()
    start = time.perf_counter()
    while len(found) < 4 or time.perf_counter() - start < SECONDS:
        n = len(found) % len(pairs)
        began = time.perf_counter()
        rows, cols = (thawed(side) for side in pairs[n])
        copied = time.perf_counter()
        kernel.train_block(ratings, rows, cols, HYPER, 0.01, len(found))
        trained = time.perf_counter()
        pairs[n] = frozen(rows), frozen(cols)
        found.append((copied - began + time.perf_counter() - trained, trained - copied))
    return found[1:]  # the first finds a cold cache


def measure_disk(folder: str | None = None) -> DiskSpeed:
    """Measure reading a new file that the page cache was told to forget, and checking its sum.

    Parameters
    ----------
    folder : str, optional
        Where; by default the folder of temporary files.
    """
    piece = np.random.default_rng(0).bytes(READ_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="distmf-") as file:
        for _ in range(FILE_BYTES // READ_BYTES):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        from_disk = not _is_cached(file.fileno())
        start = time.perf_counter()
        with open(file.name, "rb", buffering=0) as reader:  # noqa: PTH123 (unbuffered)
            while data := reader.read(READ_BYTES):
                zlib.crc32(data)
        return DiskSpeed(FILE_BYTES / (time.perf_counter() - start), from_disk)


def _is_cached(descriptor: int) -> bool:
    """Return whether the middle of a file is in memory: a read that may not wait says so."""
    try:
        os.preadv(descriptor, [bytearray(4096)], FILE_BYTES // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        pass
    return True


def measure_scheduler() -> TaskSpeed:
    """Measure the processor time that tasks take: of client and scheduler, both in this process, and of the workers.

    The tasks are those of a training on nothing, on two worker processes of this machine. What limits a scheduler is
    how many it can hand out, one right after the other; a worker's come one by one, with a kernel in between.
    """
    from distmf.cluster import ClusterEngine, local_cluster  # noqa: PLC0415 (imports distributed, which takes a second)

    with local_cluster(2) as client, ClusterEngine(client) as engine:
        engine.everywhere(kernel.padded_rank, 1)  # all are there

        def of_workers() -> float:
            return float(sum(engine.everywhere(time.process_time).values()))

        def seconds_per_task(of: Callable[[], float], shape: Shape, pause: Callable[[], None] | None = None) -> float:
            generation = hollow_generation(shape, SCHEDULER_EPOCHS, engine.owners(shape.rows), pause)
            start = of()
            engine.run(generation.graph, generation.keys)
            return (of() - start) / len(generation.graph.tasks)

        rate = 1 / seconds_per_task(time.process_time, SCHEDULER_SHAPE)
        pause = functools.partial(time.sleep, PAUSE_SECONDS)
        return TaskSpeed(rate, seconds_per_task(of_workers, PAUSE_SHAPE, pause))


def hollow_generation(
    shape: Shape, n_epochs: int, owners: Sequence[Hashable], pause: Callable[[], None] | None = None
) -> Generation:
    """Return the graph of a training on a grid of that shape, whose tasks do nothing.

    Parameters
    ----------
    shape : Shape
        Of the grid.
    n_epochs : int
        Epochs.
    owners : sequence, shape (shape.rows,)
        Owner of each row block.
    pause : callable, optional
        Called instead of the kernel.
    """
    layout = Layout(tuple(range(shape.rows + 1)), tuple(range(shape.cols + 1)), (256, 256), Encoding())
    entries = {BlockKey(0, 0): BlockEntry(0, 0, 0, 1, 0, Moments(1, 0.0, 0.0), 0)}
    blocks = Blocks(Folder.at("memory://nothing"), layout, entries, (0.0, 0.0), {}, {})
    training = Training(blocks, Hyperparameters(0.0, 1.0), StepRule(1.0, 1.0), 1, 0)
    rows, cols = (tuple(First((0,), 1, 0.0, np.empty(0, dtype=np.int64)) for _ in range(n)) for n in shape)
    state = State(0, rows, cols, training.rule.first(), None)
    read_ahead = ReadAhead(owners, 1)  # of nothing: the tasks that would do it are replaced
    generation = build_generation(training, state, n_epochs, new_token(), owners, n_epochs, read_ahead)
    tasks = {
        key: Task(key, _visit_nothing, pause, *task.args) if isinstance(task, Task) and task.func is visit else task
        for key, task in generation.graph.tasks.items()
    }
    return generation._replace(graph=generation.graph._replace(tasks=tasks))


def _visit_nothing(
    pause: Callable[[], None] | None, previous: Visited, column: Column | Visited, *others: Any
) -> Visited:
    """Stand in for `tasks.visit`; the pauses are the visits of the column."""
    start, column = time.perf_counter(), column_of(column)
    if pause is not None:
        pause()
    visit = Visit(0, 0, 0.0, time.perf_counter() - start, "", 0)
    return Visited(previous.rows, column._replace(visits=(*column.visits, visit)))
