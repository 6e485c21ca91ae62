"""Strata -> a Dask task graph of a few epochs, a *generation*.

Block (i, j) needs the latest P_i and the latest Q_j and nothing else, so there is no barrier: a block starts as soon as
both are there. Tasks are pure: they copy what they change, and may run twice.

    rows i ──▶ sgd(e, s, i, j) ──▶ sgd(e, s+1, i, j') ──▶ …      a row block stays with its owner
                  │
                  └─▶ column(e, s, i, j) ──▶ sgd(e, s+1, i±1, j)   only the column block moves on to another owner

The cost of an epoch rides with the column blocks. Every owner reports those of the columns that end the epoch with it,
and they are added up in the order of the columns; a small task turns the sum into the step size of the epoch after the
next. At the end of some epochs the factor blocks are saved on the way, while others go on.
"""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.typing import Key

from distmf import tasks
from distmf.engine import SGD_NAMES, Graph
from distmf.factors import First, Source, Stacked
from distmf.grid import BlockKey
from distmf.langevin import ChainState
from distmf.schedule import strata
from distmf.stepsize import StepState
from distmf.tasks import Cost, Passed, Training

FIRST_DRAWS = 0.1  # standard deviation of the factors that a chain of draws begins with
FIRST_FACTORS, LARGEST_FACTOR = 0.5, 0.1  # SGD begins with factors from 0 to the first / √rank, but no larger ones
WAITING = "load-", "save-"  # how the names of tasks begin that mostly wait for a disk
LEAD = 1  # sub-epochs that row blocks from the disk are loaded ahead


class State(NamedTuple):
    """Where training stands between two epochs: all that the next generation starts from.

    Attributes
    ----------
    epoch : int
        Epochs done.
    rows, cols : tuple of Source
        Row blocks and column blocks.
    step : StepState or ChainState
        Of the next epoch.
    cost : Cost or None
        Of the last epoch, which no step size has seen yet.
    chains : tuple of Chain
        Those that have ended, where the posterior is drawn from.
    """

    epoch: int
    rows: tuple[Source, ...]
    cols: tuple[Source, ...]
    step: StepState | ChainState
    cost: Cost | None
    chains: "tuple[Chain, ...]" = ()

    @property
    def end_of_chain(self) -> "Chain":
        """What is kept of a chain that has ended in this state."""
        assert isinstance(self.step, ChainState)
        return Chain(self.rows, self.cols, self.step.errors[-1])


class Chain(NamedTuple):
    """What is kept of a chain of draws: its row blocks and column blocks at the end, and the variance of the noise."""

    rows: tuple[Source, ...]
    cols: tuple[Source, ...]
    noise_variance: float


class Generation(NamedTuple):
    """A graph and the keys of its results.

    Attributes
    ----------
    graph : Graph
        The tasks.
    epochs, steps : dict
        Number of an epoch to the key of its `Passed`, of its `StepState`.
    snapshots : dict
        Epochs done to the key of the sources of the row blocks and of the column blocks.
    """

    graph: Graph
    epochs: dict[int, Key]
    steps: dict[int, Key]
    snapshots: dict[int, Key]

    @property
    def keys(self) -> list[Key]:
        """All results."""
        return [*self.epochs.values(), *self.steps.values(), *self.snapshots.values()]


def first_state(training: Training, *, has_factors: bool = True) -> State:
    """Return the state before the first epoch: no biases; small random factors, zero if there is nothing to learn."""
    return State(0, *_first_factors(training, 0, has_factors=has_factors), training.rule.first(), None)


def with_next_chain(training: Training, state: State) -> State:
    """Return the state itself, or, where a chain of draws has ended in it and there is another, the start of that."""
    rule = training.chain_rule
    if rule is None or not state.epoch or state.epoch % rule.epochs or state.epoch == rule.chains * rule.epochs:
        return state
    chains, step = (*state.chains, state.end_of_chain), rule.first()._replace(base=state.step.base)
    return State(state.epoch, *_first_factors(training, len(chains)), step, None, chains)


def of_all_chains(training: Training, state: State, *, draws: bool = False) -> tuple[Training, State]:
    """Return a training and a state whose factors are those of all chains of draws side by side; see `Stacked`.

    A chain that has not come to its first draws does not count, unless it is the only one.
    """
    rule = training.chain_rule
    assert rule is not None
    assert isinstance(state.step, ChainState)
    is_part = not state.chains or state.step.epoch > rule.burn_in
    chains = (*state.chains, state.end_of_chain) if is_part else state.chains
    rows, cols = (
        tuple(Stacked(parts, draws) for parts in zip(*sides, strict=True))
        for sides in ([chain.rows for chain in chains], [chain.cols for chain in chains])
    )
    rank = len(chains) * (training.rank + draws)
    return training._replace(rank=rank), state._replace(rows=rows, cols=cols, chains=chains)


