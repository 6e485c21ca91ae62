"""The event simulation of an epoch: closed forms, bounds, and where the time went."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf.grid import Shape
from distmf.schedule import strata
from distmf.simulation import Cluster, Split, Work, count_moves, owners, simulate

FREE = {"scheduler_interval": 0.0, "worker_interval": 0.0}  # messages cost no time


def cluster(workers: int, threads: int = 1, network: float = math.inf, **rates: float) -> Cluster:
    return Cluster(workers, threads, network, **{**FREE, **rates})


def seconds(work: Work, machines: Cluster, **options: Any) -> float:
    return simulate(work, machines, **options).seconds


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (2, 1), (1, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize("blocks_per_slot", [1, 2, 3])
def test_simulate__keeps_every_thread_busy_if_nothing_else_takes_time(
    workers: int, threads: int, blocks_per_slot: int
) -> None:
    slots = workers * threads
    work = Work(Shape(slots * blocks_per_slot, slots * blocks_per_slot), kernel=0.5, copy=0.25)
    found = simulate(work, cluster(workers, threads))
    assert found.seconds == pytest.approx(0.75 * slots * blocks_per_slot**2)
    assert found.split == pytest.approx(Split(found.seconds * 2 / 3, found.seconds / 3, 0, 0, 0))
    assert found.loads.threads == pytest.approx(1)


def test_simulate__adds_up_what_a_single_block_waits_for() -> None:
    # Primes, so that no wrong term cancels. Of two epochs of one block: submission, and for each the way there, the
    # reading, the copy, the kernel, the costs of a task, and the scheduler.
    work = Work(Shape(1, 1), kernel=2, copy=3, disk=5, column_bytes=7, overhead=11)
    machines = cluster(1, scheduler_seconds=13, submit_seconds=17, handling_seconds=19)
    found = simulate(work, machines, n_epochs=2)
    assert found.seconds == pytest.approx((2 * 17 + 2 * (19 + 5 + 3 + 2 + 11 + 13)) / 2)
    assert found.split == pytest.approx(Split(2, 3, 5, 0, 17 + 19 + 11 + 13))
    assert found.loads.scheduler == pytest.approx((2 * 17 + 2 * 13) / (2 * found.seconds))
    assert found.loads.threads == pytest.approx((2 + 3 + 5 + 11) / found.seconds)


def test_simulate__moves_a_column_block_to_the_other_worker() -> None:
    # Two workers of one block each: in the second sub-epoch both fetch the other's column block.
    work = Work(Shape(2, 2), kernel=2, column_bytes=30, overhead=0.5)
    found = simulate(work, cluster(2, network=10, handling_seconds=0.25))
    visit, column, fetch = 0.25 + 0.5 + 2, 0.25 + 0.5, 0.25 + 3 + 0.25
    assert found.seconds == pytest.approx(visit + column + fetch + 0.5 + 2)
    assert found.split.network == pytest.approx(3 + 0.25)
    assert found.loads.network == pytest.approx(3 / found.seconds)
    without = simulate(work, cluster(1, 2, network=10, handling_seconds=0.25))
    assert without.seconds == pytest.approx(2 * visit)
    assert without.split.network == 0


@pytest.mark.parametrize(("seed", "transfers"), [(5, 11), (0, 13), (1, 12)])
def test_simulate__shares_the_network_of_both_ends(seed: int, transfers: int) -> None:
    # Between two epochs column blocks jump. With seed 0 two that leave one worker, and two that come to one, have to
    # wait for each other; where they come and go alone, each sub-epoch but the first has one transfer to wait for.
    work = Work(Shape(6, 6), kernel=0.001, column_bytes=1)
    found = simulate(work, cluster(3, 2, network=1), n_epochs=2, seed=seed)
    assert 2 * found.seconds == pytest.approx(transfers, abs=0.1)


def test_simulate__does_not_count_what_happens_beside_the_kernel() -> None:
    found = simulate(Work(Shape(8, 8), kernel=10, column_bytes=3), cluster(2, network=1))
    assert found.split == pytest.approx(Split(320, 0, 0, 0, 0))


def test_simulate__batches_messages() -> None:
    # A chain of short tasks: each waits until the scheduler sends again.
    work, n = Work(Shape(1, 1), kernel=0.001), 50
    quick = Cluster(1, 1, math.inf, scheduler_interval=0.005, worker_interval=0.0)
    assert seconds(work, quick, n_epochs=n) == pytest.approx((0.005 * (n - 1) + 0.001) / n)
    slow = work._replace(kernel=0.1)  # tasks that take longer than that never wait
    assert seconds(slow, quick, n_epochs=n) == pytest.approx(0.1)


def test_simulate__reads_the_blocks_of_a_worker_one_after_the_other() -> None:
    work = Work(Shape(4, 4), kernel=1, disk=3)
    found = simulate(work, cluster(1, 4))
    assert found.seconds == pytest.approx(16 * 3 + 1)
    assert found.split.disk > 0.9 * found.seconds
    assert found.loads.disk == pytest.approx(48 / 49)
    assert seconds(work, cluster(4)) == pytest.approx(4 * 4)


def test_simulate__names_the_scheduler_when_it_is_too_slow() -> None:
    work = Work(Shape(32, 32), kernel=0.01, overhead=0.0001)
    found = simulate(work, cluster(16, scheduler_seconds=0.01))
    n_tasks = 32 * 32 + count_moves(work.shape, 16, 1)
    assert found.seconds == pytest.approx(0.01 * n_tasks, rel=0.05)
    assert found.split.scheduler > 0.5 * found.seconds
    assert found.loads.scheduler > 0.95


@pytest.mark.parametrize("shape", [Shape(6, 6), Shape(5, 8), Shape(8, 5), Shape(1, 4)])
def test_simulate__makes_every_visit_once(shape: Shape) -> None:
    work, machines = Work(shape, kernel=0.3, copy=0.1, overhead=0.01), Cluster(2, 2, 1e9, 0.001, 0.001, 0.001)
    found = simulate(work, machines, n_epochs=3)
    assert found.n_subepochs == 3 * max(shape)
    at_work = found.loads.threads * min(4, shape.rows) * found.seconds
    assert at_work == pytest.approx(shape.rows * shape.cols * (0.3 + 0.1 + 0.01))


works = st.builds(
    Work,
    st.builds(Shape, st.integers(1, 12), st.integers(1, 12)),
    kernel=st.floats(0, 1),
    copy=st.floats(0, 1),
    disk=st.floats(0, 0.1),
    column_bytes=st.integers(0, 100),
    overhead=st.floats(0, 0.1),
    spread=st.floats(0, 0.5),
)
clusters = st.builds(
    Cluster,
    st.integers(1, 5),
    st.integers(1, 3),
    st.floats(10, 1e9),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.floats(0, 0.01),
    st.floats(0, 0.01),
)


@given(works, clusters, st.integers(1, 3), st.integers(1, 400))
def test_simulate__takes_no_less_than_any_part_alone(
    work: Work, machines: Cluster, n_epochs: int, max_visits: int
) -> None:
    found = simulate(work, machines, n_epochs=n_epochs, max_visits=max_visits)
    assert sum(found.split) == pytest.approx(found.seconds)
    assert min(found.split) >= -1e-9
    assert all(-1e-9 <= load <= 1 + 1e-9 for load in found.loads)
    assert 1 <= found.n_subepochs <= n_epochs * max(work.shape)
    if found.n_subepochs < max(work.shape):
        return  # a part of an epoch stands for all of it
    n_visits, n_slots = work.shape.rows * work.shape.cols, min(machines.slots, *work.shape)
    assert found.seconds >= n_visits * (work.copy + work.disk / machines.workers + work.overhead) / n_slots - 1e-9
    assert found.seconds >= n_visits * (machines.scheduler_seconds + machines.submit_seconds) - 1e-9
    assert found.seconds >= work.shape.cols * (work.copy + work.overhead) - 1e-9


SLOW = Work(Shape(12, 12), kernel=0.2, copy=0.1, disk=0.05, column_bytes=1_000_000, overhead=0.01)
MACHINES = Cluster(3, 2, 1e7, 0.005, 0.005, 0.005)


@pytest.mark.parametrize("field", ["kernel", "copy", "disk", "column_bytes", "overhead"])
def test_simulate__is_faster_if_the_work_is_less(field: str) -> None:
    found = [seconds(SLOW._replace(**{field: getattr(SLOW, field) * factor}), MACHINES) for factor in (0, 0.5, 1, 2, 4)]
    assert found == sorted(found)
    assert found[-1] > found[0]


@pytest.mark.parametrize("field", ["scheduler_seconds", "submit_seconds", "handling_seconds"])
def test_simulate__is_faster_if_messages_are(field: str) -> None:
    found = [seconds(SLOW, MACHINES._replace(**{field: getattr(MACHINES, field) * factor})) for factor in (0, 1, 8, 64)]
    # A worker takes what is ready, so a message that comes later can by chance make room for a more urgent task.
    assert all(later >= 0.995 * earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] > 1.05 * found[0]


def test_simulate__of_the_first_subepochs_stands_for_the_epoch() -> None:
    work = Work(Shape(64, 64), kernel=0.1, copy=0.02, column_bytes=1_000_000, overhead=0.001, spread=0.1)
    machines = Cluster(16, 2, 1e9, 0.0002, 0.0001, 0.0005)
    whole, part = (simulate(work, machines, max_visits=n) for n in (64 * 64, 64 * 16))
    assert whole.n_subepochs == 64
    assert part.n_subepochs == 16
    assert part.seconds == pytest.approx(whole.seconds, rel=0.1)


@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 5))
def test_owners__are_contiguous_and_even(n_rows: int, workers: int, threads: int) -> None:
    found = owners(n_rows, workers, threads)
    assert found == sorted(found)
    assert len(found) == n_rows
    assert 0 <= found[0] <= found[-1] < workers
    sizes = [found.count(worker) for worker in range(workers)]
    assert max(sizes) - min(sizes) <= threads


@pytest.mark.parametrize("shape", [Shape(16, 16), Shape(12, 24), Shape(24, 12), Shape(7, 7), Shape(5, 1), Shape(1, 5)])
@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (2, 1), (2, 2), (7, 1), (3, 10)])
def test_count_moves__is_what_the_schedule_does(shape: Shape, workers: int, threads: int) -> None:
    own, n_epochs, moves = owners(shape.rows, workers, threads), 200, 0
    at: dict[int, int] = {}
    for epoch in range(n_epochs):
        for stratum in strata(shape, epoch, 0):
            for row, col in stratum:
                moves += at.get(col, own[row]) != own[row]
                at[col] = own[row]
    assert count_moves(shape, workers, threads) == pytest.approx(moves / n_epochs, abs=0.5, rel=0.02)
