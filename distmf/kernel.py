"""One block of ratings, its row factors and its column factors -> updated factors and the block's cost.

This is the only compiled part of training. It knows nothing of files, grids or Dask. A pass visits the tiles of a block
row of tiles by row of tiles, and the ratings of a tile, in an order that `seed` draws anew: strides that are coprime
with the number of things to visit, so that an order costs no memory and no time.

One rating is one step of LLVM vectors over the padded rank, emitted by an intrinsic, because numba cannot prove that a
row of P and a row of Q do not overlap and so leaves plain loops over them scalar. `reassoc` and `contract` are all that
the vector code needs; flags that assume NaN away would hide divergence.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from distmf.buffers import CACHE_LINE, aligned_copy, aligned_empty
from distmf.encoding import Encoding

LANES = 16  # floats in a cache line; rows are padded to a multiple of it and start on a line
MAX_RANK = 512
PREFETCHED_BYTES = 6 << 10  # of rows asked for ahead of time: they must stay in the L1 cache until they are needed
_FLAGS = ("reassoc", "contract")

Factors = npt.NDArray[np.float32]


class Ratings(NamedTuple):
    """The ratings of one block in tiles, as the kernel reads them.

    Attributes
    ----------
    offsets : int64, shape (n_tile_rows * n_tile_cols + 1,)
        Where the ratings of each tile begin; tiles lie row by row.
    rows, cols : uint8 or uint16, shape (n,)
        Row and column within the tile.
    values : uint8, uint16 or float32, shape (n,)
        The ratings, in `encoding`.
    encoding : Encoding
        What the values stand for.
    tile_shape : tuple of int
        Rows and columns of a tile.
    n_tile_cols : int
        Tiles side by side.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.unsignedinteger[Any]]
    cols: npt.NDArray[np.unsignedinteger[Any]]
    values: npt.NDArray[Any]
    encoding: Encoding
    tile_shape: tuple[int, int]
    n_tile_cols: int


class FactorBlock(NamedTuple):
    """Factors and biases of a row block or a column block.

    Attributes
    ----------
    factors : float32, shape (n, padded_rank)
        P_i or Q_j in units of the square root of the ratings' scale; from `aligned_empty`; columns from `rank` on zero.
    biases : float32, shape (n,)
        b_u or b_i, in units of the ratings' scale.
    """

    factors: Factors
    biases: npt.NDArray[np.float32]


class Tiles(NamedTuple):
    """Shape of a tile, and how many lie side by side."""

    height: int
    width: int
    n_cols: int


