"""Arrays for factors and ratings in memory that is used again.

A task copies the factors that it changes, so every visit of a block needs as much memory as the visit before has set
free. Allocators give large pieces back to the system at once, above all in Dask's workers, and to get fresh ones takes
longer than the copy that goes into them.
"""

import contextlib
import ctypes
import mmap
import threading
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CACHE_LINE = 64  # bytes
MAPPED_BYTES = 1 << 20
IDLE_SHARE = 0.25  # of what is in use, at most
STEPS = 16  # sizes between two powers of two: row blocks differ by a few rows, and should fit into the same buffers

Bytes = npt.NDArray[np.uint8]


class Pool:
    """Buffers by size, safe to use from several threads.

    It keeps no more idle than a share of what is in use, so it is empty when all arrays are gone.

    Attributes
    ----------
    bytes_in_use, idle_bytes : int
        Of the buffers that arrays lie in, and of those that wait for one.
    """

    def __init__(self) -> None:
        self.bytes_in_use = self.idle_bytes = 0
        self._idle: dict[int, list[Bytes]] = defaultdict(list)
        self._lock = threading.RLock()  # a thread that takes a buffer may find garbage that gives one back

    def empty_bytes(self, n_bytes: int) -> Bytes:
        """Return an uninitialised array of bytes that starts on a cache line."""
        return np.asarray(_Loan(self, self._take(n_bytes)))[:n_bytes]

    def empty(self, *shape: int) -> npt.NDArray[np.float32]:
        """Return an uninitialised float32 array that starts on a cache line."""
        return self.empty_bytes(4 * int(np.prod(shape))).view(np.float32).reshape(shape)

    def _take(self, n_bytes: int) -> Bytes:
        step = max(CACHE_LINE, (1 << n_bytes.bit_length()) // (2 * STEPS))
        size = -(-n_bytes // step) * step
        with self._lock:
            self.bytes_in_use += size
            if self._idle[size]:
                self.idle_bytes -= size
                return self._idle[size].pop()
        return _new(size)

    def give_back(self, memory: Bytes) -> None:
        """Take a buffer back; which drops the last view of it."""
        with self._lock:
            self.bytes_in_use -= len(memory)
            self.idle_bytes += len(memory)
            self._idle[len(memory)].append(memory)
            while self.idle_bytes > IDLE_SHARE * self.bytes_in_use:
                size = next(size for size, buffers in self._idle.items() if buffers)
                self._idle[size].pop()
                self.idle_bytes -= size


def _new(size: int) -> Bytes:
    """Return fresh memory that starts on a cache line.

    Large pieces come from the system itself and go back to it at once when they are dropped: allocators would keep
    them, cut, among others that are still in use.
    """
    if size < MAPPED_BYTES:
        memory = np.empty(size + CACHE_LINE, dtype=np.uint8)
        start = -memory.ctypes.data % CACHE_LINE
        return memory[start : start + size]
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, dtype=np.uint8)


class _Loan:
    """A buffer while there are arrays in it: NumPy takes it for the owner of their memory."""

    def __init__(self, pool: Pool, memory: Bytes) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._pool.give_back(self._memory)


aligned_empty = Pool().empty  # factors
empty_bytes = Pool().empty_bytes  # blocks of ratings


def give_back_idle_memory() -> None:
    """Give the memory that allocators keep for later back to the system: what comes next needs it otherwise."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def aligned_copy(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a copy to write to that starts on a cache line."""
    copy = aligned_empty(*array.shape)
    copy[:] = array
    return copy
