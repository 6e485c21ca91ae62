"""A cluster and the durations of a task's parts, described -> how long an epoch takes, and where the time goes.

Pure: no files, no Dask. An event simulation of what a Dask cluster does with the graph of a generation:

    thread ──done──▶ scheduler (one task after the other) ──run──▶ worker: fetch Q_j ──▶ thread: read, copy, kernel

A worker's threads take what is ready in the order of the sub-epochs. P_i stays with its worker; Q_j moves on to the
neighbouring row block. Where another worker owns that, a small task takes Q_j out of what the visit returned, and a
transfer follows. Messages leave in batches: one that comes soon after the last has to wait. All that was measured on
Dask 2026.8.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from distmf.grid import Shape
from distmf.schedule import subepochs

SCHEDULER_SENDS_EVERY = 0.005  # seconds between batches of messages to one worker (distributed/scheduler.py)
WORKER_SENDS_EVERY = 0.002  # … and between those of a worker to the scheduler (distributed/worker.py)
MAX_VISITS = 50_000  # simulated exactly; of larger schedules the first sub-epochs
LEAST_SUBEPOCHS = 8  # … but not fewer than these


class Cluster(NamedTuple):
    """What runs the tasks.

    Attributes
    ----------
    workers, threads : int
        Worker processes, and threads of each.
    network : float
        Bytes per second, into and out of each worker.
    scheduler_seconds : float
        Of the scheduler's processor, for each task that ends.
    submit_seconds : float
        Of client and scheduler, for each task of a graph before the first of them starts.
    handling_seconds : float
        Of a worker, for each message: between message and thread, and again for the data of another worker.
    scheduler_interval, worker_interval : float
        Seconds between batches of messages from the scheduler to a worker, and back.
    """

    workers: int
    threads: int
    network: float
    scheduler_seconds: float = 0.0
    submit_seconds: float = 0.0
    handling_seconds: float = 0.0
    scheduler_interval: float = SCHEDULER_SENDS_EVERY
    worker_interval: float = WORKER_SENDS_EVERY

    @property
    def slots(self) -> int:
        """Threads of all workers."""
        return self.workers * self.threads


class Work(NamedTuple):
    """What the tasks do.

    Attributes
    ----------
    shape : Shape
        Of the grid.
    kernel, copy, disk : float
        Seconds of a thread for the ratings of a block, for the copies of its factors, and for reading its ratings; the
        blocks of a worker are read one after the other.
    column_bytes : int
        Of a column block.
    overhead : float
        Seconds of a thread for a task besides.
    spread : float
        Standard deviation of the kernel's seconds from block to block, over their mean.
    """

    shape: Shape
    kernel: float
    copy: float = 0.0
    disk: float = 0.0
    column_bytes: int = 0
    overhead: float = 0.0
    spread: float = 0.0


class Split(NamedTuple):
    """Seconds of an epoch along the chain of events that decided when it ended; they add up to its length.

    Attributes
    ----------
    kernel, copy, disk : float
        A thread was at work on ratings, at copies of factors, or reading (or waiting until others had read).
    network : float
        A column block was on its way from another worker.
    scheduler : float
        Messages went to and from the scheduler or waited there; and the costs of a task besides its work.
    """

    kernel: float
    copy: float
    disk: float
    network: float
    scheduler: float


class Loads(NamedTuple):
    """Shares of the time in which something was at work.

    Attributes
    ----------
    threads : float
        In the mean over all threads that own row blocks; the rest is waiting.
    disk, network : float
        Of the busiest worker.
    scheduler : float
        And the client, while the graph is submitted.
    """

    threads: float
    disk: float
    network: float
    scheduler: float


class Simulated(NamedTuple):
    """What a simulation found.

    Attributes
    ----------
    seconds : float
        Of an epoch; the sum of `split`.
    split : Split
        Where they went.
    loads : Loads
        What was at work meanwhile.
    n_subepochs : int
        Sub-epochs simulated; an epoch has `max(shape)`.
    """

    seconds: float
    split: Split
    loads: Loads
    n_subepochs: int


def owners(n_rows: int, workers: int, threads: int) -> list[int]:
    """Return the worker that owns each row block: contiguous, as many for each as it has threads."""
    return [row * workers * threads // n_rows // threads for row in range(n_rows)]


def count_moves(shape: Shape, workers: int, threads: int) -> int:
    """Return how often, in an epoch of the mean, a column block moves on to another worker.

    It visits all rows once around the ring, from a random position on; the next epoch starts from another. Positions
    that fill the ring up to a square have no row: who starts there starts with the first or the last.
    """
    own, n_filled = owners(shape.rows, workers, threads), max(shape) - shape.rows
    bounds = [own[row] != own[row - 1] for row in range(shape.rows)]
    left_out = (sum(bounds) + n_filled * bounds[0]) / max(shape)  # the bound between the last row and the first
    starts = [own.count(worker) + n_filled * ((worker == own[0]) + (worker == own[-1])) / 2 for worker in set(own)]
    jump = 1 - sum((n / max(shape)) ** 2 for n in starts)
    return round(shape.cols * (sum(bounds) - left_out + jump))


def simulate(
    work: Work, cluster: Cluster, *, n_epochs: int = 1, max_visits: int = MAX_VISITS, seed: int = 0
) -> Simulated:
    """Return how long an epoch takes, in the mean over a generation of `n_epochs` from its graph to its last task.

    Parameters
    ----------
    work : Work
        What the tasks do.
    cluster : Cluster
        What runs them.
    n_epochs : int
        Epochs of the generation.
    max_visits : int
        Of blocks, at most: beyond, fewer epochs are simulated, and of an epoch that is still too large the first
        sub-epochs, which stand for all.
    seed : int
        Of the schedule and the spread.
    """
    size, per_epoch = max(work.shape), work.shape.rows * work.shape.cols
    if per_epoch <= max_visits:
        n_epochs = max(1, min(n_epochs, max_visits // per_epoch))
        n_subepochs = n_epochs * size
    else:
        n_epochs, n_subepochs = 1, min(size, max(LEAST_SUBEPOCHS, max_visits * size // per_epoch))
    run = _Run(work, cluster, n_epochs, n_subepochs, seed)
    run.run()
    return run.result(size / n_subepochs)


class _Run:
    """The state of one simulation.

    Visits are numbered in the order of the schedule, and ~n is the task that takes the column block for visit n out of
    what another worker has: lists by task hold visits from the front and column tasks from the back. Everything happens
    in the order of time, so that a server (the scheduler, a connection, a disk) needs to remember only when it is free.
    """

    def __init__(self, work: Work, cluster: Cluster, n_epochs: int, n_subepochs: int, seed: int) -> None:
        self.work, self.cluster = work, cluster
        self._lay_out(n_epochs, n_subepochs, seed)
        rng, n_visits = np.random.default_rng(seed), len(self.row)
        self.kernel = (work.kernel * np.clip(rng.normal(1.0, work.spread, n_visits), 0.2, None)).tolist()
        self.finished, self.fetching = ([0.0] * (2 * n_visits) for _ in range(2))
        self.reading = [0.0] * n_visits
        self.after: list[int | None] = [None] * (2 * n_visits)  # the task whose end made it possible

        rows_of = np.bincount(self.owner, minlength=cluster.workers).tolist()
        threads = [min(cluster.threads, n_rows) for n_rows in rows_of]
        self.spare = [cluster.threads > n_rows for n_rows in rows_of]  # a thread is always free for column tasks
        self.n_threads, self.idle = sum(threads), threads.copy()
        self.ready: list[list[tuple[int, int]]] = [[] for _ in rows_of]
        self.to_worker, self.from_worker = ([-1.0] * cluster.workers for _ in range(2))
        self.outgoing, self.incoming, self.disk_free = ([0.0] * cluster.workers for _ in range(3))
        self.scheduler_free = self.scheduler_busy = 0.0
        self.received, self.n_read = ([0] * cluster.workers for _ in range(2))

        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[int], None], int]] = []
        self.tickets = itertools.count()

    def _lay_out(self, n_epochs: int, n_subepochs: int, seed: int) -> None:
        """Lay out the visits, and what follows on each."""
        shape = self.work.shape
        self.owner = owners(shape.rows, self.cluster.workers, self.cluster.threads)
        self.row, self.step, self.missing = list[int](), list[int](), list[int]()
        self.holder: list[int] = []  # the worker that has the column block when the visit needs it
        self.next_of_row, self.next_of_col = list[int](), list[int]()  # -1 after the last
        last_of_row, last_of_col = [-1] * shape.rows, [-1] * shape.cols
        every = (stratum for epoch in range(n_epochs) for stratum in subepochs(shape, epoch, seed))
        for step, stratum in enumerate(itertools.islice(every, n_subepochs)):
            for row, col in stratum:
                visit, before = len(self.row), (last_of_row[row], last_of_col[col])
                for earlier, following in zip(before, (self.next_of_row, self.next_of_col), strict=True):
                    if earlier >= 0:
                        following[earlier] = visit
                    following.append(-1)
                self.missing.append(sum(earlier >= 0 for earlier in before))
                self.holder.append(self.owner[self.row[before[1]] if before[1] >= 0 else row])
                self.row.append(row)
                self.step.append(step)
                last_of_row[row] = last_of_col[col] = visit
        self.moves = [holder != self.owner[row] for holder, row in zip(self.holder, self.row, strict=True)]

    def run(self) -> None:
        """Let everything happen."""
        n_tasks = len(self.row) + sum(self.moves)
        self.now = self.scheduler_free = self.scheduler_busy = self.cluster.submit_seconds * n_tasks
        for visit, missing in enumerate(self.missing):
            if not missing:
                self._send(visit, self.now)
        while self.events:
            self.now, _, happen, task = heapq.heappop(self.events)
            happen(task)
        self.now = max(self.now, self.scheduler_free)
        assert not any(self.missing), "a visit never happened"

    def result(self, scale: float) -> Simulated:
        """Return seconds of an epoch, which is `scale` times as long as what was simulated."""
        split = Split(*(seconds * scale for seconds in self._critical()))
        seconds, work = self.now or 1.0, self.work
        at_work = sum(self.kernel) + sum(self.reading) + len(self.row) * (work.copy + work.overhead)
        loads = Loads(
            at_work / (self.n_threads * seconds),
            max(self.n_read) * work.disk / seconds,
            max(self.received) * work.column_bytes / self.cluster.network / seconds,
            self.scheduler_busy / seconds,
        )
        return Simulated(self.now * scale, split, loads, self.step[-1] + 1)

    def _critical(self) -> Split:
        """Return where the time went on the way to the last task, from the end back to the beginning."""
        task: int | None = max(range(len(self.row)), key=self.finished.__getitem__)
        end = self.now
        kernel = copy = disk = network = 0.0
        while task is not None:
            if task >= 0:
                kernel += self.kernel[task]
                copy += self.work.copy
                disk += self.reading[task]
            network += self.fetching[task]
            task = self.after[task]
        return Split(kernel, copy, disk, network, end - kernel - copy - disk - network)

    def _at(self, time: float, happen: Callable[[int], None], task: int) -> None:
        heapq.heappush(self.events, (time, next(self.tickets), happen, task))

    def _worker(self, task: int) -> int:
        return self.owner[self.row[task]] if task >= 0 else self.holder[~task]

    def _provide(self, visit: int, by: int, time: float) -> None:
        """Note that one of the two blocks that a visit needs is there."""
        self.missing[visit] -= 1
        if not self.missing[visit]:
            self.after[visit] = by
            self._send(visit, time)

    def _send(self, task: int, time: float) -> None:
        """Send a task from the scheduler to its worker."""
        leaves = _leave(self.to_worker, self._worker(task), time, self.cluster.scheduler_interval)
        self._at(leaves + self.cluster.handling_seconds, self._arrive, task)

    def _arrive(self, task: int) -> None:
        """Fetch the column block of a visit, if another worker has it."""
        if task < 0 or not self.moves[task]:
            self._be_ready(task)
            return
        source, target = self.holder[task], self._worker(task)
        begin = max(self.now, self.outgoing[source], self.incoming[target])
        end = begin + self.work.column_bytes / self.cluster.network
        self.outgoing[source] = self.incoming[target] = end
        self.received[target] += 1
        self.fetching[task] = end + self.cluster.handling_seconds - self.now
        self._at(end + self.cluster.handling_seconds, self._be_ready, task)

    def _be_ready(self, task: int) -> None:
        worker = self._worker(task)
        if task < 0 and self.spare[worker]:
            self._at(self.now + self.work.overhead, self._report, task)
        elif self.idle[worker]:
            self.idle[worker] -= 1
            self._start(task)
        else:
            heapq.heappush(self.ready[worker], (self.step[task if task >= 0 else ~task], task))

    def _start(self, task: int) -> None:
        seconds = self.work.overhead
        if task >= 0:
            if self.work.disk:
                worker = self._worker(task)
                self.disk_free[worker] = max(self.now, self.disk_free[worker]) + self.work.disk
                self.reading[task] = self.disk_free[worker] - self.now
                self.n_read[worker] += 1
            seconds += self.reading[task] + self.work.copy + self.kernel[task]
        self._at(self.now + seconds, self._finish, task)

    def _finish(self, task: int) -> None:
        """Let the thread go on with the first task that is ready."""
        worker = self._worker(task)
        if self.ready[worker]:
            _, following = heapq.heappop(self.ready[worker])
            self.after[following], self.fetching[following] = task, 0.0
            self._start(following)
        else:
            self.idle[worker] += 1
        self._report(task)

    def _report(self, task: int) -> None:
        """Tell the scheduler that a task is done."""
        self.finished[task] = self.now
        leaves = _leave(self.from_worker, self._worker(task), self.now, self.cluster.worker_interval)
        self._at(leaves, self._schedule, task)

    def _schedule(self, task: int) -> None:
        """Let the scheduler find out what can be done next."""
        time = self.scheduler_free = max(self.now, self.scheduler_free) + self.cluster.scheduler_seconds
        self.scheduler_busy += self.cluster.scheduler_seconds
        if task < 0:
            self._provide(~task, task, time)
            return
        if (after := self.next_of_row[task]) >= 0:
            self._provide(after, task, time)
        if (after := self.next_of_col[task]) >= 0:
            if self.moves[after]:
                self.after[~after] = task
                self._send(~after, time)
            else:
                self._provide(after, task, time)


def _leave(last: list[float], peer: int, now: float, interval: float) -> float:
    """Return when a message leaves: at once if the last batch is long gone, else with the next one."""
    if now > last[peer]:
        last[peer] = max(now, last[peer] + interval)
    return last[peer]
