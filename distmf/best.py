"""Vectors of users and of items -> the items with the largest products for each user, without a table of all products.

The items lie in panels of as many as fit in a cache line, so that the products of a few users with a panel stay in
registers; only those above the least of a user's best so far, which are a heap, are looked at one by one. Users meet
the items in parts that stay in the cache. Among equal products, the item that comes first is the best.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from distmf.buffers import aligned_empty
from distmf.compiled import compiled
from distmf.lanes import FLOAT32
from distmf.pairs import in_threads
from distmf.vectors import INT64, LANES, LINE, Code

USERS = 6  # that meet a panel at once: sums of their products fit in 16 registers of 8 floats, and keep them busy
USERS_AT_ONCE = 32 * USERS  # of a thread
CACHED_FLOATS = 1 << 17  # of panels

Float32 = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class Rated(NamedTuple):
    """Items that users have rated.

    Attributes
    ----------
    begins : int64, shape (n_users + 1,)
        Where the items of each user begin, and in the end their number.
    items : int64, shape (n,)
        Their positions, ascending for each user.
    """

    begins: Numbers
    items: Numbers

    @classmethod
    def of_pairs(cls, users: Numbers, items: Numbers, n_users: int) -> "Rated":
        """Return the same, of pairs of positions in any order."""
        order = np.lexsort((items, users))
        return cls(np.searchsorted(users[order], np.arange(n_users + 1)), items[order])

    @classmethod
    def among(cls, users: Numbers, items: Numbers, wanted: Numbers, among: Numbers) -> "Rated":
        """Return the same, as far as users and items are in these, ascending, which then number them."""
        user_places, item_places = np.searchsorted(wanted, users), np.searchsorted(among, items)
        is_there = wanted[np.minimum(user_places, len(wanted) - 1)] == users if len(wanted) else users < 0
        is_there &= among[np.minimum(item_places, len(among) - 1)] == items
        return cls.of_pairs(user_places[is_there], item_places[is_there], len(wanted))


class Panels:
    """Items as they are searched.

    Parameters
    ----------
    factors : float32, shape (n_items, rank)
        Of the items.
    biases : float32, shape (n_items,)
        Theirs; −∞ for items that are not to be found.
    """

    def __init__(self, factors: Float32, biases: Float32) -> None:
        n_items, rank = factors.shape
        n = -(-n_items // LANES)
        self.lines = aligned_empty(n * (rank + 1), LANES).reshape(n, rank + 1, LANES)
        for panel in range(n):
            some = slice(panel * LANES, (panel + 1) * LANES)
            width = len(biases[some])
            self.lines[panel, :rank, :width], self.lines[panel, :rank, width:] = factors[some].T, 0
            self.lines[panel, rank, :width], self.lines[panel, rank, width:] = biases[some], -np.inf

    def best(self, users: Float32, n: int, rated: Rated | None = None) -> tuple[Numbers, Float32]:
        """Return the positions and the products, with the bias, of the `n` best items of each user, best first.

        Parameters
        ----------
        users : float32, shape (n_users, rank)
            Their factors.
        n : int
            How many items.
        rated : Rated, optional
            Items that are not to be found.

        Returns
        -------
        positions : int64, shape (n_users, n)
            0 where no item is left.
        scores : float32, shape (n_users, n)
            −∞ there.
        """
        n_users = len(users)
        positions, scores = np.zeros((n_users, n), np.int64), np.full((n_users, n), -np.inf, np.float32)
        begins, items = (np.zeros(n_users + 1, np.int64), np.zeros(0, np.int64)) if rated is None else rated

        def search(begin: int) -> None:
            some = slice(begin, begin + USERS_AT_ONCE)
            some_begins = begins[begin : begin + USERS_AT_ONCE + 1]
            _search(_tiles(users[some]), self.lines, some_begins, items, positions[some], scores[some])

        for _ in in_threads(search, range(0, n_users, USERS_AT_ONCE)):
            pass
        return positions, scores


def _tiles(users: Float32) -> Float32:
    """Return the vectors of users, with a one for the bias, as they meet panels: shape (n_tiles, rank + 1, USERS)."""
    n_users, rank = users.shape
    found = np.zeros((-(-n_users // USERS) * USERS, rank + 1), dtype=np.float32)
    found[:n_users, :rank], found[:n_users, rank] = users, 1
    return np.ascontiguousarray(found.reshape(-1, USERS, rank + 1).transpose(0, 2, 1))


@intrinsic
def _products(typing_context, users, panel, rank, least, out):
    """Put the products of `USERS` users with a panel at `out`; return a bit for each user with one above its least."""

    def codegen(context, builder, signature, arguments):
        users, panel, rank, least, out = arguments
        code, zero = Code(builder), ir.Constant(LINE, [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(USERS)]
        with cgutils.for_range(builder, rank, intp=INT64) as loop:
            items = code.load(code.indexed(panel, loop.index, 4 * LANES), LINE, 4 * LANES)
            place = code.indexed(users, loop.index, 4 * USERS)
            for n, total in enumerate(sums):
                value = code.load(code.offset(place, 4 * n), FLOAT32)
                factor = code.splat(code.gather([value]), 0, LANES)
                builder.store(code.fma(factor, items, builder.load(total)), total)
        found = ir.Constant(INT64, 0)
        for n, total in enumerate(sums):
            products = builder.load(total)
            code.store(products, code.offset(out, 4 * LANES * n))
            bound = code.splat(code.gather([code.load(code.offset(least, 4 * n), FLOAT32)]), 0, LANES)
            is_above = builder.bitcast(builder.fcmp_ordered(">", products, bound), ir.IntType(LANES))
            any_above = builder.icmp_unsigned("!=", is_above, ir.Constant(ir.IntType(LANES), 0))
            found = builder.or_(found, builder.shl(builder.zext(any_above, INT64), ir.Constant(INT64, n)))
        return found

    return types.uint64(users, panel, rank, least, out), codegen


@compiled()
def _search(tiles, panels, begins, rated, positions, scores):
    n_tiles, rank = tiles.shape[0], tiles.shape[1]
    n_users, n_best = scores.shape
    at_once = max(1, CACHED_FLOATS // (rank * LANES))
    least, products = np.full((n_tiles, USERS), -np.inf, np.float32), np.empty((USERS, LANES), np.float32)
    for first in range(0, panels.shape[0], at_once):
        for tile in range(n_tiles):
            for panel in range(first, min(first + at_once, panels.shape[0])):
                found = _products(
                    np.uint64(tiles[tile].ctypes.data),
                    np.uint64(panels[panel].ctypes.data),
                    np.uint64(rank),
                    np.uint64(least[tile].ctypes.data),
                    np.uint64(products.ctypes.data),
                )
                for n in range(USERS):
                    user = tile * USERS + n
                    if (found >> np.uint64(n)) & np.uint64(1) and user < n_users:
                        of_user = rated[begins[user] : begins[user + 1]]
                        for lane in range(LANES):
                            score, item = products[n, lane], panel * LANES + lane
                            if score > least[tile, n] and not _holds(of_user, item):
                                _sink(positions[user], scores[user], n_best, item, score)
                                least[tile, n] = scores[user, 0]
    for user in range(n_users):
        _sort(positions[user], scores[user])


@compiled()
def _holds(numbers, number):
    """Return whether one of some ascending numbers is a number."""
    k = np.searchsorted(numbers, number)
    return k < len(numbers) and numbers[k] == number


@compiled()
def _sink(positions, scores, size, position, score):
    """Put an item in place of the first of a heap, whose first is the worst: the least, of equal ones the last item."""
    k, child = 0, 1
    while child < size:
        other = child + 1
        if other < size and _is_worse(scores[other], positions[other], scores[child], positions[child]):
            child = other
        if not _is_worse(scores[child], positions[child], score, position):
            break
        scores[k], positions[k] = scores[child], positions[child]
        k, child = child, 2 * child + 1
    scores[k], positions[k] = score, position


@compiled()
def _is_worse(score, position, other_score, other_position):
    return score < other_score or (score == other_score and position > other_position)


@compiled()
def _sort(positions, scores):
    """Turn a heap into a list, best first."""
    for last in range(len(scores) - 1, 0, -1):
        position, score = positions[last], scores[last]
        positions[last], scores[last] = positions[0], scores[0]
        _sink(positions, scores, last, position, score)
