"""Updates per second of the kernel, one thread, by rank and order of the ratings, against the copy bound.

    python benchmarks/kernel.py

*Tiles* is the order in which blocks lie on disk; *one tile* has the whole block in one, whose factors do not stay in
the cache. The *copy bound* visits the tiles and their ratings in random order, loads the two rows of factors of each
rating and stores them again, without arithmetic: no SGD that writes both rows in float32 at each rating can be faster
in that order. The kernel stores a row of P once for a group of up to four ratings, so it might.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.common import in_turn, machine, markdown  # noqa: E402
from distmf import kernel  # noqa: E402
from distmf.buffers import aligned_empty  # noqa: E402
from distmf.encoding import Encoding  # noqa: E402
from distmf.kernel import FactorBlock, Hyperparameters, Ratings, padded_rank  # noqa: E402
from distmf.records import group  # noqa: E402
from distmf.vectors import LANES  # noqa: E402

SHIFT = 50  # of the power laws of users and items


def draw(n: int, n_users: int, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return power-law users and items, numbered at random as blocking does, and ratings of 10 distinct values."""
    rng = np.random.default_rng(0)
    sides = []
    for size in (n_users, n_items):
        weights = 1 / (np.arange(size) + SHIFT)
        sides.append(
            rng.permutation(size)[np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(n) * 0.999999)]
        )
    return sides[0], sides[1], rng.integers(0, 10, n, dtype=np.uint8)


def arrange(rows: np.ndarray, cols: np.ndarray, codes: np.ndarray, tile_shape: tuple[int, int]) -> Ratings:
    """Return ratings as they lie in a block, in tiles of a shape."""
    height, width = tile_shape
    n_tile_rows, n_tile_cols = (
        int(lines.max()) // side + 1 for lines, side in zip((rows, cols), tile_shape, strict=True)
    )
    cells = ((rows // height * n_tile_cols + cols // width) * height + rows % height) * width + cols % width
    order = np.argsort(cells)
    arrays = group(cells[order].astype(np.uint64), codes[order], tile_shape, n_tile_rows * n_tile_cols)
    return Ratings(*arrays, Encoding(tuple(n / 2 for n in range(10))), tile_shape, n_tile_cols)


def copy_pass(n_floats: int) -> Callable[..., float]:
    """Return the traversal of tiles that only loads and stores the two rows of each rating."""
    vector = ir.VectorType(ir.FloatType(), LANES)

    @intrinsic
    def swap(typing_context, p, q):
        def codegen(context, builder, signature, arguments):
            offsets = [ir.Constant(ir.IntType(64), 4 * LANES * n) for n in range(n_floats // LANES)]
            p, q = (
                [builder.inttoptr(builder.add(address, offset), vector.as_pointer()) for offset in offsets]
                for address in arguments
            )
            loaded = [[builder.load(pointer) for pointer in pointers] for pointers in (p, q)]
            for pointers, values in ((p, loaded[1]), (q, loaded[0])):  # crosswise, or the compiler would drop them
                for pointer, value in zip(pointers, values, strict=True):
                    value.align = 64
                    builder.store(value, pointer).align = 64

        return types.void(types.uintp, types.uintp), codegen

    row_bytes, one = np.uint64(4 * n_floats), np.uint64(1)
    visits, advance, mix = kernel._visits, kernel._advance, kernel._mix

    @nb.njit(nogil=True)
    def run(starts, rows, cols, height, width, n_tile_cols, P, Q):
        n_tiles, draw = np.uint64(len(starts) - 1), mix(one)
        tile_stride, tile = visits(n_tiles, draw)
        for _ in range(n_tiles):
            begin, n = starts[tile], starts[tile + one] - starts[tile]
            first_row, first_col = tile // n_tile_cols * height, tile % n_tile_cols * width
            draw = mix(draw)
            stride, position = visits(n, draw)
            for _ in range(n):
                u, i = first_row + np.uint64(rows[begin + position]), first_col + np.uint64(cols[begin + position])
                swap(P + u * row_bytes, Q + i * row_bytes)
                position = advance(position, stride, n)
            tile = advance(tile, tile_stride, n_tiles)

    return run


def timed(run: Callable[[], Any], n: int) -> float:
    """Return millions of ratings per second."""
    start = time.perf_counter()
    run()
    return n / (time.perf_counter() - start) / 1e6


def runs_at(rank: int, orders: dict[str, Ratings], n_users: int, n_items: int) -> dict[str, Callable[[], float]]:
    """Return what is to be timed at one rank, compiled and warm."""
    rng = np.random.default_rng(rank)
    n_floats = padded_rank(rank)
    P, Q = aligned_empty(n_users, n_floats), aligned_empty(n_items, n_floats)
    b_u, b_i = np.zeros(n_users, dtype=np.float32), np.zeros(n_items, dtype=np.float32)
    hyper = Hyperparameters(2.25, 1.4, (0.05, 0.05), (0.02, 0.02))
    for factors in (P, Q):
        factors[:] = rng.normal(0, 0.1, factors.shape)

    def train(ratings: Ratings) -> None:
        kernel.train_block(ratings, FactorBlock(P, b_u), FactorBlock(Q, b_i), hyper, 0.01, 1)

    tiles, copy = orders["tiles"], copy_pass(n_floats)
    others = aligned_empty(*P.shape), aligned_empty(*Q.shape)
    for other, factors in zip(others, (P, Q), strict=True):
        other[:] = factors

    starts = np.append(0, np.cumsum(tiles.sizes())).astype(np.uint64)
    rows = (tiles.places()[0] % tiles.tile_shape[0]).astype(tiles.rows.dtype)
    shape = (np.uint64(n) for n in (*tiles.tile_shape, tiles.n_tile_cols))
    arguments = starts, rows, tiles.cols, *shape

    def only_copy() -> None:
        copy(*arguments, *(np.uintp(other.ctypes.data) for other in others))

    runs = {name: functools.partial(train, ratings) for name, ratings in orders.items()} | {"copy": only_copy}
    for run in runs.values():
        run()
    return {name: functools.partial(timed, run, len(tiles.values)) for name, run in runs.items()}


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small data, two rounds: to see that it runs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    n, n_users, n_items = (20_000, 700, 300) if args.toy else (2_000_000, 17_500, 2_500)
    ranks, rounds = ([8, 20], 2) if args.toy else (args.ranks, args.rounds)
    users, items, codes = draw(n, n_users, n_items)
    orders = {
        "tiles": arrange(users, items, codes, (256, 256)),
        "one tile": arrange(users, items, codes, (1 << n_users.bit_length(), 1 << n_items.bit_length())),
    }
    print(f"{machine()}; one block of {n:,} ratings, {n_users:,} users × {n_items:,} items\n")
    rows = []
    for rank in ranks:
        found = in_turn(runs_at(rank, orders, n_users, n_items), rounds)
        speeds = [f"{found[name]:.0f} M" for name in (*orders, "copy")]
        rows.append([rank, *speeds, f"{found['tiles'] / found['copy']:.2f}"])
    print(markdown(["rank", *orders, "copy bound", "tiles / copy bound"], rows))


if __name__ == "__main__":
    main()
