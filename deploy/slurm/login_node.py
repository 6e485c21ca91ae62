"""`distmf block` or `train` from a login node: the driver runs here, every worker is a job that dask-jobqueue submits.

Usage: ``python login_node.py --interface ib0 --jobs 32 train BLOCKS MODEL --checkpoint FOLDER --resume [OPTION]...``

The driver must live as long as the training, so start it in tmux or the like; the same line goes on from the
checkpoint. Workers leave before their time is over, and jobs that end are replaced. TLS is used when Dask's
configuration says so.
"""

import signal
import socket

import click
import dask.config
from dask_jobqueue.slurm import SLURMCluster
from distributed import Client

from distmf.cli import main
from distmf.cluster import SETTINGS

# Jobs do not inherit the settings of this process.
PROLOGUE = [
    f"export DASK_{name.upper().replace('.', '__').replace('-', '_')}={value}"
    for name, value in SETTINGS.items()
    if name.startswith(("distributed.admin.", "distributed.worker."))
]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--interface", required=True, help="Network interface that all nodes share, such as ib0.")
@click.option("--jobs", type=click.IntRange(1), default=4, show_default=True, help="Workers, of one core each.")
@click.option("--memory", default="2 GiB", show_default=True, help="Of a worker.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(interface: str, jobs: int, memory: str, command: tuple[str, ...]) -> None:
    """Run COMMAND, such as `train BLOCKS MODEL --checkpoint FOLDER --resume`, with workers that are jobs of Slurm."""
    if interface not in (there := [name for _, name in socket.if_nameindex()]):
        raise click.BadParameter(f"there is no {interface!r} here, but {', '.join(there)}", param_hint="--interface")
    for number in signal.SIGINT, signal.SIGTERM:  # both end the jobs; dask-jobqueue makes Ctrl-C a success
        signal.signal(number, signal.default_int_handler)
    with (
        dask.config.set(SETTINGS),
        SLURMCluster(
            cores=1,
            memory=memory,
            walltime="01:00:00",
            interface=interface,
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            worker_extra_args=["--lifetime=50m", "--lifetime-stagger=5m", "--dashboard-address=127.0.0.1:0"],
            job_script_prologue=PROLOGUE,
            log_directory="distmf-workers",
        ) as cluster,
    ):
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        click.echo(f"waiting for {jobs} jobs to start", err=True)
        with Client(cluster) as client:
            client.wait_for_workers(jobs)
        main([*command, "--scheduler", cluster.scheduler_address], prog_name="distmf")


if __name__ == "__main__":
    run()
