"""Runs a Dask graph: on the threads of this process, or on a cluster.

Every engine computes the same values from the same graph; which tasks run where and when is all that differs.
"""

import logging
import os
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import dask.threaded
from dask.callbacks import Callback
from dask.typing import Key

from distmf.errors import GraphLostError

logger = logging.getLogger(__name__)

MAX_LOSSES = 3  # of a graph in a row
SGD_NAMES = "sgd-even", "sgd-odd"  # a colour each on the dashboard, so that one sees where an epoch ends

OnDone = Callable[[Any, Any], None]


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
    """

    tasks: Mapping[Key, Any]
    homes: Mapping[Key, Hashable] = {}
    steps: Mapping[Key, int] = {}


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

    def run(self, graph: Graph, keys: Sequence[Key], on_done: OnDone | None = None) -> list[Any]:
        """Compute `keys` of a graph.

        Parameters
        ----------
        graph : Graph
            Pure tasks.
        keys : sequence
            What to return, in this order.
        on_done : callable, optional
            Called in this thread with the key and the value of each task in `keys` when it is done, in any order.

        Raises
        ------
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


class ThreadEngine:
    """Dask's threaded scheduler on a pool of its own; a context manager that ends the pool.

    Parameters
    ----------
    threads : int or None
        How many; None means as many as this process may use.
    """

    shares_memory = True

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; at least 1 is needed")
        self.n_slots = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.n_slots, thread_name_prefix="distmf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def owners(self, n_row_blocks: int) -> list[Hashable]:
        """Return an owner for each row block: any thread may take any of them."""
        return list(range(n_row_blocks))

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function on a thread of the pool, so that Ctrl-C reaches this one at once."""
        future = self._pool.submit(function, *args)
        return {"this process": future.exception() or future.result()}

    def run(self, graph: Graph, keys: Sequence[Key], on_done: OnDone | None = None) -> list[Any]:
        """Compute `keys` of a graph; see `Engine.run`."""
        wanted = set(keys)

        def posttask(key: Any, value: Any, graph: Any, state: Any, worker: Any) -> None:
            if on_done is not None and key in wanted:
                on_done(key, value)

        with Callback(posttask=posttask):  # type: ignore[no-untyped-call]
            return list(dask.threaded.get(graph.tasks, list(keys), pool=self._pool, num_workers=self.n_slots))
