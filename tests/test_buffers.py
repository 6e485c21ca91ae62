"""Arrays in memory that is used again."""

import gc
import pickle
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf.buffers import CACHE_LINE, IDLE_SHARE, MAPPED_BYTES, Pool
from distmf.kernel import padded_rank


@pytest.mark.parametrize(("n_rows", "rank"), [(1, 1), (7, 16), (1000, 30)])
def test_empty__starts_rows_on_cache_lines(n_rows: int, rank: int) -> None:
    array = Pool().empty(n_rows, padded_rank(rank))
    assert array.shape == (n_rows, padded_rank(rank))
    assert array.dtype == np.float32
    assert array.ctypes.data % CACHE_LINE == 0
    assert array.strides[0] % CACHE_LINE == 0
    array[:] = 1
    assert (array == 1).all()


@pytest.mark.parametrize("n_rows", [1000, MAPPED_BYTES // 256 + 100])
def test_empty__uses_memory_again(n_rows: int) -> None:
    pool = Pool()
    kept, first = [pool.empty(n_rows, 64) for _ in range(4)], pool.empty(n_rows, 64)
    address = first.ctypes.data
    del first
    assert pool.idle_bytes > 0
    again = pool.empty(n_rows - 1, 64)  # a little smaller
    assert again.ctypes.data == address
    assert pool.idle_bytes == 0
    assert not any(np.shares_memory(again, other) for other in kept)


def views(array: npt.NDArray[Any]) -> list[object]:
    return [
        array[3:5],
        array.T,
        array.reshape(-1)[::7],
        array.view(np.uint32),
        memoryview(array[2:]),
        pickle.PickleBuffer(array),
        np.asarray(memoryview(array)),
        np.lib.stride_tricks.as_strided(array, (2, 2), (256, 4)),
    ]


@pytest.mark.parametrize("n", range(8))
def test_empty__never_takes_what_a_view_looks_at(n: int) -> None:
    pool = Pool()
    others = [pool.empty(100, 64) for _ in range(5)]  # so that there may be idle ones
    array = pool.empty(100, 64)
    array[:] = 1
    before = np.array(views(array)[n], copy=True)
    view = views(array)[n]
    del array
    gc.collect()
    for _ in range(5):
        others.append(pool.empty(100, 64))
        others[-1][:] = 2
    assert (np.array(view, copy=False) == before).all()


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 64), st.booleans()), max_size=60))
def test_pool__keeps_no_more_idle_than_a_share_of_what_is_in_use(steps: list[tuple[int, int, bool]]) -> None:
    pool = Pool()
    held: list[npt.NDArray[np.float32]] = []
    for n_rows, n_cols, drop in steps:
        if drop and held:
            held.pop(n_rows % len(held))
        else:
            held.append(pool.empty(n_rows, n_cols))
        n_bytes = sum(array.nbytes for array in held)
        assert n_bytes <= pool.bytes_in_use <= n_bytes * 17 / 16 + CACHE_LINE * len(held)
        assert 0 <= pool.idle_bytes <= IDLE_SHARE * pool.bytes_in_use
    held.clear()
    assert pool.bytes_in_use == pool.idle_bytes == 0


def test_pool__serves_several_threads() -> None:
    pool, problems = Pool(), []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: list[npt.NDArray[np.float32]] = []
        for turn in range(2000):
            array = pool.empty(int(rng.integers(1, 200)), 16)
            array[:] = 10_000 * number + turn
            held.append(array)
            if len(held) > 5:
                oldest = held.pop(0)
                if not (oldest == 10_000 * number + turn - 5).all():
                    problems.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert pool.bytes_in_use == pool.idle_bytes == 0
