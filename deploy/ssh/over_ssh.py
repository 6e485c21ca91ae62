"""`distmf block` or `train` on machines that one reaches by ssh: scheduler on the first, workers on all of them.

Usage: ``python over_ssh.py --hosts HOSTS --interface eth0 train BLOCKS MODEL --checkpoint FOLDER --resume [OPTION]...``

The driver runs where this is started: on one of the machines, detached from the terminal, the training outlives both.
The same line goes on from the checkpoint. TLS is used when Dask's configuration says so.
"""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import click
import dask.config
from distributed import Client, SSHCluster

from distmf.cli import main
from distmf.cluster import SETTINGS

WORKERS_SECONDS = 600

# The standard input of all that is started ends with the connection. Whatever has ended the driver, it ends as well.
# A single line: Dask logs it, and SSHCluster takes an empty line for a failure.
END_WITH_DRIVER = (
    "import os, signal, sys, threading; "
    "wait = lambda: (sys.stdin.read(), os.kill(os.getpid(), signal.SIGTERM)); "
    "threading.Thread(target=wait, daemon=True).start()"
)
PRELOAD = {f"distributed.{role}.preload": [END_WITH_DRIVER] for role in ("scheduler", "nanny")}


def read_hosts(file: Path) -> list[str]:
    """Return the machines named in a file, one a line."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    if not (hosts := [line for line in lines if line]):
        raise click.UsageError(f"{file} names no machine; write one a line")
    return hosts


async def show(process: Any) -> None:
    """Show what a process complains of, as long as it runs; if nobody read it, it would stop when the pipe is full."""
    async for line in process.proc.stderr:
        if " - INFO - " not in line:
            click.echo(f"{process.address}: {line.rstrip()}", err=True)


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
    for number in signal.SIGTERM, signal.SIGHUP:  # as Ctrl-C: what runs on the machines is ended too
        signal.signal(number, signal.default_int_handler)
    listen = {"interface": interface, "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set({**SETTINGS, **PRELOAD}),
        SSHCluster(
            [names[0], *names],
            connect_options={"config": [ssh_config]} if ssh_config else {},
            scheduler_options={**listen, "port": 0},
            worker_options={**listen, "n_workers": workers, "nthreads": 1},
        ) as cluster,
    ):
        for process in cluster.scheduler, *cluster.workers.values():
            cluster.loop.add_callback(show, process)
        with Client(cluster) as client:
            client.wait_for_workers(workers * len(names), timeout=WORKERS_SECONDS)
        main([*command, "--scheduler", cluster.scheduler_address], prog_name="distmf")


if __name__ == "__main__":
    run()
