"""Shapes, cut points, and the memory that a task needs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf.errors import MemoryBudgetError
from distmf.grid import choose_shape, cut, offset_dtype, projected_bytes, tile_shape


def test_projected_bytes__counts_every_term() -> None:
    # Primes, so that no wrong term cancels: rank 61 is padded to 64 floats, with a bias, in and out.
    assert projected_bytes(n_ratings=101, n_rows=11, n_cols=7, rank=61) == 2 * 4 * 65 * (11 + 7) + 8 * 101


@given(
    st.integers(1, 10**7), st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 512), st.integers(2**20, 2**36)
)
def test_choose_shape__fits_the_budget_or_names_both_numbers(
    n_users: int, n_items: int, n_ratings: int, rank: int, budget: int
) -> None:
    try:
        shape = choose_shape(n_users, n_items, n_ratings, rank, budget)
    except MemoryBudgetError:
        with pytest.raises(MemoryBudgetError, match=f"{budget:,}"):
            choose_shape(n_users, n_items, n_ratings, rank, budget)
        return
    assert 1 <= shape.rows <= n_users
    assert 1 <= shape.cols <= n_items
    per_block = n_ratings // (shape.rows * shape.cols)
    assert projected_bytes(per_block, -(-n_users // shape.rows), -(-n_items // shape.cols), rank) <= budget


def test_choose_shape__is_finer_for_less_memory_and_refuses_in_the_end() -> None:
    shapes = [choose_shape(10**6, 10**5, 10**8, 64, budget) for budget in (2**32, 2**25, 2**23)]
    assert shapes == sorted(shapes)
    assert len(set(shapes)) == 3
    with pytest.raises(MemoryBudgetError, match=r"rank 64 needs [\d,]+ bytes .* memory_per_task is 10,000; raise it"):
        choose_shape(10**6, 10**5, 10**8, 64, 10_000)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200), st.data())
def test_cut__covers_all_lines_with_blocks_that_are_not_empty(counts: list[int], data: st.DataObject) -> None:
    n_blocks = data.draw(st.integers(1, len(counts)))
    cuts = cut(np.array(counts, dtype=np.int64), n_blocks)
    assert cuts[0] == 0
    assert cuts[-1] == len(counts)
    assert len(cuts) == n_blocks + 1
    assert (np.diff(cuts) >= 1).all()


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_cut__balances_the_ratings(seed: int, n_blocks: int) -> None:
    counts = np.random.default_rng(seed).pareto(1.5, 2000).astype(np.int64) + 1
    sums = np.add.reduceat(counts, cut(counts, n_blocks)[:-1])
    assert sums.max() <= counts.sum() / n_blocks + counts.max()


@given(st.integers(1, 10**8), st.integers(1, 10**8), st.floats(1e-9, 1))
def test_tile_shape__fits_its_offsets(n_users: int, n_items: int, density: float) -> None:
    height, width = tile_shape(n_users, n_items, max(1, int(density * n_users * n_items)))
    assert height & (height - 1) == width & (width - 1) == 0
    assert height - 1 <= np.iinfo(offset_dtype(height)).max
    assert width - 1 <= np.iinfo(offset_dtype(width)).max


def test_tile_shape__grows_where_ratings_are_sparse() -> None:
    assert tile_shape(10_000, 10_000, 10_000_000) == (256, 256)
    assert tile_shape(1_000_000, 100_000, 10_000_000) > (256, 256)
