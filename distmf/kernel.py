"""One block of ratings, its row factors and its column factors -> updated factors and the block's cost.

This is the only compiled part of training. It knows nothing of files, grids or Dask. A pass visits the tiles of a block
row of tiles by row of tiles, and the groups of a tile size by size, in orders that `seed` draws anew: strides that are
coprime with the number of things to visit, so that an order costs no memory and no time.

A group is up to four ratings of one row: that is loaded and stored once for all of them, and what updates it is added
up side by side. What is done for one group is in `vectors`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.buffers import CACHE_LINE, aligned_copy, aligned_empty
from distmf.compiled import compiled
from distmf.encoding import Encoding
from distmf.losses import Constants, Normalisation, Objective
from distmf.vectors import LANES, Form, Steps, ask_for_group, step_of_group

GROUP_SIZES = 4, 2, 1  # ratings of a row that are visited at once; their columns differ
PREFETCHED_BYTES = 6 << 10  # of rows asked for ahead of time: they must stay in the L1 cache until they are needed

FLOAT_BYTES = np.uint64(4)

Factors = npt.NDArray[np.float32]
Pair = tuple[float, float]  # of users, and of items


class Ratings(NamedTuple):
    """The ratings of one block in groups and tiles, as the kernel reads them.

    Attributes
    ----------
    counts : uint32, shape (n_tile_rows * n_tile_cols, len(GROUP_SIZES))
        Groups of each size in each tile; tiles lie row by row, and the groups of a tile size by size.
    rows : uint8 or uint16, shape (n_groups,)
        Row of each group within the tile.
    cols : uint8 or uint16, shape (n,)
        Column of each rating within the tile.
    values : uint8, uint16 or float32, shape (n,)
        The ratings, in `encoding`.
    encoding : Encoding
        What the values stand for.
    tile_shape : tuple of int
        Rows and columns of a tile.
    n_tile_cols : int
        Tiles side by side.
    weights : float32, shape (n,), or None
        How much each rating counts; None where all count alike.
    """

    counts: npt.NDArray[np.uint32]
    rows: npt.NDArray[np.unsignedinteger[Any]]
    cols: npt.NDArray[np.unsignedinteger[Any]]
    values: npt.NDArray[Any]
    encoding: Encoding
    tile_shape: tuple[int, int]
    n_tile_cols: int
    weights: npt.NDArray[np.float32] | None = None

    def sizes(self) -> npt.NDArray[np.int64]:
        """Return the number of ratings of each tile."""
        return np.asarray((self.counts * np.array(GROUP_SIZES)).sum(axis=1))

    def places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the row and the column of each rating within the block."""
        counts = self.counts.ravel()
        tile_row, tile_col = np.divmod(np.repeat(np.arange(len(self.counts)), len(GROUP_SIZES)), self.n_tile_cols)
        height, width = self.tile_shape
        sizes = np.tile(GROUP_SIZES, len(self.counts))
        group_rows = np.repeat(tile_row * height, counts) + self.rows
        return np.repeat(group_rows, np.repeat(sizes, counts)), np.repeat(tile_col * width, counts * sizes) + self.cols


class FactorBlock(NamedTuple):
    """Factors and biases of a row block or a column block.

    Attributes
    ----------
    factors : float32, shape (n, padded_rank)
        P_i or Q_j in units of the square root of the ratings' scale; from `aligned_empty`; columns from `rank` on zero.
    biases : float32, shape (n,)
        b_u or b_i, in units of the ratings' scale.
    mean : FactorBlock or None
        Of the draws so far, where they are drawn from the posterior.
    lines : float32, shape (n, 5), or None
        A `Line` of each, there.
    shares : float32, shape (n,), or None
        Of the step size, where training goes on from a model.
    """

    factors: Factors
    biases: npt.NDArray[np.float32]
    mean: "FactorBlock | None" = None
    lines: npt.NDArray[np.float32] | None = None
    shares: npt.NDArray[np.float32] | None = None

    def arrays(self) -> list[npt.NDArray[np.float32]]:
        """Return all arrays; first those that change."""
        more = [] if self.mean is None or self.lines is None else [*self.mean.arrays(), self.lines]
        return [self.factors, self.biases, *more, *([] if self.shares is None else [self.shares])]


class Tiles(NamedTuple):
    """Shape of a tile, and how many lie side by side."""

    height: int
    width: int
    n_cols: int


class Addresses(NamedTuple):
    """Where factors, biases, and shares of the step or lines of a block, or of a tile of it, lie in memory."""

    P: np.uintp
    b_u: np.uintp
    s_u: np.uintp
    Q: np.uintp
    b_i: np.uintp
    s_i: np.uintp


