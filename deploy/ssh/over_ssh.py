"""`distmf block` or `train` on machines that one reaches by ssh: scheduler on the first, workers on all of them.

Usage: ``python over_ssh.py --hosts HOSTS --interface eth0 train BLOCKS MODEL --checkpoint FOLDER --resume [OPTION]...``

The driver runs where this is started: on one of the machines, detached from the terminal, the training outlives both.
The same line goes on from the checkpoint. TLS is used when Dask's configuration says so.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
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

# The Python that SSHCluster calls with `-m distributed.cli.dask_spec` and arguments. It ends when its standard input
# does, which sshd closes with the connection: whatever has ended the driver, scheduler and workers end as well.
# SIGKILL is for those that are still starting, and heed nothing else.
PYTHON = f"""{shlex.quote(sys.executable)} -c '
import os, signal, sys, threading, time
from distributed.cli.dask_spec import main
def end_with_driver():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({LEAVE_SECONDS})
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_driver, daemon=True).start()
main(sys.argv[3:])'"""


def read_hosts(file: Path) -> list[str]:
    """Return the machines named in a file, one a line."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    if not (hosts := [line for line in lines if line]):
        raise click.UsageError(f"{file} names no machine; write one a line")
    return hosts


def is_routine(line: str) -> bool:
    """Say whether a line of Dask's log is of no interest when all goes well."""
    return " - INFO - " in line


async def show(process: Any, cluster: SpecCluster) -> None:
    """Show what a process complains of while the cluster is in use; if nobody read it, it would stop at 2 MiB."""
    shown = True
    async for line in process.proc.stderr:
        if is_routine(line) or line[:1].isdigit():  # other lines belong to the one before
            shown = not is_routine(line)
        if shown and line and cluster.status == Status.running:
            click.echo(f"{process.connection.get_extra_info('host')}: {line.rstrip()}", err=True)


async def end(cluster: Any) -> None:
    """Let all processes end in order, the scheduler last; SSHCluster would kill them, and leave their folders."""
    cluster.status = Status.closed
    for processes in [worker.proc for worker in cluster.workers.values()], [cluster.scheduler.proc]:
        for process in processes:
            process.stdin.write_eof()
        await asyncio.wait([asyncio.create_task(process.wait_closed()) for process in processes], timeout=30)


@contextlib.contextmanager
def running(
    hosts: list[str], connect: dict[str, Any], scheduler: dict[str, Any], worker: dict[str, Any]
) -> Iterator[str]:
    """Yield the scheduler's address when all workers have come."""
    try:
        cluster: Any = SSHCluster(
            [hosts[0], *hosts],
            connect_options=connect,
            scheduler_options=scheduler,
            worker_options=worker,
            remote_python=PYTHON,
        )
    except Exception as err:  # of the network, of ssh, of Dask
        raise click.ClickException(
            f"no cluster on {', '.join(hosts)}: {err}; from the first of them, "
            f"`ssh HOST {sys.executable} -m distmf --version` must work for each, without a question"
        ) from err
    try:
        for process in cluster.scheduler, *cluster.workers.values():
            cluster.loop.add_callback(show, process, cluster)
        with Client(cluster) as client:
            client.wait_for_workers(worker["n_workers"] * len(hosts), timeout=WORKERS_SECONDS)
        yield cluster.scheduler_address
    finally:
        cluster.sync(end, cluster)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--hosts", required=True, type=click.Path(exists=True, dir_okay=False), help="File, one a line.")
@click.option("--interface", required=True, help="Network interface that they share, such as eth0; lo for one machine.")
@click.option("--workers", type=click.IntRange(1), help="On each of them, of one thread; the cores of this one.")
@click.option("--ssh-config", type=click.Path(exists=True, dir_okay=False), help="Instead of ~/.ssh/config.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(hosts: str, interface: str, workers: int | None, ssh_config: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND, such as `train BLOCKS MODEL --checkpoint FOLDER --resume`, on machines that ssh reaches."""
    names, workers = read_hosts(Path(hosts)), workers or len(os.sched_getaffinity(0))
    logging.getLogger("distributed").setLevel(logging.WARNING)
    starting = logging.getLogger("distributed.deploy.ssh")  # logs what it reads, and thus why a start has failed
    starting.setLevel(logging.INFO)
    starting.addFilter(lambda record: not is_routine(record.getMessage()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # not SIGHUP, which nohup ignores
    connect = {"keepalive_interval": 30} | ({"config": [ssh_config]} if ssh_config else {})
    listen = {"interface": interface, "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set(SETTINGS),
        running(names, connect, {**listen, "port": 0}, {**listen, "n_workers": workers, "nthreads": 1}) as scheduler,
    ):
        main([*command, "--scheduler", scheduler], prog_name="distmf")


if __name__ == "__main__":
    run()
