"""The tasks of a training: plain functions of factor blocks, costs and step sizes. They copy what they change.

A column block carries the cost of the epoch so far; a row block that was visited carries the column block it met. Where
the posterior is drawn from, each block moves once an epoch besides, after the last of its visits.
"""

import functools
import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distmf import factors, kernel, langevin
from distmf.blocks import PARTS, Blocks, Part
from distmf.factors import Source
from distmf.grid import BlockKey
from distmf.kernel import FactorBlock, Hyperparameters
from distmf.langevin import SIDES, ChainState, Floats, LangevinRule
from distmf.stepsize import StepRule, StepState
from distmf.store import Folder


class Cost(NamedTuple):
    """What is added up in an epoch.

    Attributes
    ----------
    train, holdout : float
        Costs, summed or as a mean: squared errors in units of the ratings' scale squared, or those of another loss.
    spread : float64, shape (2, 2, rank + 3), or None
        `langevin.end_epoch` of the users and the items, where the posterior is drawn from.
    """

    train: float
    holdout: float
    spread: Floats | None = None

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        spread = (
            other.spread if self.spread is None else self.spread if other.spread is None else self.spread + other.spread
        )
        return Cost(self.train + other.train, self.holdout + other.holdout, spread)


class Visit(NamedTuple):
    """When and where a block was visited: `seconds` in the kernel, from `begin` (seconds since 1970) on."""

    row: int
    col: int
    begin: float
    seconds: float
    process: str
    thread: int


class Column(NamedTuple):
    """A column block on its way.

    Attributes
    ----------
    side : FactorBlock
        Q_j and b_i.
    cost, visits : Cost, tuple of Visit
        Of this epoch so far.
    is_own : bool
        Whether the task that gets it is the only one that ever will, and may change it.
    """

    side: FactorBlock
    cost: Cost
    visits: tuple[Visit, ...]
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
    """An epoch that all columns have passed: its mean cost, and its visits."""

    cost: Cost
    visits: tuple[Visit, ...]


class Training(NamedTuple):
    """What stays the same from the first epoch to the last.

    Attributes
    ----------
    blocks : Blocks
        The ratings.
    hyper : Hyperparameters
        What the kernel needs.
    rule : StepRule or LangevinRule
        How the step size goes on; or how a chain of draws does.
    shares : pair of float
        Shares of the step size that all users, and all items, take; see `stepsize.share_of_step`.
    is_warm : bool
        Whether it goes on from a model, and each factor block has shares of its own.
    rank, seed : int
        Number of latent factors; of all that is random.
    folder : Folder or None
        Where factor blocks are saved; None to keep them in memory, which only one process can.
    rows_on_disk : bool
        Whether row blocks lie in the folder, and each is in memory only from its first visit in an epoch to its last.
    """

    blocks: Blocks
    hyper: Hyperparameters
    rule: StepRule | LangevinRule
    rank: int
    seed: int
    folder: Folder | None = None
    rows_on_disk: bool = False
    shares: tuple[float, float] = (1.0, 1.0)
    is_warm: bool = False

    @property
    def chain_rule(self) -> LangevinRule | None:
        """The rule, if the posterior is drawn from."""
        return self.rule if isinstance(self.rule, LangevinRule) else None

    def step_size(self, state: Any) -> float:
        """Return η of the epoch that a state of the rule is of."""
        return self.rule.step_size(state)

    @property
    def shape_of_shares(self) -> tuple[int, ...] | None:
        """Shape of what the kernel needs of one row besides factors and bias, None if it takes all of the step size."""
        if self.chain_rule is not None:
            return 1, factors.LINE_FLOATS
        return (1,) if self.is_warm or self.shares != (1.0, 1.0) else None


def load_rows(source: Source, training: Training) -> Visited:
    """Return a row block before its first visit."""
    return Visited(factors.fetch(source, training.folder, training.rank), None)


def load_column(source: Source, training: Training) -> Column:
    """Return a column block before its first visit."""
    return Column(factors.fetch(source, training.folder, training.rank), Cost(0.0, 0.0), ())


def visit(
    previous: Visited,
    column: Column | Visited,
    step: StepState | ChainState,
    training: Training,
    block: BlockKey,
    epoch: int,
    is_fresh: bool,
    is_last: tuple[bool, bool],
    upcoming: BlockKey | None,
) -> Visited:
    """Train on one block and return the updated row block and column block; the ones that came in stay as they are.

    A column block that `is_fresh` has not been visited in this epoch before. For the row block and for the column
    block, `is_last` says whether it is not visited in this epoch again.
    """
    if upcoming is not None:
        training.blocks.prefetch(upcoming)
    column = column_of(column)
    rows = factors.thawed(previous.rows, is_own=previous.is_own)
    cols = factors.thawed(column.side, is_own=column.is_own)
    order = int(np.random.default_rng([training.seed, epoch, *block]).integers(2**63))
    ratings = training.blocks.read(block, "train")
    begin, start = time.time(), time.perf_counter()
    step_size = training.step_size(step)
    train = kernel.train_block(
        ratings, rows, cols, training.hyper, step_size, order, _shares(training, step, rows, cols)
    )
    holdout = _measure(training, block, "holdout", *_predicting(training, step, rows, cols))
    cost = Cost(train, holdout, _move(training, step, epoch, block, (rows, cols), is_last))
    this = Visit(*block, begin, time.perf_counter() - start, _process(), threading.get_native_id())
    total, visits = (cost, (this,)) if is_fresh else (column.cost + cost, (*column.visits, this))
    return Visited(factors.frozen(rows), Column(factors.frozen(cols), total, visits))