def padded_rank(rank: int) -> int:
    """Return the number of floats that a row of factors takes: `rank` rounded up to whole cache lines."""
    return -(-rank // LANES) * LANES


def compile_for(ratings: Ratings, rank: int, hyper: "Hyperparameters", shares: tuple[int, ...] | None = None) -> None:
    """Compile the passes over blocks like `ratings`, which may be empty, so that no task has to wait for it.

    There are no shares, or such for one row are of that shape.
    """
    nothing = ratings._replace(counts=np.zeros((1, len(GROUP_SIZES)), dtype=np.uint32), n_tile_cols=1)
    rows, cols = (FactorBlock(aligned_empty(1, padded_rank(rank)), np.empty(1, dtype=np.float32)) for _ in range(2))
    both = None if shares is None else (np.empty(shares, dtype=np.float32),) * 2
    train_block(nothing, rows, cols, hyper, 0.0, 0, both)
    measure_block(nothing, rows, cols, hyper)


class Hyperparameters(NamedTuple):
    """What one pass needs besides ratings and factors; every number is cast to float32 once, before the kernel.

    Attributes
    ----------
    mean, scale : float
        Centre and spread of the ratings: the kernel works on (rating - mean) / scale.
    reg, bias_reg : pair of float
        λ of the factors and λ_b of the biases, of users and of items; per rating, on ratings of unit spread.
    l1_reg : pair of float
        The same for sums of the sizes of factors in place of their squares.
    objective : Objective
        The loss, and the form of the predictions.
    mean_weight : float
        Of the ratings, which counts as 1.
    """

    mean: float
    scale: float
    reg: Pair = (0.0, 0.0)
    bias_reg: Pair = (0.0, 0.0)
    l1_reg: Pair = (0.0, 0.0)
    objective: Objective = Objective()
    mean_weight: float = 1.0

    @property
    def normalisation(self) -> Normalisation:
        """How ratings become numbers that the kernel works on."""
        return Normalisation(self.mean, self.scale, self.objective)

    def steps(self, step_size: float) -> Steps:
        """Return the step size and its products with every λ."""
        size = step_size / self.mean_weight
        return Steps(*(np.float32(size * reg) for reg in (1.0, *self.reg, *self.bias_reg, *self.l1_reg)))


# Shares of the step size that the rows and the columns of a block take: float32, shapes (n_rows,) and (n_cols,); or
# lines, of five floats each.
Shares = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def train_block(
    ratings: Ratings,
    rows: FactorBlock,
    cols: FactorBlock,
    hyper: Hyperparameters,
    step_size: float,
    seed: int,
    shares: Shares | None = None,
) -> float:
    """Update `rows` and `cols` in place with one SGD step per group and return the sum of the costs.

    For the ratings r_k of a group, of weights w_k, with the pulls e_k of `losses`, which for the squared error are
    (r_k − μ) / σ − b_u − b_k − p_u·q_k, and all values from before the group::

        b_u += s_u η Σ w_k (e_k − λ_b b_u)      p_u += s_u η Σ w_k (e_k q_k − λ p_u)
        b_k += s_i η w_k (e_k − λ_b b_k)        q_k += s_i η w_k (e_k p_u − λ q_k)

    With an L1 penalty λ_1, factors then move towards zero by s η w λ_1, and no further [2]_.

    Parameters
    ----------
    ratings : Ratings
        The block.
    rows, cols : FactorBlock
        P and b_u of the users, Q and b_i of the items.
    hyper : Hyperparameters
        μ, σ, every λ, and the loss.
    step_size : float
        η.
    seed : int
        Draws the order of the visits; from 0 to 2**64 - 1.
    shares : pair of float32 arrays, shapes (n_rows,) and (n_cols,), or (n_rows, 5) and (n_cols, 5), optional
        s_u and s_i, the shares of the step size that rows and columns take; without them all take all of it. Or a
        `Line` of each: w_k is then the product of the precisions, and squared errors are added to the lines.

    Returns
    -------
    float
        Σ w_k ℓ_k, each cost from before its own update; for the squared error Σ w_k e_k², in units of `hyper.scale`
        squared. With lines it is Σ ℓ_k. Not finite if the factors diverged.

    References
    ----------
    .. [1] Y. Koren, R. Bell, C. Volinsky, "Matrix Factorization Techniques for Recommender Systems", Computer, 2009.
    .. [2] J. Langford, L. Li, T. Zhang, "Sparse Online Learning via Truncated Gradient", JMLR, 2009.
    """
    return _pass(ratings, rows, cols, hyper, step_size, seed, shares, training=True)


def measure_block(ratings: Ratings, rows: FactorBlock, cols: FactorBlock, hyper: Hyperparameters) -> float:
    """Return the sum of the costs of a block, as `train_block` does, without changing anything.

    Parameters are those of `train_block`.
    """
    rows, cols = (FactorBlock(_aligned(side.factors), _read_only(side.biases)) for side in (rows, cols))
    return _pass(ratings, rows, cols, hyper, 0.0, 0, None, training=False)


def _pass(
    ratings: Ratings,
    rows: FactorBlock,
    cols: FactorBlock,
    hyper: Hyperparameters,
    step_size: float,
    seed: int,
    shares: Shares | None,
    *,
    training: bool,
) -> float:
    """Call the compiled pass with arguments that are always of the same types, so that one signature is compiled."""
    encoding = ratings.encoding
    form = Form(
        hyper.objective._replace(constants=Constants()),
        training,
        shares is not None,
        ratings.weights is not None,
        training and any(hyper.l1_reg),
        shares is not None and shares[0].ndim == 2,
    )
    run = _compiled(rows.factors.shape[1], ratings.cols.itemsize, len(encoding.table) > 0, form)
    sides = zip((rows, cols), shares or (rows.biases, cols.biases), strict=True)  # those that are not read may be any
    at = Addresses(*(np.uintp(array.ctypes.data) for side, share in sides for array in (*side[:2], share)))
    assert at.P % CACHE_LINE == at.Q % CACHE_LINE == 0
    table = ((np.array(encoding.table, dtype=np.float64) - hyper.mean) / hyper.scale).astype(np.float32)
    starts = [np.concatenate([[0], np.cumsum(n)]).astype(np.uint64) for n in (ratings.counts.sum(1), ratings.sizes())]
    weights = np.empty(0, dtype=np.float32) if ratings.weights is None else ratings.weights
    arrays = tuple(_read_only(array) for array in (*ratings[:4], weights, table, *starts))
    unit = encoding.step or 1.0  # of the values, if they are no codes
    mean, inverse_scale = (hyper.mean - encoding.low) / unit, unit / hyper.scale
    with np.errstate(over="ignore"):  # what overflows makes the cost infinite, and that is seen
        centring = tuple(np.array([mean, inverse_scale]).astype(np.float32))
        steps, constants = tuple(hyper.steps(step_size)), tuple(map(np.float32, hyper.objective.constants))
    tiles = Tiles(*ratings.tile_shape, ratings.n_tile_cols)
    centred = np.empty(int(np.diff(starts[1]).max()), dtype=np.float32)
    costs = np.zeros(GROUP_SIZES[0])
    run(arrays, tiles, at, centring, (steps, constants), centred, costs, np.uint64(seed))
    return float(costs.sum())


def _aligned(factors: Factors) -> Factors:
    """Return factors that start on a cache line: what came from another process may not."""
    if factors.ctypes.data % CACHE_LINE == 0:
        return factors
    return aligned_copy(factors)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.setflags(write=False)
    return view


@functools.lru_cache
def _compiled(n_floats: int, col_bytes: int, coded: bool, form: Form) -> Callable[..., float]:
    """Return the pass for rows of `n_floats` floats; numba compiles it at the first call, under its own lock."""
    # What is measured may be measured one by one, which is less to compile.
    sizes = GROUP_SIZES if form.is_training else (1,) * len(GROUP_SIZES)
    visit_fours, visit_twos, visit_ones = (_visitor(n_floats, size, col_bytes, form) for size in sizes)
    row_bytes, column_bytes, one = np.uint64(4 * n_floats), np.uint64(col_bytes), np.uint64(1)
    line_bytes = np.uint64(form.line_bytes)

    @compiled(n_floats, col_bytes, coded, form)
    def run(arrays, tiles, at, centring, numbers, centred, costs, seed):
        counts, rows, cols, values, weights, table, group_starts, starts = arrays
        mean, inverse_scale = centring
        n_tile_cols, height, width = np.uint64(tiles.n_cols), np.uint64(tiles.height), np.uint64(tiles.width)
        n_tile_rows = np.uint64(len(counts)) // n_tile_cols
        draw = _mix(seed)
        row_stride, tile_row = _visits(n_tile_rows, draw)
        for _ in range(n_tile_rows):
            draw = _mix(draw)
            col_stride, tile_col = _visits(n_tile_cols, draw)
            for _ in range(n_tile_cols):
                draw = _mix(draw)
                tile = tile_row * n_tile_cols + tile_col
                group, begin = group_starts[tile], starts[tile]
                for k in range(starts[tile + one] - begin):  # at once, which takes vectors
                    value = values[begin + k]
                    centred[k] = table[value] if coded else (np.float32(value) - mean) * inverse_scale
                u, i = tile_row * height, tile_col * width
                P, b_u, s_u = at.P + u * row_bytes, at.b_u + u * FLOAT_BYTES, at.s_u + u * line_bytes
                Q, b_i, s_i = at.Q + i * row_bytes, at.b_i + i * FLOAT_BYTES, at.s_i + i * line_bytes
                corner = Addresses(P, b_u, s_u, Q, b_i, s_i)
                col, value = np.uint64(cols.ctypes.data) + begin * column_bytes, np.uint64(centred.ctypes.data)
                weight = np.uint64(weights.ctypes.data) + begin * FLOAT_BYTES
                for kind in range(len(GROUP_SIZES)):
                    n, size = np.uint64(counts[tile, kind]), np.uint64(GROUP_SIZES[kind])
                    if kind == 0:
                        visit_fours(rows, group, n, size, corner, col, value, weight, numbers, costs, draw)
                    elif kind == 1:
                        visit_twos(rows, group, n, size, corner, col, value, weight, numbers, costs, draw)
                    else:
                        visit_ones(rows, group, n, size, corner, col, value, weight, numbers, costs, draw)
                    group += n
                    col += n * size * column_bytes
                    value += n * size * FLOAT_BYTES
                    weight += n * size * FLOAT_BYTES
                tile_col = _advance(tile_col, col_stride, n_tile_cols)
            tile_row = _advance(tile_row, row_stride, n_tile_rows)

    return run


@functools.lru_cache
def _visitor(n_floats: int, size: int, col_bytes: int, form: Form) -> Callable[..., None]:
    """Return the visits to the groups of one size of a tile; to measure ratings of larger groups, `size` is 1."""
    step, ask_for = step_of_group(n_floats, size, col_bytes, form), ask_for_group(n_floats, size, col_bytes)
    is_training = form.is_training
    ahead = np.uint64(max(1, min(16, PREFETCHED_BYTES // (8 * n_floats)) // size))
    row_bytes, visit_size = np.uint64(4 * n_floats), np.uint64(size)
    column_bytes, value_bytes = np.uint64(size * col_bytes), np.uint64(size) * FLOAT_BYTES
    line_bytes = np.uint64(form.line_bytes)

    @compiled(n_floats, size, col_bytes, form)
    def visit(rows, first, n_groups, group_size, at, cols, values, weights, numbers, costs, draw):
        steps, constants = numbers
        a_row = np.uint64(1) if is_training else group_size // visit_size  # visits to each row
        n = n_groups * a_row
        stride, position = _visits(n, draw)
        coming = position
        for _ in range(min(n, ahead)):
            u = np.uint64(rows[first + coming // a_row])
            ask_for(at.P + u * row_bytes, at.b_u + u * FLOAT_BYTES, at.Q, at.b_i, cols + coming * column_bytes)
            coming = _advance(coming, stride, n)
        for _ in range(n):
            u = np.uint64(rows[first + coming // a_row])
            ask_for(at.P + u * row_bytes, at.b_u + u * FLOAT_BYTES, at.Q, at.b_i, cols + coming * column_bytes)
            coming = _advance(coming, stride, n)
            u = np.uint64(rows[first + position // a_row])
            place = at.P + u * row_bytes, at.b_u + u * FLOAT_BYTES, at.s_u + u * line_bytes, at.Q, at.b_i, at.s_i
            offset = position * value_bytes
            of_ratings = cols + position * column_bytes, values + offset, weights + offset
            step(*place, *of_ratings, steps, constants, costs.ctypes.data)
            position = _advance(position, stride, n)

    return visit


@compiled()
def _mix(x):
    """Return the next draw after x: one step of splitmix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled()
def _visits(n, draw):
    """Return a stride that is coprime with n, not close to 0 or n, and a start: an order of n things."""
    if n < np.uint64(3):
        return np.uint64(1), np.uint64(0) if n == np.uint64(0) else draw % n
    stride = n // np.uint64(8) + (draw >> np.uint64(32)) % (n - n // np.uint64(4))
    while True:
        stride += np.uint64(1)
        a, b = n, stride
        while b != np.uint64(0):
            a, b = b, a % b
        if a == np.uint64(1):
            return stride % n, (draw & np.uint64(0xFFFFFFFF)) % n


@compiled()
def _advance(position, stride, n):
    position += stride
    return position - n if position >= n else position
