"""A nightly job on a Dask cluster: block, train with a checkpoint, evaluate, recommend to everybody.

    python examples/cluster_job.py ratings/ out/                                  # two processes of this machine
    python examples/cluster_job.py ratings/ out/ --scheduler tcp://scheduler:8786
    python examples/cluster_job.py s3://bucket/ratings/ s3://bucket/out/ --scheduler tcp://scheduler:8786

Whatever is killed, workers or this script: the same command goes on where it was, and ends with the same model, bit for
bit. So a batch system may just start it again. All machines must see ratings and results under the same path or URL.
"""

import argparse
import contextlib
import logging
from collections.abc import Iterator

import distributed

import distmf


def main() -> None:
    """Do the job, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ratings", help="Parquet: a file, a folder or a URL")
    parser.add_argument("out", help="folder or URL for the results")
    parser.add_argument("--scheduler", help="address of a running cluster (default: processes of this machine)")
    parser.add_argument("--workers", type=int, default=2, help="without --scheduler: how many (default: 2)")
    parser.add_argument("--rank", type=int, default=64, help="latent factors (default: 64)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the ratings (default: 15)")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}; at least 1 is needed")
    out = args.out.rstrip("/")

    with client_of(args.scheduler, args.workers) as client, distmf.watch() as rest:
        parts = distmf.split(args.ratings, f"{out}/parts", by="user", test_size=0.05, client=client)
        # Two row blocks and two column blocks for each thread: while one waits for a column, the other has one.
        n_blocks = 2 * sum(client.nthreads().values())
        grid = (n_blocks, n_blocks)
        blocks = distmf.block_ratings(
            parts.train, f"{out}/blocks", holdout=0.05, grid=grid, rank=args.rank, client=client
        )
        mf = distmf.MatrixFactorization(args.rank, epochs=args.epochs)
        mf.fit(blocks, client=client, checkpoint=f"{out}/checkpoint", resume=True)
        mf.save(f"{out}/model")
        n_rows = distmf.recommend_all(f"{out}/model", f"{out}/best", 10, exclude=blocks, client=client)
        rest()

    found = distmf.evaluate(mf, parts.test)
    print(mf.history_.summary())
    print(mf.diagnose())
    print(f"on {found['n']:,} ratings that it has not seen: RMSE {found['rmse']:.4f}, MAE {found['mae']:.4f}")
    print(f"{n_rows:,} recommendations are in {out}/best")


@contextlib.contextmanager
def client_of(scheduler: str | None, n_workers: int) -> Iterator[distributed.Client]:
    """Yield a client of a running cluster, or of one that ends with the block."""
    if scheduler is not None:
        with distributed.Client(scheduler, set_as_default=False) as client:
            yield client
        return
    with (
        distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


if __name__ == "__main__":  # workers import this file, and must not do the job as well
    try:
        main()
    except (distmf.errors.DistMFError, OSError) as err:
        raise SystemExit(str(err)) from None
