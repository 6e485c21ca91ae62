"""The best items of many users: distmf beside implicit, on the same factors with the same threads.

    pip install implicit
    python benchmarks/recommend.py --users 1e5 --items 5e4 --rank 64

Factors and biases are random. Both programs take turns to find the `-n` best items of all users, none left out, by
their own exact search: distmf's `recommend`, and implicit's `recommend` of a model that has these factors, with the
biases as one more. The table has the medians of `--rounds`. That both find the same is checked first.

    python benchmarks/recommend.py --command --users 1e7 --items 1e4 --rank 16

saves such a model and runs the whole command `distmf recommend` on it: users per second, and the most memory that is
its own.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is there: implicit asks for it, its own threads are many enough

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path[0] = str(Path(__file__).parents[1])  # so that `benchmarks` is found

import distmf  # noqa: E402
from benchmarks.common import count, in_turn, machine, markdown, sampled_memory, seconds_of  # noqa: E402
from distmf.history import History  # noqa: E402
from distmf.losses import Normalisation, Objective  # noqa: E402
from distmf.model import Model  # noqa: E402
from distmf.sides import Side  # noqa: E402

CHECKED = 1000  # users


def random_side(n: int, rank: int, seed: int) -> Side:
    """Return users or items with random factors and biases."""
    rng = np.random.default_rng(seed)
    factors, biases = rng.normal(size=(n, rank)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    return Side(pa.array(np.arange(n)), factors, biases, np.ones(n, dtype=np.int64))


def search_of_implicit(model: Model, n: int, threads: int) -> Callable[[], np.ndarray]:
    """Return implicit's search for all users."""
    from implicit.cpu.als import AlternatingLeastSquares  # noqa: PLC0415 (not a dependency)

    ones = np.ones((len(model.users.biases), 1), dtype=np.float32)
    peer = AlternatingLeastSquares(factors=model.users.factors.shape[1] + 1, num_threads=threads)
    peer.user_factors = np.hstack([model.users.factors, ones])
    peer.item_factors = np.hstack([model.items.factors, model.items.biases[:, None]])
    users = np.arange(len(ones))
    return lambda: peer.recommend(users, None, N=n, filter_already_liked_items=False)[0]


def run_command(model: Model, rank: int, n: int) -> tuple[float, int, int]:
    """Run `distmf recommend` on a model; return the seconds, the bytes at most, and the rows that were written."""
    with tempfile.TemporaryDirectory() as folder:
        mf = distmf.MatrixFactorization(rank)
        mf._model = model
        mf.save(f"{folder}/model")
        command = [
            sys.executable,
            "-m",
            "distmf",
            "recommend",
            f"{folder}/model",
            f"{folder}/best",
            "-n",
            str(n),
            "--json",
        ]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process, sampled_memory(process.pid) as samples:
            output, _ = process.communicate()
        return time.perf_counter() - start, max(samples), json.loads(output)["n"]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=count, default=100_000)
    parser.add_argument("--items", type=count, default=50_000)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("-n", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--command", action="store_true", help="run the whole command instead, without a peer")
    options = parser.parse_args()
    threads, n = len(os.sched_getaffinity(0)), options.n
    users, items = (random_side(size, options.rank, seed) for seed, size in enumerate((options.users, options.items)))
    model = Model(users, items, Normalisation(0.0, 1.0, Objective()), (-1e30, 1e30), History((), "epochs"))
    if options.command:
        print(machine())
        seconds, peak, n_rows = run_command(model, options.rank, n)
        size = f"{model.n_bytes / 2**30:.1f} GiB of factors and biases"
        print(
            f"{n_rows:,} rows: {options.users / seconds:,.0f} users/s, {seconds:.1f} s, {peak / 2**20:,.0f} MiB; {size}"
        )
        return
    ids, among = pa.array(np.arange(options.users)), np.arange(options.items)
    searches = {"distmf": lambda: model.recommend(ids, n, None, "mean", model.catalogue(among)).item_ids}
    if find_spec("implicit") is not None:
        searches["implicit"] = search_of_implicit(model, n, threads)
    print(machine())

    found = [search()[:CHECKED] for search in searches.values()]
    same = float(np.mean(found[0] == found[-1]))
    medians = in_turn({name: seconds_of(search) for name, search in searches.items()}, options.rounds)
    rows = [
        (name, f"{options.users / took:,.0f}", f"{took:.2f}", f"{medians['distmf'] / took:.2f}")
        for name, took in medians.items()
    ]
    what = f"{n} of {options.items:,} items, rank {options.rank}, {threads} threads"
    print(f"\n{markdown((what, 'users/s', f'seconds for {options.users:,} users', 'speed of distmf = 1'), rows)}")
    if "implicit" in searches:
        print(f"\nOf the first {CHECKED:,} users, {100 * same:.2f} % of the items are the same in the same place.")
    else:
        print("\nimplicit is left out: pip install implicit")


if __name__ == "__main__":
    main()
