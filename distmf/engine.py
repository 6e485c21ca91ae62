"""Runs a Dask graph: on the threads of this process, or on a cluster.

Every engine computes the same values from the same graph; which tasks run where and when is all that differs.
"""

import logging
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from dask._task_spec import Task
from dask.typing import Key

from distmf.buffers import give_back_idle_memory
from distmf.errors import GraphLostError

logger = logging.getLogger(__name__)

MAX_LOSSES = 3  # of a graph in a row
SGD_NAMES = "sgd-even", "sgd-odd"  # a colour each on the dashboard, so that one sees where an epoch ends

OnDone = Callable[[Any, Any], None]
OnChange = Callable[[], None]
OnTask = Callable[[Any], None]


class EnoughError(Exception):
    """Nothing more of a graph is wanted: what `on_done` raises to end it."""


class Graph(NamedTuple):
    """Tasks, and what helps a cluster to run them well.

    Attributes
    ----------
    tasks : mapping
        Key to Dask task.
    homes : mapping
        Key to the owner, one of `Engine.owners`, that has most of what the task needs; others may run it.
    steps : mapping
        Key to the step in time that the task is of: earlier ones are preferred.
    waiting : set
        Keys of tasks that mostly wait for a disk: threads of this process run them besides those that compute.
    given_up : callable or None
        What threads of this process make of a value that nobody else needs, to tell a task that it may change it.
    consumable : mapping
        Keys of the values that may be given up, to the keys of tasks that read their memory without needing them, and
        must have ended before; tasks that take them in have such a key themselves.
    lead : int or None
        How many steps threads of this process may be ahead of the earliest task that is under way or could be: this
        bounds the memory of what is loaded or waits to be saved; None for any number.
    """

    tasks: Mapping[Key, Any]
    homes: Mapping[Key, Hashable] = {}
    steps: Mapping[Key, int] = {}
    waiting: Set[Key] = frozenset()
    given_up: Callable[[Any], Any] | None = None
    consumable: Mapping[Key, Sequence[Key]] = {}
    lead: int | None = None


def new_token() -> str:
    """Return what makes the keys of one graph differ from all others on a cluster."""
    return uuid.uuid4().hex[:8]


def key_in_words(key: Any) -> str:
    """Return what a task does, from its key: a name, a token, and where in the schedule and the grid.

    Examples
    --------
    >>> key_in_words(("sgd-odd-1f3a5c7e", 3, 0, 2, 5))
    'block (2, 5) in epoch 4'
    >>> key_in_words(("scatter-1f3a5c7e", 12))
    'task scatter 12'
    """
    name, *where = key if isinstance(key, tuple) else (key,)
    name, _, _ = str(name).rpartition("-")
    if name in SGD_NAMES:
        epoch, _, row, col = where
        return f"block ({row}, {col}) in epoch {epoch + 1}"
    return f"task {name} {', '.join(map(str, where))}"


class Engine(Protocol):
    """What runs graphs; a context manager."""

    @property
    def n_slots(self) -> int:
        """How many tasks run at once."""

    @property
    def shares_memory(self) -> bool:
        """Whether all tasks run in this process."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def owners(self, n_row_blocks: int) -> list[Hashable]:
        """Return the owner of each row block: what stays with one owner need not move."""

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function in every process that runs tasks; return what it returned or raised, by process."""

    def run(
        self,
        graph: Graph,
        keys: Sequence[Key],
        on_done: OnDone | None = None,
        on_change: OnChange | None = None,
        on_task: OnTask | None = None,
    ) -> list[Any]:
        """Compute `keys` of a graph.

        Parameters
        ----------
        graph : Graph
            Pure tasks.
        keys : sequence
            What to return, in this order.
        on_done : callable, optional
            Called in this thread with the key and the value of each task in `keys` when it is done, in any order.
        on_change : callable, optional
            Called in this thread, every few seconds, if workers have joined or left since the graph was sent. A cluster
            computes again all that a lost worker's blocks came from, and gives little to a new one; whoever knows
            a better place to go on from raises `GraphLostError`.
        on_task : callable, optional
            Called in this thread with the key of every task that is done, where all tasks run in this process.

        Raises
        ------
        EnoughError
            If `on_done` does; no task of the graph is under way any more.
        Exception
            The first that a task raises, as it is.
        """


def run_through_losses(engine: Engine, graph: Graph, keys: Sequence[Key], on_done: OnDone | None = None) -> list[Any]:
    """Compute `keys` as `Engine.run` does, and send the graph again if a cluster loses it.

    Raises
    ------
    GraphLostError
        If it was lost `MAX_LOSSES` times in a row.
    """
    for _ in range(MAX_LOSSES - 1):
        try:
            return engine.run(graph, keys, on_done)
        except GraphLostError as err:
            logger.warning("%s; sending them again", err)
    return engine.run(graph, keys, on_done)


def run_in_order(engine: Engine, name: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield what calls (a function and its arguments each) return, in order; no more than run at once are held."""
    for first in range(0, len(calls), engine.n_slots):
        token, some = new_token(), calls[first : first + engine.n_slots]
        keys: list[Key] = [(f"{name}-{token}", n) for n in range(len(some))]
        tasks: dict[Key, Any] = {key: Task(key, *call) for key, call in zip(keys, some, strict=True)}
        yield from run_through_losses(engine, Graph(tasks), keys)
        give_back_idle_memory()
