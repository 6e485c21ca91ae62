"""`distmf block` or `train` on machines that ssh reaches: the scheduler on the first, workers on all, the driver here.

Usage: ``python cluster.py HOSTS train BLOCKS MODEL --checkpoint FOLDER --resume [OPTION]...``

Start it on the first machine, where it outlives your terminal. The same line goes on from the checkpoint. TLS is used when
Dask's configuration says so.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dask.config
from distributed import Client, SpecCluster, SSHCluster, Status

from distmf.cli import main
from distmf.cluster import SETTINGS

WORKERS_SECONDS = 600
LEAVE_SECONDS = 10

# The Python that SSHCluster starts with `-m distributed.cli.dask_spec` and arguments. It leaves when its standard input
# ends, which sshd closes as soon as the driver is gone, however it went; SSHCluster alone would leave all behind.
PYTHON = f"""{shlex.quote(sys.executable)} -c '
import os, signal, sys, threading, time
from distributed.cli.dask_spec import main
def leave():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({LEAVE_SECONDS})
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=leave, daemon=True).start()
main(sys.argv[3:])'"""


def is_news(line: str) -> bool:
    """Say whether a line of a log is more than routine."""
    return " - INFO - " not in line


async def follow(process: Any, cluster: SpecCluster) -> None:
    """Repeat here what a process reports: nobody else would read it, and it would stand still when 2 MiB are unread."""
    shown = True
    async for line in process.proc.stderr:
        shown = is_news(line) and (shown or line[:1].isdigit())  # other lines go on with what the last one began
        if shown and line and cluster.status == Status.running:
            click.echo(f"{process.connection.get_extra_info('host')}: {line}", nl=False, err=True)


async def leave(cluster: SpecCluster) -> None:
    """Let all processes go in order, the scheduler last; SSHCluster would kill them, and their folders would stay."""
    cluster.status = Status.closed
    for processes in [worker.proc for worker in cluster.workers.values()], [cluster.scheduler.proc]:
        for process in processes:
            process.stdin.write_eof()
        await asyncio.wait([asyncio.create_task(process.wait_closed()) for process in processes], timeout=2 * LEAVE_SECONDS)


@contextlib.contextmanager
def cluster_of(hosts: list[str], n_workers: int, interface: str | None, ssh_config: str | None) -> Iterator[SpecCluster]:
    """Yield a cluster whose workers have all come."""
    # What is not said to listen on an interface listens on all.
    listen = {"interface": interface, "dashboard_address": "127.0.0.1:0"}
    connect = {"keepalive_interval": 30} | ({"config": ssh_config} if ssh_config else {})
    logging.getLogger("distributed.deploy.ssh").addFilter(lambda record: is_news(record.getMessage()))
    try:
        cluster = SSHCluster(
            [hosts[0], *hosts],
            connect_options=connect,
            scheduler_options={"port": 0, **listen},
            worker_options={"nthreads": 1, "n_workers": n_workers, **listen},
            remote_python=PYTHON,
        )
    except Exception as err:  # of many kinds: of the network, of ssh, of Dask
        raise click.ClickException(
            f"no cluster on {', '.join(hosts)}: {err}; on each of them, `ssh HOST {sys.executable} -m distmf --version` "
            "must work without a question"
        ) from err
    for process in cluster.scheduler, *cluster.workers.values():
        cluster.loop.add_callback(follow, process, cluster)
    try:
        with Client(cluster) as client:
            client.wait_for_workers(n_workers * len(hosts), timeout=WORKERS_SECONDS)
        yield cluster
    finally:
        cluster.sync(leave, cluster)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nworkers",
    type=click.IntRange(1),
    default=os.cpu_count(),
    show_default="the cores of this machine",
    help="Workers on each machine, of one thread each.",
)
@click.option("--interface", help="Network interface that all share, such as ib0; on one machine lo.  [default: all]")
@click.option("--ssh-config", type=click.Path(exists=True), help="In place of ~/.ssh/config.")
@click.argument("hosts", type=click.Path(exists=True, path_type=Path))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(nworkers: int, interface: str | None, ssh_config: str | None, hosts: Path, command: tuple[str, ...]) -> None:
    """Run COMMAND, such as `train BLOCKS MODEL --checkpoint FOLDER --resume`, on the machines named in the file HOSTS."""
    with dask.config.set(SETTINGS), cluster_of(hosts.read_text().split(), nworkers, interface, ssh_config) as cluster:
        main([*command, "--scheduler", cluster.scheduler_address], prog_name="distmf")


if __name__ == "__main__":
    run()