def _first_factors(
    training: Training, chain: int, *, has_factors: bool = True
) -> tuple[tuple[First, ...], tuple[First, ...]]:
    blocks, is_positive = training.blocks, training.chain_rule is None
    size = min(FIRST_FACTORS / math.sqrt(training.rank), LARGEST_FACTOR) if is_positive else FIRST_DRAWS
    if not (has_factors and blocks.moments.std):  # nothing can be learned from ratings that are all the same
        size = 0.0

    def firsts(name: Literal["user", "item"], cuts: Sequence[int]) -> tuple[First, ...]:
        found = []
        for n, part in enumerate(np.split(blocks.counts(name), cuts[1:-1])):
            seed = training.seed, int(name == "item"), n, *([chain] if chain else [])
            counts = None if is_positive else part.astype(np.float32)
            found.append(First(seed, len(part), size, np.flatnonzero(part == 0), counts, is_positive))
        return tuple(found)

    return firsts("user", blocks.layout.row_cuts), firsts("item", blocks.layout.col_cuts)


class ReadAhead(NamedTuple):
    """Which ratings a task reads ahead of time for a later one of the same process.

    Attributes
    ----------
    readers : sequence, shape (n_row_blocks,)
        The process that visits each row block.
    distance : int
        How many visits of that process ahead: as many as it has threads.
    """

    readers: Sequence[Hashable]
    distance: int

    def upcoming(self, visits: Sequence[BlockKey]) -> list[BlockKey | None]:
        """Return for each of some visits, in the order of time, the block that is read ahead, None at the end."""
        found: list[BlockKey | None] = []
        later: dict[Hashable, deque[BlockKey]] = defaultdict(lambda: deque(maxlen=self.distance))
        for block in reversed(visits):
            queue = later[self.readers[block.row]]
            found.append(queue[-1] if len(queue) == self.distance else None)
            queue.appendleft(block)
        return found[::-1]


