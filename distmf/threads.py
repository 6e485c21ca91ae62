"""Runs a Dask graph on threads of this process.

Dask's own threaded scheduler takes tasks in an order of its choice, in which the blocks of an epoch may be saved many
epochs late, and are held in memory until then. Here the earliest step goes first, as on a cluster.
"""

import contextlib
import heapq
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from dask.typing import Key

from distmf.arguments import check_whole
from distmf.engine import Graph, OnChange, OnDone, OnTask


class ThreadEngine:
    """Threads of this process; see `Engine`.

    Parameters
    ----------
    threads : int or None
        How many; None means as many as this process may use.
    """

    shares_memory = True

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            check_whole("threads", threads)
        self.n_slots = threads or len(os.sched_getaffinity(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def owners(self, n_row_blocks: int) -> list[Hashable]:
        """Return an owner for each row block: any thread may take any of them."""
        return list(range(n_row_blocks))

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function on another thread, so that Ctrl-C reaches this one at once."""
        with self._pool() as pool:
            future = pool.submit(function, *args)
            return {"this process": future.exception() or future.result()}

    def run(
        self,
        graph: Graph,
        keys: Sequence[Key],
        on_done: OnDone | None = None,
        on_change: OnChange | None = None,
        on_task: OnTask | None = None,
    ) -> list[Any]:
        """Compute `keys` of a graph; see `Engine.run`. Threads neither join nor leave."""
        left = set(keys)
        queue = _Queue(graph, left)
        ended: SimpleQueue[Key] = SimpleQueue()
        running: dict[Key, Future[Any]] = {}
        with self._pool() as pool:  # which waits for the tasks under way, whatever happens
            while left:
                while (key := queue.take(running, self.n_slots)) is not None:
                    running[key] = pool.submit(graph.tasks[key], queue.inputs(key))
                    running[key].add_done_callback(lambda _, key=key: ended.put(key))  # type: ignore[misc]
                key = ended.get()
                queue.put(key, running.pop(key).result())
                if on_task is not None:
                    on_task(key)
                if key in left:
                    left.remove(key)
                    if on_done is not None:
                        on_done(key, queue.values[key])
        return [queue.values[key] for key in keys]

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        """Yield threads to compute and threads to wait, which have ended when the block has.

        All are started before there is work: a thread that Ctrl-C meets while it is started is one that the pool does
        not know, and would not wait for.
        """
        n_threads = 2 * self.n_slots
        all_started = threading.Barrier(n_threads)
        with ThreadPoolExecutor(n_threads, thread_name_prefix="distmf") as pool:
            try:
                for future in [pool.submit(all_started.wait) for _ in range(n_threads)]:
                    future.result()
            except BaseException:
                all_started.abort()
                raise
            yield pool


class _Queue:
    """The tasks of a graph that can be run, the earliest step first, and the values that others still need.

    Attributes
    ----------
    ready : dict
        Heaps of step, number, and key: of the tasks that compute (False), and of those that wait for a disk (True).
    values : dict
        Key to value.
    ended : set
        Keys of all tasks that have ended.
    """

    def __init__(self, graph: Graph, wanted: set[Key]) -> None:
        self.graph, self.wanted = graph, frozenset(wanted)
        self.numbers = {key: number for number, key in enumerate(graph.tasks)}
        self.n_missing = {key: len(task.dependencies) for key, task in graph.tasks.items()}
        self.users: dict[Key, list[Key]] = defaultdict(list)
        for key, task in graph.tasks.items():
            for needed in task.dependencies:
                self.users[needed].append(key)
        self.n_users = {key: len(users) for key, users in self.users.items()}
        self.values: dict[Key, Any] = {}
        self.ended: set[Key] = set()
        self.ready: dict[bool, list[tuple[int, int, Key]]] = {False: [], True: []}
        for key, n_missing in self.n_missing.items():
            if not n_missing:
                self._add(key)

    def take(self, running: Collection[Key], n_slots: int) -> Key | None:
        """Return the task to run next, None if there is none, or no slot of its kind, or it is too far ahead."""
        steps = self.graph.steps
        heads = [ready[0][0] for ready in self.ready.values() if ready]
        earliest = min([steps.get(key, 0) for key in running] + heads, default=0)
        for kind, ready in self.ready.items():
            n_running = sum((key in self.graph.waiting) == kind for key in running)
            is_near = ready and (self.graph.lead is None or ready[0][0] <= earliest + self.graph.lead)
            if is_near and n_running < n_slots:
                return heapq.heappop(ready)[-1]
        return None

    def inputs(self, key: Key) -> dict[Key, Any]:
        """Return the values that a task needs, by key; as given up where it alone needs them and may change them."""
        graph, found = self.graph, {needed: self.values[needed] for needed in self.graph.tasks[key].dependencies}
        if graph.given_up is None or key not in graph.consumable:
            return found
        return {name: graph.given_up(value) if self._is_last(name) else value for name, value in found.items()}

    def _is_last(self, key: Key) -> bool:
        """Return whether one task alone needs a consumable value, and nobody reads its memory any more."""
        readers = self.graph.consumable.get(key)
        is_held = readers is None or key in self.wanted or not self.ended.issuperset(readers)
        return not is_held and self.n_users[key] == 1

    def put(self, key: Key, value: Any) -> None:
        """Take the value of a task, and forget those that were needed for it only."""
        self.values[key] = value
        self.ended.add(key)
        for user in self.users[key]:
            self.n_missing[user] -= 1
            if not self.n_missing[user]:
                self._add(user)
        for needed in self.graph.tasks[key].dependencies:
            self.n_users[needed] -= 1
            if not self.n_users[needed] and needed not in self.wanted:
                del self.values[needed]

    def _add(self, key: Key) -> None:
        heapq.heappush(self.ready[key in self.graph.waiting], (self.graph.steps.get(key, 0), self.numbers[key], key))
