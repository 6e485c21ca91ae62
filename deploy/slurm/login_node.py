"""Train from a login node: the driver runs here, and every worker is a Slurm job that dask-jobqueue submits.

The driver must live as long as the training, so start it in tmux or the like. Started again with the same arguments, it
goes on from the checkpoint. Workers leave before their time is over, and jobs that end are replaced.
"""

import argparse
import logging

import dask.config
from dask_jobqueue import SLURMCluster
from distributed import Client

from distmf import MatrixFactorization
from distmf.cluster import SETTINGS

# As in SETTINGS, which jobs do not inherit: factors stay in memory.
PROLOGUE = [f"export DASK_DISTRIBUTED__WORKER__MEMORY__{name}=False" for name in ("TARGET", "SPILL")]


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("blocks", help="made by distmf block; on storage that all nodes see, as is the checkpoint")
    parser.add_argument("model")
    parser.add_argument("checkpoint")
    parser.add_argument("--interface", required=True, help="network interface that all nodes share, such as ib0")
    parser.add_argument("--jobs", type=int, default=4, help="workers, of one core each")
    parser.add_argument("--memory", default="2 GiB", help="of a worker")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    return parser.parse_args()


def main() -> None:
    """Train, and save the model."""
    args = arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("distmf").setLevel(logging.INFO)
    with (
        dask.config.set(SETTINGS),
        SLURMCluster(
            cores=1,
            memory=args.memory,
            walltime="01:00:00",
            interface=args.interface,
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            worker_extra_args=["--lifetime=50m", "--lifetime-stagger=5m", "--dashboard-address=127.0.0.1:0"],
            job_script_prologue=PROLOGUE,
            log_directory="distmf-workers",
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum_jobs=args.jobs, maximum_jobs=args.jobs)
        client.wait_for_workers(args.jobs)
        mf = MatrixFactorization(rank=args.rank, epochs=args.epochs)
        mf.fit(args.blocks, client=client, checkpoint=args.checkpoint, resume=True).save(args.model)


if __name__ == "__main__":
    main()
