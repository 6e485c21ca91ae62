"""The main job from end to end on ratings whose best possible error is known."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.blocking import block_ratings
from distmf.datasets import planted_ratings
from distmf.describe import describe
from distmf.evaluation import evaluate
from distmf.factorization import MatrixFactorization
from distmf.loading import load

N_RATINGS, N_USERS, N_ITEMS, RANK = 3_000_000, 5_000, 2_000, 10
TEST_SHARE = 0.1
REG = 0.01  # with hundreds of ratings of every user and item there is little to guard against
N_RECOMMENDED = 5


def run_demo(seed: int, threads: int | None, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Make ratings, block them, train, evaluate and recommend; return the result in numbers and in words.

    Parameters
    ----------
    seed : int
        Of the ratings and the training.
    threads : int or None
        None means all cores.
    say : callable
        Takes each line about what is done.
    """
    with tempfile.TemporaryDirectory(prefix="distmf-demo-") as name:
        folder = Path(name)
        say(f"1. Make {N_RATINGS:,} ratings by {N_USERS:,} users of {N_ITEMS:,} items: mean, biases, factors of rank")
        say(f"   {RANK}, plus noise. Keep one in {1 / TEST_SHARE:.0f} as a test.")
        planted = planted_ratings(folder / "ratings", N_RATINGS, N_USERS, N_ITEMS, rank=RANK, seed=seed)
        _split(folder, seed)
        say("\n2. distmf block train.parquet blocks --holdout 0.05")
        block_ratings(folder / "train.parquet", folder / "blocks", holdout=0.05, rank=RANK, seed=seed, threads=threads)
        say("   " + describe(folder / "blocks")[1].replace("\n", "\n   "))
        say(f"\n3. distmf train blocks model --rank {RANK} --reg {REG}")
        mf = MatrixFactorization(RANK, reg=REG, seed=seed).fit(folder / "blocks", threads=threads)
        mf.save(folder / "model")
        say("   " + mf.history_.summary())
        say("\n4. distmf evaluate model test.parquet")
        mf = load(folder / "model")
        test = evaluate(mf, folder / "test.parquet")
        say(f"   RMSE {test['rmse']:.4f}, MAE {test['mae']:.4f} over {test['n']:,} ratings")
        say("\n5. distmf recommend model recommendations.parquet --exclude blocks")
        user = int(mf.user_ids_[0])
        best = mf.recommend(user, N_RECOMMENDED, exclude=folder / "blocks")
    truth = planted.true_ratings(np.full(N_RECOMMENDED, user), best.item_ids)
    for item, score, true in zip(best.item_ids, best.scores, truth, strict=True):
        say(f"   user {user}: item {item:>4}, predicted {score:.2f}, without noise {true:.2f}")
    ratio = test["rmse"] / planted.noise_floor
    found = {
        "test_rmse": test["rmse"],
        "noise_floor": planted.noise_floor,
        "ratio": ratio,
        "epochs": len(mf.history_),
        "stopped": mf.history_.stopped,
    }
    text = (
        f"The noise alone has an RMSE of {planted.noise_floor}: the test error is {ratio:.3f} times the best possible."
    )
    return found, text


def _split(folder: Path, seed: int) -> None:
    """Split the ratings at random into a file to train on and a file to test with."""
    table = pq.read_table(folder / "ratings")
    is_test = pa.array(np.random.default_rng(seed).random(len(table)) < TEST_SHARE)
    pq.write_table(table.filter(is_test), folder / "test.parquet")
    pq.write_table(table.filter(pa.compute.invert(is_test)), folder / "train.parquet")
