"""The tasks of a training: plain functions of factor blocks, costs and step sizes. They copy what they change.

A column block carries the cost of the epoch so far; a row block that was visited carries the column block it met.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distmf import factors, kernel
from distmf.blocks import PARTS, Blocks, Part
from distmf.factors import Source
from distmf.grid import BlockKey
from distmf.kernel import FactorBlock, Hyperparameters
from distmf.stepsize import StepRule, StepState
from distmf.store import Folder


class Cost(NamedTuple):
    """Squared errors, summed or as a mean, in units of the ratings' scale squared."""

    train: float
    holdout: float

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.train + other.train, self.holdout + other.holdout)


class Column(NamedTuple):
    """A column block on its way.

    Attributes
    ----------
    side : FactorBlock
        Q_j and b_i.
    cost, seconds : Cost, float
        Of this epoch so far: squared errors, and time in kernels.
    is_own : bool
        Whether the task that gets it is the only one that ever will, and may change it.
    """

    side: FactorBlock
    cost: Cost
    seconds: float
    is_own: bool = False


class Visited(NamedTuple):
    """A row block, and the column block that it was last visited with.

    Attributes
    ----------
    rows : FactorBlock
        P_i and b_u.
    column : Column or None
        None before the first visit.
    is_own : bool
        Whether the task that gets the row block is the only one that ever will, and may change it.
    """

    rows: FactorBlock
    column: Column | None
    is_own: bool = False


class Passed(NamedTuple):
    """An epoch that all columns have passed: its mean cost, and the seconds that were spent in kernels."""

    cost: Cost
    seconds: float


class Training(NamedTuple):
    """What stays the same from the first epoch to the last.

    Attributes
    ----------
    blocks : Blocks
        The ratings.
    hyper : Hyperparameters
        What the kernel needs.
    rule : StepRule
        How the step size goes on.
    rank, seed : int
        Number of latent factors; of all that is random.
    folder : Folder or None
        Where factor blocks are saved; None to keep them in memory, which only one process can.
    rows_on_disk : bool
        Whether row blocks lie in the folder, and each is in memory only from its first visit in an epoch to its last.
    """

    blocks: Blocks
    hyper: Hyperparameters
    rule: StepRule
    rank: int
    seed: int
    folder: Folder | None = None
    rows_on_disk: bool = False


def load_rows(source: Source, training: Training) -> Visited:
    """Return a row block before its first visit."""
    return Visited(factors.fetch(source, training.folder, training.rank), None)


def load_column(source: Source, training: Training) -> Column:
    """Return a column block before its first visit."""
    return Column(factors.fetch(source, training.folder, training.rank), Cost(0.0, 0.0), 0.0)


def visit(
    previous: Visited,
    column: Column | Visited,
    step: StepState,
    training: Training,
    block: BlockKey,
    epoch: int,
    is_fresh: bool,
    upcoming: BlockKey | None,
) -> Visited:
    """Train on one block and return the updated row block and column block; the ones that came in stay as they are."""
    if upcoming is not None:
        training.blocks.prefetch(upcoming)
    column = column_of(column)
    rows = factors.thawed(previous.rows, is_own=previous.is_own)
    cols = factors.thawed(column.side, is_own=column.is_own)
    order = int(np.random.default_rng([training.seed, epoch, *block]).integers(2**63))
    ratings = training.blocks.read(block, "train")
    start = time.perf_counter()
    step_size = training.rule.step_size(step)
    train = kernel.train_block(ratings, rows, cols, training.hyper, step_size, order)
    cost = Cost(train, _measure(training, block, "holdout", rows, cols))
    seconds = time.perf_counter() - start
    if not is_fresh:
        cost, seconds = column.cost + cost, column.seconds + seconds
    return Visited(factors.frozen(rows), Column(factors.frozen(cols), cost, seconds))


def given_up(value: Visited | Column) -> Visited | Column:
    """Return the row block or the column block of an earlier visit for a visit that may change it in place."""
    return value._replace(is_own=True)


def column_of(visited: Visited | Column) -> Column:
    """Return the column block alone, so that nothing else moves on to the next row block."""
    column = visited.column if isinstance(visited, Visited) else visited
    assert column is not None
    return column


def put_down(value: Visited | Column, is_rows: bool, training: Training, file: str, keep: bool) -> Source:
    """Return a row block or a column block as the next generation takes it, saved if there is a folder for it."""
    side = value.rows if is_rows and isinstance(value, Visited) else column_of(value).side
    return factors.save(side, training.folder, file, training.rank, keep=keep) if training.folder else side


def snapshot(n_row_blocks: int, *sources: Source) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Return the sources of the row blocks and of the column blocks, once all are there."""
    return sources[:n_row_blocks], sources[n_row_blocks:]


def costs_of(owned: Sequence[int], *columns: Visited | Column) -> list[tuple[int, Cost, float]]:
    """Return column number, cost and seconds of some columns at the end of an epoch."""
    pairs = zip(owned, map(column_of, columns), strict=True)
    return [(col, column.cost, column.seconds) for col, column in pairs]


def total_cost(training: Training, *parts: list[tuple[int, Cost, float]]) -> Passed:
    """Return the means of the squared errors seen on the way through an epoch, added up in the order of the columns."""
    columns = sorted(column for part in parts for column in part)
    return Passed(mean_cost(training, *[cost for _, cost, _ in columns]), sum(seconds for _, _, seconds in columns))


def next_step(step: StepState, passed: Passed | None, training: Training) -> StepState:
    """Return the step size of the epoch after `step`'s, given the mean cost of the epoch before it."""
    return training.rule.next(step, None if passed is None else passed.cost.train)


def measure(rows: Visited, column: Column, training: Training, block: BlockKey) -> Cost:
    """Return the squared errors of one block."""
    return Cost(*(_measure(training, block, part, rows.rows, column.side) for part in PARTS))


def _measure(training: Training, block: BlockKey, part: Part, rows: FactorBlock, cols: FactorBlock) -> float:
    if part == "holdout" and not training.blocks.entries[block].n_holdout:
        return 0.0
    ratings = training.blocks.read(block, part)
    return kernel.measure_block(ratings, rows, cols, training.hyper)


def mean_cost(training: Training, *costs: Cost) -> Cost:
    """Return the means over all ratings to train on and all held out, given sums over parts of them."""
    train, holdout = (sum(part) for part in zip(*costs, strict=True))
    n_holdout = training.blocks.n_holdout
    return Cost(train / training.blocks.n_ratings, holdout / n_holdout if n_holdout else math.nan)
