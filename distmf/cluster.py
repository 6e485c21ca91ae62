"""Runs a Dask graph on a cluster; connects to one, or starts one of processes on this machine.

The client is always an argument. On a cluster that others share nothing is configured, keys are unique, and all that is
left when a graph ends is what it wrote.
"""

import asyncio
import contextlib
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import dask.config
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.typing import Key
from dask.utils import parse_timedelta
from distributed import Client, Future, KilledWorker, LocalCluster, as_completed
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.comm.core import connect as connect_to
from distributed.security import Security

from distmf.engine import EnoughError, Graph, OnChange, OnDone, OnTask, key_in_words
from distmf.errors import ClusterError, GraphLostError
from distmf.filesystem import one_line
from distmf.progress import SHOWN, Dashboard, tell
from distmf.store import temporary_folder

logger = logging.getLogger(__name__)

RETRIES = 2  # of a task that raises: storage may be out of reach for a moment
POLL_SECONDS = 0.02
LOOK_SECONDS = 5.0  # between two looks at the workers
PAUSED_SECONDS = 20.0
NO_WORKERS_SECONDS = 600.0
MAX_SUSPECTS = 3  # in a message

# For clusters of our own. Soft pins place the tasks, factors do not spill, and a worker that is killed is replaced.
# What every process looks at 50 times a second takes time from the kernels, so it looks once or less.
SETTINGS = {
    "distributed.scheduler.allowed-failures": 10,
    "distributed.scheduler.worker-saturation": float("inf"),
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.low-level-log-length": 100,
    "distributed.diagnostics.computations.max-history": 0,
    "distributed.nanny.pre-spawn-environ.NUMBA_NUM_THREADS": 1,
}


