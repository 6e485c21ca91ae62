"""Least-recently-used cache of blocks, bounded in bytes. Knows nothing of what it keeps."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keep values up to a number of bytes; the one that was not asked for the longest goes first.

    Safe to use from several threads: `load` runs outside the lock, so two threads that miss the same key at once may
    both load it, and get equal values.

    Parameters
    ----------
    max_bytes : int
        A value that is larger by itself is loaded and not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], tuple[Value, int]]) -> Value:
        """Return the value of `key`; on a miss call `load`, which returns the value and its size in bytes."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value, n_bytes = load()
        with self._lock:
            if key not in self._values and n_bytes <= self.max_bytes:
                self._values[key] = value, n_bytes
                self._bytes += n_bytes
                while self._bytes > self.max_bytes:
                    self._bytes -= self._values.popitem(last=False)[1][1]
        return value

    def forget(self, is_outdated: Callable[[Hashable], bool]) -> None:
        """Drop the values of some keys."""
        with self._lock:
            for key in [key for key in self._values if is_outdated(key)]:
                self._bytes -= self._values.pop(key)[1]