def padded_rank(rank: int) -> int:
    """Return the number of floats that a row of factors takes: `rank` rounded up to whole cache lines."""
    return -(-rank // LANES) * LANES


def compile_for(ratings: Ratings, rank: int) -> None:
    """Compile the passes over blocks like `ratings`, which may be empty, so that no task has to wait for it."""
    nothing = ratings._replace(offsets=np.zeros(2, dtype=np.int64), n_tile_cols=1)
    rows, cols = (FactorBlock(aligned_empty(1, padded_rank(rank)), np.empty(1, dtype=np.float32)) for _ in range(2))
    hyper = Hyperparameters(0.0, 1.0, 0.0, 0.0)
    train_block(nothing, rows, cols, hyper, 0.0, 0)
    measure_block(nothing, rows, cols, hyper)


class Hyperparameters(NamedTuple):
    """What one pass needs besides ratings and factors; every number is cast to float32 once, before the kernel.

    Attributes
    ----------
    mean, scale : float
        Mean and standard deviation of the ratings: the kernel works on (rating - mean) / scale.
    reg, bias_reg : float
        λ of the factors and λ_b of the biases, per rating, on ratings of unit standard deviation.
    """

    mean: float
    scale: float
    reg: float
    bias_reg: float


def train_block(
    ratings: Ratings, rows: FactorBlock, cols: FactorBlock, hyper: Hyperparameters, step_size: float, seed: int
) -> float:
    """Update `rows` and `cols` in place with one SGD step per rating and return the sum of squared errors.

    For each rating, with error e = r − μ − b_u − b_i − p_u·q_i and all values from before the rating::

        b_u += η (e − λ_b b_u)      p_u += η (e q_i − λ p_u)
        b_i += η (e − λ_b b_i)      q_i += η (e p_u − λ q_i)

    Parameters
    ----------
    ratings : Ratings
        The block.
    rows, cols : FactorBlock
        P and b_u of the users, Q and b_i of the items.
    hyper : Hyperparameters
        μ, the scale of the ratings, λ and λ_b.
    step_size : float
        η.
    seed : int
        Draws the order of the visits; from 0 to 2**64 - 1.

    Returns
    -------
    float
        Σ e², each error from before the rating's own update, in units of `hyper.scale` squared. Not finite if the
        factors diverged.

    References
    ----------
    .. [1] Y. Koren, R. Bell, C. Volinsky, "Matrix Factorization Techniques for Recommender Systems", Computer, 2009.
    """
    return _pass(ratings, rows, cols, hyper, step_size, seed, training=True)


def measure_block(ratings: Ratings, rows: FactorBlock, cols: FactorBlock, hyper: Hyperparameters) -> float:
    """Return the sum of squared errors of a block, in units of `hyper.scale` squared, without changing anything.

    Parameters are those of `train_block`.
    """
    rows, cols = (FactorBlock(_aligned(side.factors), _read_only(side.biases)) for side in (rows, cols))
    return _pass(ratings, rows, cols, hyper, 0.0, 0, training=False)


def _pass(
    ratings: Ratings,
    rows: FactorBlock,
    cols: FactorBlock,
    hyper: Hyperparameters,
    step_size: float,
    seed: int,
    *,
    training: bool,
) -> float:
    """Call the compiled pass with arguments that are always of the same types, so that one signature is compiled."""
    encoding = ratings.encoding
    run = _compiled(rows.factors.shape[1], len(encoding.table) > 0, training=training)
    addresses = np.uintp(rows.factors.ctypes.data), np.uintp(cols.factors.ctypes.data)
    assert addresses[0] % 64 == addresses[1] % 64 == 0
    table = ((np.array(encoding.table, dtype=np.float64) - hyper.mean) / hyper.scale).astype(np.float32)
    arrays = [_read_only(array) for array in (*ratings[:4], table)]
    unit = encoding.step or 1.0  # of the values, if they are no codes
    mean, inverse_scale = (hyper.mean - encoding.low) / unit, unit / hyper.scale
    with np.errstate(over="ignore"):  # what overflows makes the cost infinite, and that is seen
        numbers = np.array([mean, inverse_scale, step_size, hyper.reg, hyper.bias_reg]).astype(np.float32)
    tiles = Tiles(*ratings.tile_shape, ratings.n_tile_cols)
    return run(*arrays, tiles, *addresses, rows.biases, cols.biases, *numbers, np.uint64(seed))


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
def _compiled(n_floats: int, coded: bool, *, training: bool) -> Callable[..., float]:
    """Return the pass for rows of `n_floats` floats; numba compiles it at the first call, under its own lock."""
    step, prefetch_row, prefetch_bias = _step(n_floats, training=training), _prefetch(n_floats), _prefetch(1)
    row_bytes, bias_bytes = np.uint64(4 * n_floats), np.uint64(4)
    distance = np.uint64(max(2, min(16, PREFETCHED_BYTES // (8 * n_floats))))

    @nb.njit(nogil=True)
    def ask_for(addresses, u, i):
        P, Q, b_u, b_i = addresses
        prefetch_row(P + u * row_bytes)
        prefetch_row(Q + i * row_bytes)
        prefetch_bias(b_u + u * bias_bytes)
        prefetch_bias(b_i + i * bias_bytes)

    @nb.njit(nogil=True, boundscheck=False, error_model="numpy")
    def run(
        offsets, rows, cols, values, table, tiles, P, Q, b_u, b_i, mean, inverse_scale, step_size, reg, bias_reg, seed
    ):
        n_tile_cols = np.uint64(tiles.n_cols)
        n_tile_rows = np.uint64(len(offsets) - 1) // n_tile_cols
        decay, bias_decay = np.float32(1) - step_size * reg, np.float32(1) - step_size * bias_reg
        addresses = P, Q, np.uint64(b_u.ctypes.data), np.uint64(b_i.ctypes.data)
        squared = 0.0
        centred = np.empty(_longest(offsets), dtype=np.float32)
        draw = _mix(seed)
        row_stride, tile_row = _visits(n_tile_rows, draw)
        for _ in range(n_tile_rows):
            draw = _mix(draw)
            col_stride, tile_col = _visits(n_tile_cols, draw)
            for _ in range(n_tile_cols):
                tile = tile_row * n_tile_cols + tile_col
                begin, n = np.uint64(offsets[tile]), np.uint64(offsets[tile + np.uint64(1)] - offsets[tile])
                first_row, first_col = tile_row * np.uint64(tiles.height), tile_col * np.uint64(tiles.width)
                draw = _mix(draw)
                stride, position = _visits(n, draw)
                for k in range(n):  # for a tile at once this takes vectors; rating by rating it costs 8 % of the speed
                    value = values[begin + k]
                    centred[k] = table[value] if coded else (np.float32(value) - mean) * inverse_scale
                ahead = position
                for _ in range(min(n, distance)):
                    t = begin + ahead
                    ask_for(addresses, first_row + np.uint64(rows[t]), first_col + np.uint64(cols[t]))
                    ahead = _advance(ahead, stride, n)
                for _ in range(n):
                    t = begin + ahead
                    ask_for(addresses, first_row + np.uint64(rows[t]), first_col + np.uint64(cols[t]))
                    ahead = _advance(ahead, stride, n)
                    k = position
                    t = begin + k
                    position = _advance(position, stride, n)
                    u, i = first_row + np.uint64(rows[t]), first_col + np.uint64(cols[t])
                    bias_u, bias_i = b_u[u], b_i[i]
                    residual = centred[k] - bias_u - bias_i
                    error = step(P + u * row_bytes, Q + i * row_bytes, residual, step_size, decay)
                    squared = _fma(np.float64(error), np.float64(error), squared)
                    if training:
                        gain = step_size * error
                        b_u[u] = _fma(bias_u, bias_decay, gain)
                        b_i[i] = _fma(bias_i, bias_decay, gain)
                tile_col = _advance(tile_col, col_stride, n_tile_cols)
            tile_row = _advance(tile_row, row_stride, n_tile_rows)
        return squared

    return run


@nb.njit(nogil=True)
def _longest(offsets):
    """Return the number of ratings of the fullest tile."""
    longest = 0
    for tile in range(len(offsets) - 1):
        longest = max(longest, offsets[tile + 1] - offsets[tile])
    return longest


@intrinsic
def _fma(typing_context, a, b, c):
    """Return a * b + c, rounded once, in one instruction."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, a, a), codegen


def _prefetch(n_floats: int) -> Any:
    """Return the intrinsic that asks for the cache lines of a row ahead of time."""

    @intrinsic
    def prefetch(typing_context, address):
        def codegen(context, builder, signature, arguments):
            int32, int64, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
            name = "llvm.prefetch.p0"
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32]), name
            )
            # For reading, into the nearest cache, data and not instructions.
            hints = [ir.Constant(int32, hint) for hint in (0, 3, 1)]
            for line in range(-(-n_floats // LANES)):
                place = builder.add(arguments[0], ir.Constant(int64, 4 * LANES * line))
                builder.call(function, [builder.inttoptr(place, pointer), *hints])

        return types.void(types.uintp), codegen

    return prefetch


@nb.njit(nogil=True)
def _mix(x):
    """Return the next draw after x: one step of splitmix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit(nogil=True)
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


@nb.njit(nogil=True)
def _advance(position, stride, n):
    position += stride
    return position - n if position >= n else position


def _step(n_floats: int, *, training: bool) -> Any:
    """Return the intrinsic of one rating: it takes the addresses of p and q, updates them, and returns the error."""
    vector = ir.VectorType(ir.FloatType(), LANES)
    n_vectors = n_floats // LANES

    @intrinsic
    def step(typing_context, p_address, q_address, residual, step_size, decay):
        signature = types.float32(types.uintp, types.uintp, types.float32, types.float32, types.float32)

        def codegen(context, builder, signature, arguments):
            p_address, q_address, residual, step_size, decay = arguments
            float32, int32, int64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)

            def pointers(address):
                offsets = [ir.Constant(int64, 4 * LANES * n) for n in range(n_vectors)]
                return [builder.inttoptr(builder.add(address, offset), vector.as_pointer()) for offset in offsets]

            def load(pointer):
                value = builder.load(pointer)
                value.align = 64
                return value

            def splat(value):
                undefined = ir.Constant(vector, ir.Undefined)
                single = builder.insert_element(undefined, value, ir.Constant(int32, 0))
                return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(int32, LANES), [0] * LANES))

            def multiply_add(a, b, c, d):
                products = builder.fmul(a, b, flags=_FLAGS), builder.fmul(c, d, flags=_FLAGS)
                return builder.fadd(*products, flags=_FLAGS)

            p_pointers, q_pointers = pointers(p_address), pointers(q_address)
            p, q = [load(x) for x in p_pointers], [load(x) for x in q_pointers]
            terms = [builder.fmul(builder.fneg(a), b, flags=_FLAGS) for a, b in zip(p, q, strict=True)]
            while len(terms) > 1:  # a tree: short chains of dependent additions
                rest = terms[len(terms) // 2 * 2 :]
                terms = [builder.fadd(a, b, flags=_FLAGS) for a, b in zip(terms[::2], terms[1::2], strict=False)] + rest
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            reduce = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(float32, [float32, vector]), name
            )
            error = builder.call(reduce, [residual, *terms], fastmath=_FLAGS)
            if training:
                gain, decay = splat(builder.fmul(step_size, error)), splat(decay)
                for a, b, to_p, to_q in zip(p, q, p_pointers, q_pointers, strict=True):
                    new_p, new_q = multiply_add(a, decay, b, gain), multiply_add(b, decay, a, gain)
                    builder.store(new_p, to_p).align = 64
                    builder.store(new_q, to_q).align = 64
            return error

        return signature, codegen

    return step
