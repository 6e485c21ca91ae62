"""Number of an epoch, seed -> its strata: which blocks each sub-epoch visits. Pure: no files, no Dask."""

from collections.abc import Iterator

import numpy as np

from distmf.grid import BlockKey, Shape


def strata(shape: Shape, epoch: int, seed: int) -> list[list[BlockKey]]:
    """Return the blocks of each sub-epoch of one epoch; no two blocks of a stratum share a row or a column.

    Sub-epoch s pairs row block i with column block π[(±i + s) mod B], where π is a permutation and ± a direction drawn
    anew for each epoch: the order of the blocks of a row is random, without replacement, and yet a column block always
    moves on to a neighbouring row block, so that contiguous row blocks can stay with their worker. A grid that is not
    square is filled up to a square with blocks that nobody visits. Where there are fewer column blocks than row blocks,
    they go round one right after the other: all visits of a row block follow on each other, so that it needs to be in
    memory only for a short part of the epoch.

    Parameters
    ----------
    shape : Shape
        Of the grid.
    epoch, seed : int
        Not negative.

    Returns
    -------
    list of list of BlockKey
        One stratum per sub-epoch, blocks by ascending row.

    References
    ----------
    .. [1] R. Gemulla, E. Nijkamp, P. Haas, Y. Sismanis, "Large-Scale Matrix Factorization with Distributed Stochastic
       Gradient Descent", KDD 2011.
    .. [2] F. Makari, C. Teflioudi, R. Gemulla, P. Haas, Y. Sismanis, "Shared-Memory and Shared-Nothing Stochastic
       Gradient Descent Algorithms for Matrix Completion", KAIS 2013: random order without replacement.
    """
    return list(subepochs(shape, epoch, seed))


def subepochs(shape: Shape, epoch: int, seed: int) -> Iterator[list[BlockKey]]:
    """Yield the strata of one epoch, for grids of so many blocks that one does not want to see them all."""
    rng = np.random.default_rng([seed, epoch])
    size = max(shape)
    fillers, start = np.arange(shape.cols, size), int(rng.integers(size))
    order = np.roll(np.append(rng.permutation(shape.cols), fillers), start).tolist()
    direction = int(rng.choice([-1, 1]))
    for subepoch in range(size):
        cols = (order[(direction * row + subepoch) % size] for row in range(shape.rows))
        yield [BlockKey(row, col) for row, col in enumerate(cols) if col < shape.cols]
