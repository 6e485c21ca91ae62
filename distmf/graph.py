"""Strata -> a Dask task graph of a few epochs, a *generation*; and the tasks in it.

Block (i, j) needs the latest P_i and the latest Q_j and nothing else, so there is no barrier: a block starts as soon as
both are there. Tasks are pure: they copy what they change, and may run twice.

    rows i ──▶ sgd(e, s, i) ──▶ sgd(e, s+1, i) ──▶ …       a row block stays with its chain
                  │
                  └─▶ column(e, s, i) ──▶ sgd(e, s+1, i±1)    only the column block moves on, with its cost so far

The cost of an epoch rides with the column blocks and is added up when they have passed all rows; a small task turns it
into the step size of the epoch after the next.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.typing import Key

from distmf import kernel
from distmf.blocks import PARTS, Blocks, Part
from distmf.grid import BlockKey
from distmf.kernel import FactorBlock, Hyperparameters
from distmf.schedule import strata
from distmf.stepsize import StepRule, StepState

FIRST_FACTORS_STD = 0.1


class Cost(NamedTuple):
    """Squared errors, summed or as a mean, in units of the ratings' scale squared."""

    train: float
    holdout: float

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.train + other.train, self.holdout + other.holdout)


class Column(NamedTuple):
    """A column block on its way, with the cost of this epoch so far."""

    side: FactorBlock
    cost: Cost


class Visited(NamedTuple):
    """A row block and the column block that it was last visited with, none before the first visit."""

    rows: FactorBlock
    column: Column | None


class Training(NamedTuple):
    """What stays the same from the first epoch to the last."""

    blocks: Blocks
    hyper: Hyperparameters
    rule: StepRule
    rank: int
    seed: int


class State(NamedTuple):
    """Where training stands between two epochs: all that the next generation starts from.

    Attributes
    ----------
    epoch : int
        Epochs done.
    rows : tuple of Visited
        Row blocks.
    cols : tuple of Column
        Column blocks.
    step : StepState
        Of the next epoch.
    cost : Cost or None
        Of the last epoch, which no step size has seen yet.
    """

    epoch: int
    rows: tuple[Visited, ...]
    cols: tuple[Column, ...]
    step: StepState
    cost: Cost | None


class Generation(NamedTuple):
    """A graph and the keys of its results; `rows`, `cols` and `step` are those of the next `State`."""

    tasks: dict[Key, Any]
    epochs: list[Key]
    steps: list[Key]
    rows: list[Key]
    cols: list[Key]


def first_state(training: Training) -> State:
    """Return the state before the first epoch: no biases; small random factors, zero if there is nothing to learn."""
    layout = training.blocks.layout
    rows = tuple(Visited(side, None) for side in _first_sides(training, "user", layout.row_cuts))
    cols = tuple(Column(side, Cost(0.0, 0.0)) for side in _first_sides(training, "item", layout.col_cuts))
    return State(0, rows, cols, training.rule.first(), None)


def _first_sides(training: Training, name: Literal["user", "item"], cuts: Sequence[int]) -> Iterator[FactorBlock]:
    counts = training.blocks.ids(name)["count"].to_numpy()
    std = np.float32(FIRST_FACTORS_STD if training.blocks.moments.std else 0)
    for n, (begin, end) in enumerate(itertools.pairwise(cuts)):
        rng = np.random.default_rng([training.seed, name == "item", n])
        factors = kernel.aligned_empty(end - begin, kernel.padded_rank(training.rank))
        factors[:, training.rank :] = 0
        factors[:, : training.rank] = rng.standard_normal((end - begin, training.rank), dtype=np.float32)
        factors *= std
        factors[counts[begin:end] == 0] = 0
        yield _frozen(FactorBlock(factors, np.zeros(end - begin, dtype=np.float32)))


