"""distmf beside LIBMF: updates per second, what two threads gain, and the error reached, on planted ratings.

LIBMF has no biases; distmf trains them as well. LIBMF must be built for this CPU, its default build is several times
slower (which of the two variables counts depends on the version of setuptools, and pip would reuse a wheel built
without):

    export CFLAGS="-O3 -march=native -DUSEAVX" CXXFLAGS="-O3 -march=native -DUSEAVX"
    pip install --no-cache-dir --no-binary libmf libmf
    python benchmarks/libmf.py

Updates per second come from the difference between a long and a short training, so that neither LIBMF's preparation nor
distmf's compilation counts. *Kernel* is distmf's pass over the same blocks without the schedule, the graph and the pure
tasks' copies. The last table has whole commands, from raw Parquet to a saved model.
"""

import argparse
import contextlib
import functools
import io
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path[0] = str(Path(__file__).parents[1])  # the script's own folder would hide the package of the same name

import distmf  # noqa: E402
from benchmarks.common import in_turn, machine, markdown  # noqa: E402
from distmf import kernel  # noqa: E402
from distmf.buffers import aligned_empty  # noqa: E402
from distmf.grid import BlockKey  # noqa: E402

try:
    with contextlib.redirect_stdout(io.StringIO()):
        from libmf import mf as libmf
except ImportError:
    sys.exit(f"LIBMF is not installed.\n\n{__doc__}")

SHORT, LONG = 2, 12  # epochs
TEST_SHARE = 0.05
# The binding's defaults add an L1 penalty, which costs time and accuracy; λ is the best of 0.01, 0.02 and 0.05 here.
LIBMF = {"nr_bins": 26, "lambda_p1": 0, "lambda_q1": 0, "lambda_p2": 0.05, "lambda_q2": 0.05, "quiet": True}


def seconds_libmf(ratings: np.ndarray, rank: int, threads: int, epochs: int) -> float:
    """Return the wall time of one LIBMF training."""
    model = libmf.MF(k=rank, nr_threads=threads, nr_iters=epochs, **LIBMF)
    start = time.perf_counter()
    model.fit(ratings)
    return time.perf_counter() - start


def seconds_distmf(blocks: distmf.Blocks, rank: int, threads: int, epochs: int) -> float:
    """Return the wall time of one distmf training."""
    mf = distmf.MatrixFactorization(rank, epochs=epochs, tol=0)
    start = time.perf_counter()
    mf.fit(blocks, threads=threads)
    return time.perf_counter() - start


def seconds_kernel(blocks: distmf.Blocks, rank: int) -> float:
    """Return the wall time of one pass of the kernel over all blocks, one thread, in place."""
    hyper = kernel.Hyperparameters(blocks.moments.mean, blocks.moments.std, 0.05, 0.02)
    rng = np.random.default_rng(0)
    sides = []
    for cuts in (blocks.layout.row_cuts, blocks.layout.col_cuts):
        factors = [aligned_empty(n, kernel.padded_rank(rank)) for n in np.diff(cuts)]
        for array in factors:
            array[:] = rng.normal(0, 0.1, array.shape)
        sides.append([kernel.FactorBlock(array, np.zeros(len(array), dtype=np.float32)) for array in factors])
    rows, cols = sides
    kernel.compile_for(blocks.read(BlockKey(0, 0), "train"), rank)
    start = time.perf_counter()
    for row, col in blocks.entries:
        ratings = blocks.read(BlockKey(row, col), "train")
        kernel.train_block(ratings, rows[row], cols[col], hyper, 0.02, 0)
    return time.perf_counter() - start


