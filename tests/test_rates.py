"""What is measured on the machine at hand."""

import numpy as np
import pytest

from distmf.buffers import aligned_empty
from distmf.grid import Shape
from distmf.kernel import FactorBlock, Hyperparameters, padded_rank, train_block
from distmf.rates import (
    MAX_FACTOR_BYTES,
    MAX_RATINGS,
    hollow_generation,
    measure_disk,
    measure_kernel,
    measure_scheduler,
    synthetic_block,
)
from distmf.threads import ThreadEngine


@pytest.mark.parametrize(
    ("n_ratings", "n_users", "n_items", "rank", "shape"),
    [
        (10**11, 10**9, 10**7, 64, Shape(128, 128)),  # a part of a block, in tiles of 8192 × 8192
        (200_000, 3001, 1009, 8, Shape(2, 3)),
        (1, 1, 1, 512, Shape(1, 1)),
        (10, 10**6, 1, 16, Shape(4, 1)),
    ],
)
def test_synthetic_block__is_such_as_the_grid_has(
    n_ratings: int, n_users: int, n_items: int, rank: int, shape: Shape
) -> None:
    ratings, n_rows, n_cols = synthetic_block(n_ratings, n_users, n_items, rank, shape)
    n = len(ratings.values)
    assert 1 <= n <= MAX_RATINGS
    assert (n_rows + n_cols) * 4 * padded_rank(rank) <= MAX_FACTOR_BYTES
    assert n_rows <= -(-n_users // shape.rows)
    assert n_cols <= -(-n_items // shape.cols)
    density = n_ratings / (n_users * n_items)
    assert n == pytest.approx(density * n_rows * n_cols, rel=0.01, abs=1)
    assert ratings.sizes().sum() == n
    rows, cols = ratings.places()
    assert rows.max() < n_rows
    assert cols.max() < n_cols
    sides = []
    for n_lines in (n_rows, n_cols):
        sides.append(FactorBlock(aligned_empty(n_lines, padded_rank(rank)), np.zeros(n_lines, dtype=np.float32)))
        sides[-1].factors[:] = 0.01
    assert np.isfinite(train_block(ratings, *sides, Hyperparameters(5, 2.5, (0.05, 0.05), (0.02, 0.02)), 0.01, 1))


def test_measure_kernel__finds_how_fast_it_is() -> None:
    speed = measure_kernel(100_000, 1000, 500, 8, Shape(2, 2), 2, 1)
    assert 1e6 < speed.kernel < 1e10
    assert 1e7 < speed.copy < 1e12


def test_measure_disk__leaves_nothing() -> None:
    assert 1e6 < measure_disk().rate < 1e12  # the fixture sees what is left


def test_hollow_generation__pauses_once_for_every_block_of_every_epoch() -> None:
    shape, pauses = Shape(5, 3), list[None]()
    generation = hollow_generation(shape, 2, [0, 0, 1, 1, 1], lambda: pauses.append(None))
    with ThreadEngine(2) as engine:
        *passed, (rows, cols) = engine.run(
            generation.graph, [*generation.epochs.values(), *generation.snapshots.values()]
        )
    assert len(pauses) == 2 * 15
    assert len(passed) == 2
    assert (len(rows), len(cols)) == shape


def test_measure_scheduler__finds_thousands_of_tasks_a_second() -> None:
    found = measure_scheduler()
    assert 100 < found.scheduler < 100_000
    assert 1e-5 < found.task < 0.1