class _Builder:
    """Collects the tasks of one graph; keys are unique to its token."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.tasks: dict[Key, Any] = {}
        self.homes: dict[Key, Hashable] = {}
        self.steps: dict[Key, int] = {}
        self.consumable: dict[Key, tuple[Key, ...]] = {}

    def put(
        self, name: str, *where: int, call: Any, args: Sequence[Any], step: int = 0, home: Hashable | None = None
    ) -> TaskRef:
        key: Key = (f"{name}-{self.token}", *where)
        self.tasks[key] = Task(key, call, *args)
        self.steps[key] = step
        if home is not None:
            self.homes[key] = home
        return TaskRef(key)

    def keep(self, name: str, *where: int, value: Any) -> TaskRef:
        key: Key = (f"{name}-{self.token}", *where)
        self.tasks[key] = DataNode(key, value)
        return TaskRef(key)

    def graph(self, lead: int | None) -> Graph:
        waiting = {key for key in self.tasks if isinstance(key, tuple) and str(key[0]).startswith(WAITING)}
        return Graph(self.tasks, self.homes, self.steps, waiting, tasks.given_up, self.consumable, lead)


def build_generation(
    training: Training,
    state: State,
    n_epochs: int,
    token: str,
    owners: Sequence[Hashable],
    save_every: int,
    read_ahead: ReadAhead,
) -> Generation:
    """Return the graph that trains `n_epochs` more epochs from `state`.

    Parameters
    ----------
    training : Training
        What stays the same.
    state : State
        Where to start.
    n_epochs : int
        At least 1.
    token : str
        Unique to this graph. Keys are readable: ``("sgd-<even or odd>-<token>", epoch, subepoch, row, col)``.
    owners : sequence, shape (n_row_blocks,)
        Owner of each row block. A column block that moves to a row block of the same owner moves as it is.
    save_every : int
        Save the factor blocks whenever so many epochs are done in all, and at the end.
    read_ahead : ReadAhead
        Which ratings are read ahead of time.
    """
    build = _Builder(token)
    n_steps = max(training.blocks.shape)
    epochs = range(state.epoch, state.epoch + n_epochs)
    schedule = {epoch: strata(training.blocks.shape, epoch, training.seed) for epoch in epochs}
    visits = [block for epoch in epochs for stratum in schedule[epoch] for block in stratum]
    upcoming = iter(read_ahead.upcoming(visits))
    constants = build.keep("training", value=training)
    at = _column_owners(training, state.epoch, owners)
    sources: list[Source | TaskRef] = [*state.rows]
    rows: dict[int, TaskRef] = {}  # those in memory
    cols = _load_columns(build, constants, state, at)
    steps = {state.epoch: build.keep("step", state.epoch, value=state.step)}
    passed = {state.epoch - 1: build.keep("epoch", state.epoch - 1, value=state.cost and Passed(state.cost, ()))}
    snapshots: dict[int, Key] = {}
    saving: dict[int, tuple[Key, ...]] = {}  # columns that a task reads to save them, until their next visit
    for epoch in epochs:
        first_of_col, last_of_row, last_of_col = _edges(schedule[epoch])
        halfway, resting = _halfway(schedule[epoch]) if training.rows_on_disk else set(), _resting(schedule[epoch])
        for subepoch, stratum in enumerate(schedule[epoch]):
            for block in stratum:
                where, step, owner = (epoch, subepoch, *block), epoch * n_steps + subepoch, owners[block.row]
                column, readers = cols[block.col], saving.pop(block.col, ())
                if at[block.col] != owner:
                    column = _part(build, "column", where, column, at[block.col], readers)
                if block.row not in rows:
                    rows[block.row] = build.put(
                        "load-rows",
                        *where[:3],
                        call=tasks.load_rows,
                        args=[sources[block.row], constants],
                        step=step - LEAD,
                        home=owner,
                    )
                edges = block in first_of_col, (block in last_of_row, block in last_of_col)
                args = [rows[block.row], column, steps[epoch], constants, block, epoch, *edges, next(upcoming)]
                visited = build.put(SGD_NAMES[epoch % 2], *where, call=tasks.visit, args=args, step=step, home=owner)
                build.consumable[visited.key] = ()
                rows[block.row] = cols[block.col] = visited
                at[block.col] = owner
                if block in resting:
                    cols[block.col] = _part(build, "resting", where, visited, owner, ())
                if block in halfway:
                    here = "rows", epoch + 1, block.row
                    sources[block.row] = _put_down(build, constants, here, rows.pop(block.row), owner, when="-halfway")
        end = (epoch + 1) * n_steps - 1
        passed[epoch] = _add_up(build, constants, cols, at, epoch, end)
        args = [steps[epoch], passed[epoch - 1], constants, epoch]
        steps[epoch + 1] = build.put("step", epoch + 1, call=tasks.next_step, args=args, step=end)
        is_end = epoch + 1 == state.epoch + n_epochs
        if is_end or training.rows_on_disk or (training.folder and (epoch + 1) % save_every == 0):
            keep = is_end and not training.rows_on_disk
            saved = _save(build, constants, (rows, owners), (cols, at), epoch + 1, keep)
            snapshots[epoch + 1] = build.put(
                "snapshot", epoch + 1, call=tasks.snapshot, args=[len(rows), *saved], step=end
            ).key
            saving = {col: (ref.key,) for col, ref in enumerate(saved[len(rows) :])}
            if training.rows_on_disk:
                sources, rows = [*saved[: len(rows)]], {}
    del passed[state.epoch - 1], steps[state.epoch]  # the state has them
    passed_keys, step_keys = ({n: ref.key for n, ref in refs.items()} for refs in (passed, steps))
    return Generation(build.graph(_lead(training)), passed_keys, step_keys, snapshots)


def _part(
    build: _Builder, name: str, where: tuple[int, ...], visited: TaskRef, home: Hashable, readers: tuple[Key, ...]
) -> TaskRef:
    """Add the task that parts a column block from the row block, as soon as it can be: then the row block may change.

    The column block may change as well where its only other `readers` are done.
    """
    step = build.steps[visited.key]
    column = build.put(name, *where, call=tasks.column_of, args=[visited], step=step, home=home)
    if visited.key in build.consumable:  # not the state that the graph begins with
        build.consumable[column.key] = readers
    return column


def _edges(strata: Sequence[Sequence[BlockKey]]) -> tuple[set[BlockKey], set[BlockKey], set[BlockKey]]:
    """Return the blocks that are the first of their column block, and the last of their row and column blocks."""
    visits = [block for stratum in strata for block in stratum]
    firsts = {block.col: block for block in reversed(visits)}
    of_rows, of_cols = ({block[n]: block for block in visits} for n in range(2))
    return set(firsts.values()), set(of_rows.values()), set(of_cols.values())


def _halfway(strata: Sequence[Sequence[BlockKey]]) -> set[BlockKey]:
    """Return the blocks after which their row block is not visited for a while: it need not be in memory meanwhile."""
    visits = [(block.row, subepoch, block) for subepoch, stratum in enumerate(strata) for block in stratum]
    pairs = itertools.pairwise(sorted(visits))
    return {block for (row, subepoch, block), (other, later, _) in pairs if row == other and later > subepoch + 1}


def _resting(strata: Sequence[Sequence[BlockKey]]) -> set[BlockKey]:
    """Return the blocks after which their column block is left alone: it need not keep the row block in memory."""
    visited = [{block.col for block in stratum} for stratum in strata]
    pairs = zip(strata, visited[1:], strict=False)  # but for the last stratum
    return {block for stratum, later in pairs for block in stratum if block.col not in later}


def _lead(training: Training) -> int | None:
    """Return how far threads may run ahead of what is still to be saved, which is in memory until then."""
    if training.rows_on_disk:
        return LEAD
    return max(training.blocks.shape) if training.folder else None


def _column_owners(training: Training, epoch: int, owners: Sequence[Hashable]) -> dict[int, Hashable]:
    """Return the owner with whom each column block ended the epoch before `epoch`."""
    last = strata(training.blocks.shape, max(epoch - 1, 0), training.seed)
    return {block.col: owners[block.row] for stratum in last for block in stratum}


def _load_columns(build: _Builder, constants: TaskRef, state: State, at: Mapping[int, Hashable]) -> list[TaskRef]:
    """Add the tasks that begin with the column blocks of a state."""
    return [
        build.put("load-column", n, call=tasks.load_column, args=[source, constants], home=at[n])
        for n, source in enumerate(state.cols)
    ]


def _add_up(
    build: _Builder, constants: TaskRef, cols: Sequence[TaskRef], at: Mapping[int, Hashable], epoch: int, step: int
) -> TaskRef:
    """Add the tasks that compute the mean cost of an epoch; no factors move for it."""
    by_owner: dict[Hashable, list[int]] = defaultdict(list)
    for col, owner in sorted(at.items()):
        by_owner[owner].append(col)
    parts = [
        build.put(
            "costs", epoch, n, call=tasks.costs_of, args=[owned, *[cols[col] for col in owned]], step=step, home=owner
        )
        for n, (owner, owned) in enumerate(by_owner.items())
    ]
    return build.put("epoch", epoch, call=tasks.total_cost, args=[constants, *parts], step=step)


def _save(
    build: _Builder,
    constants: TaskRef,
    rows: tuple[Mapping[int, TaskRef], Sequence[Hashable]],
    cols: tuple[Sequence[TaskRef], Mapping[int, Hashable]],
    epoch: int,
    keep: bool,
) -> list[TaskRef]:
    """Add the tasks that put factor blocks where others find them, each after its last visit: rows, then columns."""
    parts = []
    for name, refs, homes in ("rows", sorted(rows[0].items()), rows[1]), ("cols", list(enumerate(cols[0])), cols[1]):
        for n, ref in refs:
            parts.append(_put_down(build, constants, (name, epoch, n), ref, homes[n], keep=keep))
    return parts


def _put_down(
    build: _Builder,
    constants: TaskRef,
    where: tuple[str, int, int],
    ref: TaskRef,
    home: Hashable,
    *,
    keep: bool = False,
    when: str = "",
) -> TaskRef:
    """Add the task that puts a factor block where others find it: rows or columns, epochs done at its end, number."""
    name, epoch, n = where
    file = f"factors/{epoch:06d}-{build.token}/{name}-{n:05d}.bin"
    args, step = [ref, name == "rows", constants, file, keep], build.steps[ref.key]
    return build.put(f"save-{name}{when}", epoch, n, call=tasks.put_down, args=args, step=step, home=home)


def build_measurement(training: Training, state: State, token: str, owners: Sequence[Hashable]) -> tuple[Graph, Key]:
    """Return the graph, and the key of its result, that computes the exact cost at fixed factors."""
    build = _Builder(token)
    constants = build.keep("training", value=training)
    cols = _load_columns(build, constants, state, _column_owners(training, state.epoch, owners))
    rows = [
        build.put("load-rows", n, call=tasks.load_rows, args=[source, constants], step=n - LEAD, home=owners[n])
        for n, source in enumerate(state.rows)
    ]
    costs = []
    for key in sorted(training.blocks.entries):
        args = [rows[key.row], cols[key.col], constants, key]
        costs.append(build.put("measure", *key, call=tasks.measure, args=args, step=key.row, home=owners[key.row]))
    return build.graph(_lead(training)), build.put("measured", call=tasks.mean_cost, args=[constants, *costs]).key
