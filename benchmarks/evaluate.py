"""How fast a model that is loaded predicts pairs, and compares its predictions with ratings in Parquet.

    python benchmarks/evaluate.py --ratings 1e7 --users 1e5 --items 1e4 --rank 64

Ratings are drawn from a known model, and a model is trained on them for three epochs, saved and loaded. The table has
the medians of `--rounds`, after one that compiles: `distmf.evaluate` of all ratings, on one thread and on all cores,
and `predict` of `--pairs` pairs of ids at random.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # so that `benchmarks` is found

import distmf  # noqa: E402
from benchmarks.common import count, in_turn, machine, markdown, seconds_of  # noqa: E402


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=count, default=10_000_000)
    parser.add_argument("--users", type=count, default=100_000)
    parser.add_argument("--items", type=count, default=10_000)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--pairs", type=count, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    n_cores = len(os.sched_getaffinity(0))
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        ratings = f"{folder}/ratings"
        distmf.datasets.planted_ratings(ratings, options.ratings, options.users, options.items, seed=0)
        distmf.MatrixFactorization(options.rank, epochs=3).fit(ratings).save(f"{folder}/model")
        mf, rng = distmf.load(f"{folder}/model"), np.random.default_rng(0)
        pairs = rng.choice(mf.user_ids_, options.pairs), rng.choice(mf.item_ids_, options.pairs)
        runs: dict[tuple[str, int], Callable[[], Any]] = {
            ("evaluate, 1 thread", options.ratings): lambda: distmf.evaluate(mf, ratings, threads=1),
            (f"evaluate, {n_cores} threads", options.ratings): lambda: distmf.evaluate(mf, ratings),
            ("predict", options.pairs): lambda: mf.predict(*pairs),
        }
        for run in runs.values():
            run()
        medians = in_turn({key: seconds_of(run) for key, run in runs.items()}, options.rounds)
    rows = [(name, f"{n:,}", f"{took:.3f}", f"{n / took / 1e6:.1f} M") for (name, n), took in medians.items()]
    print(f"\n{markdown((f'rank {options.rank}', 'ratings or pairs', 'seconds', 'per second'), rows)}")


if __name__ == "__main__":
    main()