def errors(train: np.ndarray, test: np.ndarray, blocks: distmf.Blocks, rank: int) -> tuple[float, float]:
    """Return the test RMSE of LIBMF and distmf after 20 epochs."""
    model = libmf.MF(k=rank, nr_threads=2, nr_iters=20, **LIBMF)
    model.fit(train)
    predicted = model.predict(np.asfortranarray(test[:, :2]))  # its C code reads column by column
    mf = distmf.MatrixFactorization(rank).fit(blocks)
    ours = mf.predict(test[:, 0].astype(np.int64), test[:, 1].astype(np.int64))
    return tuple(math.sqrt(np.mean((test[:, 2] - found) ** 2)) for found in (predicted, ours))


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="small data, one round: to see that it runs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    n_ratings, n_users, n_items = (50_000, 700, 300) if args.toy else (10_000_000, 70_000, 10_000)
    ranks, rounds = ([8], 1) if args.toy else (args.ranks, args.rounds)
    print(f"{machine()}; {n_ratings:,} ratings by {n_users:,} users of {n_items:,} items, noise 0.7\n")
    with tempfile.TemporaryDirectory(prefix="distmf-bench-") as name:
        folder = Path(name)
        distmf.datasets.planted_ratings(folder / "ratings", n_ratings, n_users, n_items)
        table = pq.read_table(folder / "ratings")
        ratings = np.column_stack([table[column].to_numpy().astype(np.float32) for column in table.column_names])
        is_test = np.random.default_rng(0).random(n_ratings) < TEST_SHARE
        pq.write_table(table.filter(~is_test), folder / "train.parquet")
        train, test = ratings[~is_test], ratings[is_test]
        blocks = distmf.block_ratings(folder / "train.parquet", folder / "blocks", rank=max(ranks))
        compare(train, test, blocks, ranks, rounds)
        whole_commands(folder, rounds)


def compare(train: np.ndarray, test: np.ndarray, blocks: distmf.Blocks, ranks: list[int], rounds: int) -> None:
    """Print the table of updates per second and errors."""
    rows = []
    for rank in ranks:
        runs = {
            (threads, name, epochs): functools.partial(seconds, data, rank, threads, epochs)
            for threads in (1, 2)
            for name, seconds, data in (("libmf", seconds_libmf, train), ("distmf", seconds_distmf, blocks))
            for epochs in (SHORT, LONG)
        } | {"kernel": functools.partial(seconds_kernel, blocks, rank)}
        found = in_turn(runs, rounds)
        speed = {
            key: (LONG - SHORT) * len(train) / max(found[*key, LONG] - found[*key, SHORT], 1e-9) / 1e6
            for key in {key[:2] for key in runs if key != "kernel"}
        }
        alone = len(train) / found["kernel"] / 1e6
        ratios = [speed[threads, "distmf"] / speed[threads, "libmf"] for threads in (1, 2)]
        gain = speed[2, "distmf"] / speed[1, "distmf"]
        rows.append(
            [rank]
            + [f"{speed[threads, name]:.0f} M" for threads in (1, 2) for name in ("libmf", "distmf")]
            + [f"{alone:.0f} M", f"{alone / speed[1, 'libmf']:.1f} ×"]
            + [f"{ratio:.1f} ×" for ratio in ratios]
            + [f"{gain:.2f} ×"]
            + [f"{error:.4f}" for error in errors(train, test, blocks, rank)]
        )
    header = ["rank", "LIBMF, 1 thread", "distmf, 1 thread", "LIBMF, 2 threads", "distmf, 2 threads"]
    header += [
        "kernel, 1 thread",
        "kernel / LIBMF",
        "ratio, 1 thread",
        "ratio, 2 threads",
        "distmf: 2 threads / 1",
        "test RMSE LIBMF",
        "test RMSE distmf",
    ]
    print(markdown(header, rows), flush=True)


def whole_commands(folder: Path, rounds: int) -> None:
    """Print the wall time of `distmf block` and `distmf train`, new processes each time."""
    program = [sys.executable, "-m", "distmf"]
    commands = {
        "distmf block": ["block", "ratings", "blocks", "--threads", "2", "-q"],
        "distmf train, from raw Parquet, rank 64, 20 epochs": ["train", "ratings", "model", "--threads", "2", "-q"],
    }

    def seconds(arguments: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run([*program, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    found = in_turn({name: functools.partial(seconds, arguments) for name, arguments in commands.items()}, rounds)
    print()
    print(markdown(["whole command, 2 threads", "seconds"], [[name, f"{took:.1f}"] for name, took in found.items()]))


if __name__ == "__main__":
    main()
