"""Runs a Dask graph: here, on the threads of this process."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import dask.threaded
from dask.callbacks import Callback
from dask.typing import Key


class ThreadEngine:
    """Dask's threaded scheduler on a pool of its own; a context manager that ends the pool.

    Parameters
    ----------
    threads : int or None
        How many; None means as many as this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; at least 1 is needed")
        self.threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="distmf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on a thread of the pool, so that Ctrl-C reaches this one at once."""
        return self._pool.submit(function, *args).result()

    def run(
        self,
        graph: Mapping[Key, Any],
        keys: Sequence[Key],
        on_done: Callable[[Any, Any], None] | None = None,
    ) -> list[Any]:
        """Compute `keys` of a graph.

        Parameters
        ----------
        graph : mapping
            Key to Dask task.
        keys : sequence
            What to return, in this order.
        on_done : callable, optional
            Called in this thread with the key and the value of each task when it is done.

        Raises
        ------
        Exception
            The first that a task raises, as it is.
        """

        def posttask(key: Any, value: Any, graph: Any, state: Any, worker: Any) -> None:
            if on_done is not None:
                on_done(key, value)

        with Callback(posttask=posttask):  # type: ignore[no-untyped-call]
            return list(dask.threaded.get(graph, list(keys), pool=self._pool, num_workers=self.threads))
