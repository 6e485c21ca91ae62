"""Two worker processes beside two threads: ratings per second of whole trainings on the same blocks, in turn.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --blocks blocks/ --rounds 5

A training counts from its first epoch to its last, checkpoints and the scheduler's work included; starting the workers
does not. The processes share their two cores with the scheduler and the driver, as on a laptop; on a cluster these two
have cores of their own.
"""

import argparse
import functools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.common import in_turn, machine, markdown  # noqa: E402
from distmf import Blocks, MatrixFactorization, block_ratings, open_blocks  # noqa: E402
from distmf.cluster import local_cluster  # noqa: E402
from distmf.datasets import planted_ratings  # noqa: E402

N_WORKERS = 2
SELDOM = 10**6  # a checkpoint at the end of a generation only, where the cluster needs one


def train(blocks: Blocks, rank: int, epochs: int, folder: Path, **where: Any) -> float:
    """Train and return the ratings per second."""
    checkpoint = folder / "checkpoint"
    every = where.pop("checkpoint_every", None)
    if every:
        where |= {"checkpoint": checkpoint, "checkpoint_every": every}
    mf = MatrixFactorization(rank, epochs=epochs, tol=0).fit(blocks, **where)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return mf.history_.ratings_per_second or 0.0


def main() -> None:
    """Run all and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=100_000_000, help="to generate")
    parser.add_argument("--blocks", help="a folder of blocks to train on instead")
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distmf-") as name:
        folder = Path(name)
        if args.blocks:
            blocks = open_blocks(args.blocks)
        else:
            n_users, n_items = max(1000, args.ratings * 7 // 1000), max(500, args.ratings // 1000)
            planted_ratings(folder / "ratings", args.ratings, n_users, n_items)
            blocks = block_ratings(folder / "ratings", folder / "blocks", grid=(args.grid, args.grid))
        with local_cluster(N_WORKERS) as client:
            run = functools.partial(train, blocks, args.rank, args.epochs, folder)
            local, cluster = "2 threads", "2 worker processes"
            each, seldom = "with a checkpoint each epoch", "without checkpoints"
            runs: dict[tuple[str, str], Callable[[], float]] = {
                (local, seldom): functools.partial(run, threads=N_WORKERS),
                (cluster, seldom): functools.partial(run, client=client, checkpoint_every=SELDOM),
                (local, each): functools.partial(run, threads=N_WORKERS, checkpoint_every=1),
                (cluster, each): functools.partial(run, client=client, checkpoint_every=1),
            }
            found = in_turn(runs, args.rounds)
    rows = [
        [
            " ".join(key),
            f"{rate / 1e6:.0f} M",
            f"{rate / found[local, seldom]:.2f}",
            f"{rate / found[key[0], seldom]:.2f}",
        ]
        for key, rate in found.items()
    ]
    print(f"{machine()}\n\n{blocks.n_ratings:,} ratings, {blocks.n_users:,} × {blocks.n_items:,}, ", end="")
    print(f"{blocks.shape.rows} × {blocks.shape.cols} blocks, rank {args.rank}, {args.epochs} epochs\n")
    print(markdown(["", "ratings/s", "of 2 threads", "of the same without checkpoints"], rows))


if __name__ == "__main__":
    main()
