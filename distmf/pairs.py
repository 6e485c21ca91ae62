"""Factors, biases, and places of users and items in pairs -> the scores of the pairs, compiled and in threads."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from distmf.compiled import compiled
from distmf.lanes import FLOAT32
from distmf.vectors import INT64, LANES, LINE, Code

PAIRS_AT_ONCE = 1 << 16  # of a thread
AHEAD = 8  # pairs whose factors are asked for ahead of time

Float32 = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Given = TypeVar("Given")
Found = TypeVar("Found")


def in_threads(function: Callable[[Given], Found], given: Iterable[Given]) -> Iterator[Found]:
    """Yield what a function returns for each of some things, in their order; a few of them wait at any time."""
    n_threads, things = len(os.sched_getaffinity(0)), iter(given)
    with ThreadPoolExecutor(n_threads) as threads:
        waiting: list[Future[Found]] = [threads.submit(function, thing) for thing in islice(things, n_threads + 1)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [threads.submit(function, thing) for thing in islice(things, 1)]


def scores_of_pairs(users: Any, items: Any, rows: Numbers, cols: Numbers, mean: float) -> Float32:
    """Return the mean, and what is known of the biases and of the product, of each pair.

    Parameters
    ----------
    users, items : Side
        Whose factors and biases are added.
    rows, cols : int64, shape (n,)
        Positions of the users and of the items; -1 for those that are not known.
    mean : float
        Of all scores.
    """
    found = np.empty(len(rows), dtype=np.float32)
    of_users, of_items = ((np.ascontiguousarray(side.factors), side.biases) for side in (users, items))

    def add_up(begin: int) -> None:
        some = slice(begin, begin + PAIRS_AT_ONCE)
        _add_up(*of_users, *of_items, rows[some], cols[some], np.float32(mean), found[some])

    if len(rows) <= PAIRS_AT_ONCE:
        add_up(0)
    else:
        for _ in in_threads(add_up, range(0, len(rows), PAIRS_AT_ONCE)):
            pass
    return found


@compiled()
def _add_up(P, b_u, Q, b_i, rows, cols, mean, found):
    rank, n = np.uint64(P.shape[1]), len(rows)
    row_bytes = rank * np.uint64(4)
    users, items = np.uint64(P.ctypes.data), np.uint64(Q.ctypes.data)
    for t in range(n):
        later = min(t + AHEAD, n - 1)
        _ask_for(users + np.uint64(max(0, rows[later])) * row_bytes, rank)
        _ask_for(items + np.uint64(max(0, cols[later])) * row_bytes, rank)
        u, i = rows[t], cols[t]
        biases = (b_u[u] if u >= 0 else np.float32(0)) + (b_i[i] if i >= 0 else np.float32(0))
        score = mean + biases
        if u >= 0 and i >= 0:
            score += _product(users + np.uint64(u) * row_bytes, items + np.uint64(i) * row_bytes, rank)
        found[t] = score


@intrinsic
def _ask_for(typing_context, row, rank):
    """Ask for a row of factors ahead of time."""

    def codegen(context, builder, signature, arguments):
        row, rank = arguments
        code, per_line = Code(builder), ir.Constant(INT64, LANES)
        with cgutils.for_range_slice(builder, ir.Constant(INT64, 0), rank, per_line, INT64) as (offset, _):
            code.prefetch(code.indexed(row, offset, 4))
        return context.get_dummy_value()

    return types.void(row, rank), codegen


@intrinsic
def _product(typing_context, p, q, rank):
    """Return the product of two rows of factors, whole cache lines in vectors, and what is left one by one."""

    def codegen(context, builder, signature, arguments):
        p, q, rank = arguments
        code, lanes = Code(builder), ir.Constant(INT64, LANES)
        total = cgutils.alloca_once_value(builder, ir.Constant(LINE, [0.0] * LANES))
        whole = builder.sub(rank, builder.urem(rank, lanes))
        with cgutils.for_range_slice(builder, ir.Constant(INT64, 0), whole, lanes, INT64) as (offset, _):
            a, b = (code.load(code.indexed(row, offset, 4), LINE) for row in (p, q))
            builder.store(code.fma(a, b, builder.load(total)), total)
        found = cgutils.alloca_once_value(builder, code.lanes(code.sums([builder.load(total)]))[0])
        with cgutils.for_range_slice(builder, whole, rank, ir.Constant(INT64, 1), INT64) as (offset, _):
            a, b = (code.load(code.indexed(row, offset, 4), FLOAT32) for row in (p, q))
            builder.store(builder.fadd(builder.load(found), builder.fmul(a, b)), found)
        return builder.load(found)

    return types.float32(p, q, rank), codegen