@functools.cache
def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _move(
    training: Training,
    state: Any,
    epoch: int,
    block: BlockKey,
    sides: tuple[FactorBlock, FactorBlock],
    is_last: tuple[bool, bool],
) -> Floats | None:
    """Draw the blocks of a chain, in place, that are through with this epoch, and return their spread."""
    rule = training.chain_rule
    if rule is None:
        return None
    spread = np.zeros((2, 2, training.rank + 3))
    for n, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
        if is_last[n]:
            seed = int(np.random.default_rng([training.seed, epoch, n, block[n], 0]).integers(2**63))
            spread[n] = langevin.end_epoch(side, name, state, rule, seed)
    return spread


def _predicting(
    training: Training, state: Any, rows: FactorBlock, cols: FactorBlock
) -> tuple[FactorBlock, FactorBlock]:
    """Return what predicts: the blocks as they are; of a chain after burn-in, the means of its draws so far."""
    rule = training.chain_rule
    if rule is None or rows.mean is None or cols.mean is None or state.epoch <= rule.burn_in:
        return rows, cols
    return rows.mean, cols.mean


def _shares(training: Training, state: Any, rows: FactorBlock, cols: FactorBlock) -> kernel.Shares | None:
    """Return the shares of the step size that rows and columns take, or their lines; None if all take all of it."""
    rule = training.chain_rule
    if rule is not None:
        assert rows.lines is not None
        assert cols.lines is not None
        for name, side in zip(SIDES, (rows, cols), strict=True):
            rule.share(side, name, state)
        return rows.lines, cols.lines
    if rows.shares is not None and cols.shares is not None:
        return rows.shares, cols.shares
    if training.shares == (1.0, 1.0):
        return None
    of_rows, of_cols = (
        np.full(len(side.biases), share, dtype=np.float32)
        for side, share in zip((rows, cols), training.shares, strict=True)
    )
    return of_rows, of_cols


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


def costs_of(owned: Sequence[int], *columns: Visited | Column) -> list[tuple[int, Cost, tuple[Visit, ...]]]:
    """Return column number, cost and visits of some columns at the end of an epoch."""
    pairs = zip(owned, map(column_of, columns), strict=True)
    return [(col, column.cost, column.visits) for col, column in pairs]


def total_cost(training: Training, *parts: list[tuple[int, Cost, tuple[Visit, ...]]]) -> Passed:
    """Return the means of the squared errors seen on the way through an epoch, added up in the order of the columns."""
    columns = sorted(column for part in parts for column in part)
    visits = tuple(visit for _, _, visits in columns for visit in visits)
    return Passed(mean_cost(training, *[cost for _, cost, _ in columns]), visits)


def next_step(step: Any, passed: Passed | None, training: Training, epoch: int) -> StepState | ChainState:
    """Return the step size of the epoch after `step`'s, which was `epoch`, given the mean cost of the epoch before."""
    cost = None if passed is None else passed.cost
    if isinstance(training.rule, StepRule):
        return training.rule.next(step, cost and cost.train)
    if cost is None or cost.spread is None:  # the first epoch of a chain
        first: ChainState = step._replace(epoch=step.epoch + 1)
        return first
    return training.rule.next(step, cost.train, cost.spread, epoch)


def measure(rows: Visited, column: Column, training: Training, block: BlockKey) -> Cost:
    """Return the squared errors of one block."""
    train, holdout = (_measure(training, block, part, rows.rows, column.side) for part in PARTS)
    return Cost(train, holdout)


def _measure(training: Training, block: BlockKey, part: Part, rows: FactorBlock, cols: FactorBlock) -> float:
    if part == "holdout" and not training.blocks.entries[block].n_holdout:
        return 0.0
    ratings = training.blocks.read(block, part)
    return kernel.measure_block(ratings, rows, cols, training.hyper)


def mean_cost(training: Training, *costs: Cost) -> Cost:
    """Return the weighted means over all ratings to train on and all held out, given sums over parts of them."""
    total = sum(costs, Cost(0.0, 0.0))
    train_weight, holdout_weight = training.blocks.train_weight, training.blocks.holdout_weight
    holdout = total.holdout / holdout_weight if holdout_weight else math.nan
    return Cost(total.train / train_weight, holdout, total.spread)