def build_generation(training: Training, state: State, n_epochs: int, token: str) -> Generation:
    """Return the graph that trains `n_epochs` more epochs from `state`.

    Keys are unique to `token` and readable: ``("sgd-<token>", epoch, subepoch, row)``.
    """
    tasks: dict[Key, Any] = {}

    def put(name: str, *where: int, call: Any, args: Sequence[Any]) -> TaskRef:
        key: Key = (f"{name}-{token}", *where)
        tasks[key] = Task(key, call, *args)
        return TaskRef(key)

    def keep(name: str, *where: int, value: Any) -> TaskRef:
        key: Key = (f"{name}-{token}", *where)
        tasks[key] = DataNode(key, value)
        return TaskRef(key)

    constants = keep("training", value=training)
    rows = [keep("rows", n, value=value) for n, value in enumerate(state.rows)]
    cols = [keep("cols", n, value=value) for n, value in enumerate(state.cols)]
    steps = [keep("step", state.epoch, value=state.step)]
    epochs = [keep("epoch", state.epoch - 1, value=state.cost)]
    for epoch in range(state.epoch, state.epoch + n_epochs):
        fresh = set(range(len(cols)))  # columns that start this epoch's cost at zero
        for subepoch, stratum in enumerate(strata(training.blocks.shape, epoch, training.seed)):
            for block in stratum:
                where = epoch, subepoch, block.row
                args = [rows[block.row], cols[block.col], steps[-1], constants, block, epoch, block.col in fresh]
                rows[block.row] = put("sgd", *where, call=visit, args=args)
                cols[block.col] = put("column", *where, call=column_of, args=[rows[block.row]])
                fresh.discard(block.col)
        steps.append(put("step", epoch + 1, call=next_step, args=[steps[-1], epochs[-1], constants]))
        epochs.append(put("epoch", epoch, call=total_cost, args=[constants, *cols]))
    return Generation(tasks, *([ref.key for ref in refs] for refs in (epochs[1:], steps, rows, cols)))


def visit(
    previous: Visited, column: Column, step: StepState, training: Training, block: BlockKey, epoch: int, is_fresh: bool
) -> Visited:
    """Train on one block and return the updated row block and column block; the ones that came in stay as they are."""
    rows, cols = _thawed(previous.rows), _thawed(column.side)
    order = int(np.random.default_rng([training.seed, epoch, *block]).integers(2**63))
    ratings = training.blocks.read(block, "train")
    train = kernel.train_block(ratings, rows, cols, training.hyper, step.step_size, order)
    cost = Cost(train, _measure(training, block, "holdout", rows, cols))
    return Visited(_frozen(rows), Column(_frozen(cols), cost if is_fresh else column.cost + cost))


def column_of(visited: Visited) -> Column:
    """Return the column block alone, so that nothing else moves on to the next row block."""
    assert visited.column is not None
    return visited.column


def total_cost(training: Training, *columns: Column) -> Cost:
    """Return the means of the squared errors seen on the way through an epoch."""
    return mean_cost(training, *[column.cost for column in columns])


def next_step(step: StepState, cost: Cost | None, training: Training) -> StepState:
    """Return the step size of the epoch after `step`'s, given the mean cost of the epoch before it."""
    return training.rule.next(step, None if cost is None else cost.train)


def build_measurement(training: Training, state: State, token: str) -> tuple[dict[Key, Any], Key]:
    """Return the graph, and the key of its result, that computes the exact cost at fixed factors."""
    tasks: dict[Key, Any] = {}
    for block in sorted(training.blocks.entries):
        key = (f"measure-{token}", *block)
        tasks[key] = Task(key, measure, training, block, state.rows[block.row].rows, state.cols[block.col].side)
    result = (f"measured-{token}",)
    tasks[result] = Task(result, mean_cost, training, *[TaskRef(key) for key in list(tasks)])
    return tasks, result


def measure(training: Training, block: BlockKey, rows: FactorBlock, cols: FactorBlock) -> Cost:
    """Return the squared errors of one block."""
    return Cost(*(_measure(training, block, part, rows, cols) for part in PARTS))


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


def _thawed(side: FactorBlock) -> FactorBlock:
    """Return a copy to write to."""
    factors = kernel.aligned_empty(*side.factors.shape)
    factors[:] = side.factors
    return FactorBlock(factors, side.biases.copy())


def _frozen(side: FactorBlock) -> FactorBlock:
    """Make the arrays read-only: a tripwire for tasks that change what they were given."""
    for array in side:
        array.setflags(write=False)
    return side
