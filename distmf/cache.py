"""Least-recently-used cache, bounded in bytes, that can be filled ahead of time. Knows nothing of what it keeps."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keep values up to a number of bytes; the one that was not asked for the longest goes first.

    Safe to use from several threads: one of them loads a value, and the others that ask for it wait.

    Parameters
    ----------
    max_bytes : int
        A value that is larger by itself is loaded and not kept. It may be changed at any time.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._bytes = 0
        self._loading: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()
        self._reader: ThreadPoolExecutor | None = None

    def get(self, key: Hashable, load: Callable[[], tuple[Value, int]]) -> Value:
        """Return the value of `key`; on a miss call `load`, which returns the value and its size in bytes."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            loading = self._loading.get(key)
            if loading is None:
                mine = self._loading[key] = Future()
        if loading is not None:
            return loading.result()
        try:
            value, n_bytes = load()
        except BaseException as err:
            with self._lock:
                del self._loading[key]
            mine.set_exception(err)
            raise
        with self._lock:
            del self._loading[key]
            if n_bytes <= self.max_bytes:
                self._values[key] = value, n_bytes
                self._bytes += n_bytes
                while self._bytes > self.max_bytes:
                    self._bytes -= self._values.popitem(last=False)[1][1]
        mine.set_result(value)
        return value

    def prefetch(self, key: Hashable, load: Callable[[], tuple[Value, int]]) -> None:
        """Load the value of `key` in the background if it is not there; whoever gets it sees what went wrong."""
        with self._lock:
            if key in self._values or key in self._loading:
                return
            self._reader = self._reader or ThreadPoolExecutor(1, thread_name_prefix="distmf-read-ahead")
            self._reader.submit(self.get, key, load)

    def forget(self, is_outdated: Callable[[Hashable], bool]) -> None:
        """Drop the values of some keys, and load none in the background until somebody asks for it again."""
        with self._lock:
            reader, self._reader = self._reader, None
        if reader:
            reader.shutdown(cancel_futures=True)
        with self._lock:
            for key in [key for key in self._values if is_outdated(key)]:
                self._bytes -= self._values.pop(key)[1]
