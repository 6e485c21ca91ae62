"""`distmf block` or `train` on the tasks of `srun`: task 0 is the scheduler, task 1 the driver, all others are workers.

Usage, in a job: ``srun python runner.py SCHEDULER_FILE COMMAND [ARGUMENT]...``, see distmf.sbatch. TLS is used when
Dask's configuration says so.
"""

import asyncio
import os
import sys
from typing import Any

import dask.config
from dask_jobqueue.slurm import SLURMRunner
from distributed import Client, rpc
from distributed.security import Security
from distributed.utils import get_ip_interface, json_load_robust

from distmf.cli import main
from distmf.cluster import SETTINGS

WORKERS_SECONDS = 600


class Runner(SLURMRunner):
    """What dask-jobqueue has, but for two of its flaws."""

    scheduler_comm: Any

    def __init__(self, **options: Any) -> None:
        self.connection_args = Security().get_connection_args("client")
        super().__init__(**options)

    async def get_scheduler_address(self) -> str:
        """Return the address when the scheduler's file is complete; the base class fails on half a file."""
        found = await asyncio.to_thread(json_load_robust, self.scheduler_file)
        return str(found["address"])

    async def before_client_start(self) -> None:
        """Get ready to end the scheduler, over TLS too; the base class would connect without certificates."""
        self.scheduler_comm = rpc(self.scheduler_address, connection_args=self.connection_args)


if __name__ == "__main__":
    scheduler_file, *command = sys.argv[1:]
    # A wrong interface or certificate ends every task: a scheduler that ended alone would keep the others waiting.
    # What is not said to listen there would listen on all.
    listen = {"host": get_ip_interface(os.environ["DISTMF_INTERFACE"]), "dashboard_address": "127.0.0.1:0"}
    megabytes = os.environ.get("SLURM_MEM_PER_CPU")  # not there after --mem
    worker = {"nthreads": 1, "memory_limit": f"{megabytes} MiB" if megabytes else "auto"}
    with (
        dask.config.set(SETTINGS),
        Runner(scheduler_file=scheduler_file, scheduler_options=listen, worker_options=listen | worker) as runner,
    ):
        # All workers first: row blocks get their homes at the start.
        with Client(runner.scheduler_address) as client:
            client.wait_for_workers(runner.n_workers, timeout=WORKERS_SECONDS)
        main([*command, "--scheduler", runner.scheduler_address], prog_name="distmf")