class ClusterEngine:
    """The workers of a Dask cluster; see `Engine`.

    Row blocks are owned contiguously: worker by worker, as many for each as it has threads. A task prefers the worker
    that owns its row block, and runs elsewhere if that one is gone.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster; stays open.
    """

    shares_memory = False

    def __init__(self, client: Client) -> None:
        self.client = client

    def __enter__(self) -> Self:
        self._wait_for_workers()
        self._check_versions()
        if (url := self._dashboard()) is not None:
            logger.info("dashboard: %s", url, extra=SHOWN)
            tell(Dashboard(url))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    @property
    def n_slots(self) -> int:
        """Threads of all workers that take tasks."""
        return sum(worker["nthreads"] for worker in self.workers().values()) or 1

    def _dashboard(self) -> str | None:
        """Return the URL of the scheduler's dashboard, if it has one."""
        has_one = "dashboard" in self._identity().get("services", {})
        return str(self.client.dashboard_link) if has_one else None

    @property
    def _address(self) -> str:
        return str(self._identity()["address"])

    def owners(self, n_row_blocks: int) -> list[Hashable]:
        """Return the address of the worker that owns each row block."""
        workers = self._wait_for_workers()
        slots = [address for address, worker in workers.items() for _ in range(worker["nthreads"])]
        return [slots[row * len(slots) // n_row_blocks] for row in range(n_row_blocks)]

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function in every worker; return what it returned or raised, by worker."""
        workers = self.workers()
        with self._connected(OSError, RuntimeError):  # the latter of connections that are closed just now
            found = self.client.run(function, *args, workers=list(workers), on_error="return")
        return {f"{workers[address]['name']} ({address})": value for address, value in found.items()}

    def run(
        self,
        graph: Graph,
        keys: Sequence[Key],
        on_done: OnDone | None = None,
        on_change: OnChange | None = None,
        on_task: OnTask | None = None,
    ) -> list[Any]:
        """Compute `keys` of a graph; see `Engine.run`.

        Raises
        ------
        ClusterError
            If the connection is lost, if there are no workers for long, or if a task keeps killing its workers.
        GraphLostError
            If the tasks were cancelled, but the cluster is there; if a worker stays paused.
        """
        futures: list[Future[Any]] = []
        try:
            with self._connected():
                futures = self._submit(graph, keys)
                return self._results(futures, on_done, _Lookout(self, graph, on_change))
        except EnoughError:
            _release(futures)
            self._wait_for_tasks(graph, futures[-1].key)
            raise
        except KilledWorker as err:
            raise ClusterError(
                f"{self._suspects(err.task)} ran on {err.allowed_failures + 1} workers that died, last on "
                f"{err.last_worker.address}; look into the workers' logs: too little memory is the usual cause, and "
                "then a finer grid or fewer workers on a machine help"
            ) from err
        finally:
            _release(futures)

    def _wait_for_tasks(self, graph: Graph, last: Key) -> None:
        """Return when no worker has a task of a graph under way whose futures were released, the one of `last` last."""
        with contextlib.suppress(GraphLostError), self._connected(OSError):  # the tasks are lost, too
            while self.client.run_on_scheduler(_knows, last) or self._has_under_way(graph):
                time.sleep(POLL_SECONDS)

    def _has_under_way(self, graph: Graph) -> bool:
        answers = self.everywhere(_under_way).values()
        lists = [answer for answer in answers if isinstance(answer, list)]  # a worker that has died does nothing
        return any(key in graph.tasks for keys in lists for key in keys)

    def _suspects(self, key: Key) -> str:
        """Return in words the task that has lost most workers, or those that have: some may only have waited there."""
        keys = {key}
        with contextlib.suppress(Exception):  # what follows is of use for the message only
            keys |= set(self.client.run_on_scheduler(_most_suspicious))
        return " or ".join(sorted(map(key_in_words, keys))[:MAX_SUSPECTS])

    def _submit(self, graph: Graph, keys: Sequence[Key]) -> list[Future[Any]]:
        annotations = {
            "workers": _Lookup({key: [owner] for key, owner in graph.homes.items()}),
            "allow_other_workers": True,
            "priority": _Lookup({key: -step for key, step in graph.steps.items()}),
            "retries": RETRIES,
        }
        layer = MaterializedLayer(dict(graph.tasks), annotations=annotations)
        whole = HighLevelGraph({"distmf": layer}, {"distmf": set()})
        return list(self.client.get(whole, list(keys), sync=False))

    def _results(self, futures: list[Future[Any]], on_done: OnDone | None, lookout: "_Lookout") -> list[Any]:
        values: dict[Key, Any] = {}
        completed = as_completed(futures, loop=self.client.loop)
        while len(values) < len(futures):
            batch = completed.next_batch(block=False)
            for future in batch:
                values[future.key] = future.result()
                if on_done is not None:
                    on_done(future.key, values[future.key])
            if not batch:
                time.sleep(POLL_SECONDS)
                lookout.look()
        return [values[future.key] for future in futures]

    def workers(self, *statuses: str) -> dict[str, Any]:
        """Return the workers that take tasks, or those of some statuses, by address, in the order of their names."""
        workers = self._identity()["workers"].items()
        found = [(address, worker) for address, worker in workers if worker["status"] in (statuses or ("running",))]
        return dict(sorted(found, key=lambda pair: (len(str(pair[1]["name"])), str(pair[1]["name"]))))

    def _identity(self) -> dict[str, Any]:
        """Return what the scheduler says of itself and all its workers, now; the client's own copy has gaps."""
        with self._connected(OSError):
            if self.client.scheduler is None:
                raise CommClosedError("the client is closed")
            found: dict[str, Any] = self.client.sync(self.client.scheduler.identity, n_workers=-1)
            return found

    @contextlib.contextmanager
    def _connected(self, *also: type[Exception]) -> Iterator[None]:
        """Explain errors that come from the connection to the scheduler."""
        lost: tuple[type[Exception], ...] = (CancelledError, CommClosedError, ClosedClientError, *also)
        try:
            yield
        except lost as err:
            self._wait_for_scheduler(err)
            raise GraphLostError("the cluster has lost or cancelled the tasks under way") from err

    def _check_versions(self) -> None:
        """Refuse a cluster with another distmf on it, or none; the scheduler needs it too, to read graphs."""
        here = _version()
        try:
            there = {"the scheduler": self.client.run_on_scheduler(_version)}
        except Exception as err:
            there = {"the scheduler": repr(err)}
        there |= {f"worker {name}": found for name, found in self.everywhere(_version).items()}
        wrong = [f"{name}: {found}" for name, found in there.items() if found != here]
        if wrong:
            raise ClusterError(f"distmf {here} must be installed on scheduler and workers, but {'; '.join(wrong)}")

    def _wait_for_workers(self) -> dict[str, Any]:
        start = said = time.monotonic()
        while not (workers := self.workers()):
            now = time.monotonic()
            if now - start > NO_WORKERS_SECONDS:
                raise ClusterError(
                    f"no worker has joined the cluster of {self._address} for "
                    f"{NO_WORKERS_SECONDS:.0f} s; start some: dask worker {self._address}"
                )
            if now - said > LOOK_SECONDS:
                said = now
                logger.warning("waiting for workers to join the cluster")
            time.sleep(0.1)
        return workers

    def _wait_for_scheduler(self, cause: BaseException) -> None:
        """Return when the client is connected again; raise if it gives up."""
        deadline = time.monotonic() + 1.2 * _connect_seconds()
        while self.client.status == "connecting" and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.client.status != "running":
            raise ClusterError("the connection to the scheduler is lost, and with it the tasks under way") from cause


def _connect_seconds() -> float:
    return float(parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))


def _version() -> str:
    return version("distmf")


def _release(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.release()


def _knows(key: Key, dask_scheduler: Any) -> bool:
    """Return, on the scheduler, whether it knows a task."""
    return key in dask_scheduler.tasks


def _under_way(dask_worker: Any) -> list[Key]:
    """Return, on a worker, the keys of the tasks that it may still do something for."""
    return [key for key, task in dask_worker.state.tasks.items() if task.state not in ("memory", "error")]


def _most_suspicious(dask_scheduler: Any) -> list[Key]:
    """Return, on the scheduler, the keys of the tasks that were on workers that died more often than all others."""
    counts = {key: task.suspicious for key, task in dask_scheduler.tasks.items() if task.suspicious}
    return [key for key, count in counts.items() if count == max(counts.values())]


class _Lookout:
    """Looks at the workers while tasks are under way: some troubles of theirs no task ever reports."""

    def __init__(self, engine: ClusterEngine, graph: Graph, on_change: OnChange | None) -> None:
        self.engine, self.tasks, self.on_change = engine, graph.tasks, on_change
        self.at_first = set(self._workers())
        self.looked = self.seen_workers = time.monotonic()
        self.paused: dict[str, float] = {}

    def look(self) -> None:
        """Look around, every few seconds.

        Raises
        ------
        ClusterError
            If there was no worker for long.
        GraphLostError
            If a worker is paused for long, as it is when its memory is full: it keeps the tasks that it has, and only
            sending them again gets them elsewhere.
        """
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        workers = self._workers()
        paused = [address for address, worker in workers.items() if worker["status"] == "paused"]
        if len(workers) > len(paused):
            self.seen_workers = now
        elif now - self.seen_workers > NO_WORKERS_SECONDS:
            raise ClusterError(f"there has been no worker for {NO_WORKERS_SECONDS:.0f} s; start some")
        else:
            logger.warning("no worker takes tasks; waiting for one")
        self.paused = {address: self.paused.get(address, now) for address in paused}
        for address, since in self.paused.items():
            if now - since > PAUSED_SECONDS and self._has_tasks(address):
                raise GraphLostError(f"worker {workers[address]['name']} ({address}) is paused, its memory is full")
        if self.on_change is not None and set(workers) != self.at_first:
            self.on_change()

    def _workers(self) -> dict[str, Any]:
        return self.engine.workers("running", "paused")

    def _has_tasks(self, address: str) -> bool:
        keys = self.engine.client.processing(workers=[address]).get(address, ())
        return any(key in self.tasks for key in keys)


class _Lookup:
    """An annotation by key: a value that Dask calls with the key, here and on the scheduler."""

    def __init__(self, values: Mapping[Key, Any]) -> None:
        self.values = values

    def __call__(self, key: Key) -> Any:
        return self.values.get(key)


class Tls(NamedTuple):
    """Files for TLS: the certificate of the authority, one's own certificate, and its key."""

    ca_file: str
    cert: str
    key: str

    def security(self) -> Security:
        """Return what Dask takes, for every role.

        Raises
        ------
        ClusterError
            If a file is missing, or is something else.
        """
        for file in self:
            if not Path(file).is_file():
                raise ClusterError(
                    f"{file}: no such file; TLS needs an authority's certificate, one's own, and its key"
                )
        roles = {f"tls_{role}_{part}": getattr(self, part) for role in _ROLES for part in ("cert", "key")}
        security = Security(tls_ca_file=self.ca_file, require_encryption=True, **roles)
        try:
            security.get_connection_args("client")
        except OSError as err:
            raise ClusterError(
                f"{self.ca_file}, {self.cert} and {self.key} are not a certificate of an authority, one's own, and its "
                f"key, in PEM: {one_line(err)}"
            ) from err
        return security


_ROLES = "client", "scheduler", "worker"


@contextlib.contextmanager
def connect(scheduler: str, tls: Tls | None = None) -> Iterator[Client]:
    """Yield a client of a running cluster.

    Parameters
    ----------
    scheduler : str
        Address, or path of a scheduler file.
    tls : Tls, optional
        For an address that begins with ``tls://``.

    Raises
    ------
    ClusterError
        If nobody answers.
    """
    security = tls.security() if tls else Security()
    address = scheduler
    if "://" not in scheduler and Path(scheduler).is_file():
        try:
            address = json.loads(Path(scheduler).read_bytes())["address"]
        except (ValueError, KeyError, TypeError) as err:
            raise ClusterError(
                f"{scheduler} is no scheduler file; give one that dask scheduler --scheduler-file wrote, or an address"
            ) from err
    try:
        asyncio.run(_knock(address, security))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as err:
        # Letters taken for a length are more than any memory, and a server may wait for more than was said.
        is_other = isinstance(err, MemoryError) or not str(err)
        reason = "what answers there does not speak as a scheduler does" if is_other else one_line(err)
        raise ClusterError(
            f"no scheduler answers at {scheduler}: {reason}; give its address, such as tcp://host:8786, or its "
            "scheduler file, and for tls:// the certificates"
        ) from err
    with Client(address, security=security, set_as_default=False, name="distmf") as client:
        yield client


async def _knock(address: str, security: Security) -> None:
    """Connect once: a client that cannot would leave threads behind that speak of it at the end of the process."""
    timeout = 2 * _connect_seconds()  # for whom something answers, and then says no more
    communication = await asyncio.wait_for(connect_to(address, **security.get_connection_args("client")), timeout)
    await communication.close()


@contextlib.contextmanager
def local_cluster(n_workers: int, tls: Tls | None = None) -> Iterator[Client]:
    """Yield a client of a new cluster of processes on this machine, one thread each; it binds to loopback only."""
    security = tls.security() if tls else None
    protocol = "tls://" if tls else "tcp://"
    with (
        temporary_folder(Path(tempfile.gettempdir()) / "distmf-workers") as folder,
        dask.config.set({**SETTINGS, "temporary-directory": folder.path}),  # the scheduler has one as well
        contextlib.ExitStack() as stack,
    ):
        with _uninterrupted():
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                host="127.0.0.1",
                protocol=protocol,
                security=security,
                dashboard_address="127.0.0.1:0",  # None is the usual port, which another cluster may have
                local_directory=folder.path,
                silence_logs=logging.CRITICAL,  # a worker that is ended tells of its last heartbeat as an error
            )
            stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster, security=security, set_as_default=False))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends, and never reach the child processes of threads that are started in it.

    A terminal sends it to all processes of a job, but it is for this one, which then ends its workers.
    """
    resource_tracker.ensure_running()  # else a thread that starts it lets its signals through again
    interrupts: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt
