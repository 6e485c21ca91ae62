"""Plans: bytes, grids, seconds, refusals, and what would change them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmf.blocking import block_ratings
from distmf.cache import ByteCache
from distmf.describe_plan import describe_plan
from distmf.errors import MemoryBudgetError
from distmf.footprint import LIBRARIES, Inputs, Rates, block_bytes, factor_bytes, miss_share, worker_bytes
from distmf.grid import Shape
from distmf.plan import (
    choose_shape,
    describe_cluster,
    describe_work,
    make_plan,
    predict,
    tasks,
)
from distmf.rates import hollow_generation
from distmf.simulation import count_moves, owners
from distmf.trainer import generation_epochs
from tests.helpers import random_ratings, write

RATES = Rates(kernel=50e6, copy=4e9, disk=1e9, network=1.25e9, scheduler=3000, task=0.001)
NETFLIX = Inputs(100_000_000, 480_000, 17_770, rank=64, workers=2, threads=1, memory=8 << 30, rates=RATES)
EXAMPLE = Inputs(10**11, 10**9, 10**7, rank=64, workers=64, threads=16, memory=64 << 30, rates=RATES)


def test_factor_bytes__counts_floats_and_biases_of_the_tallest_blocks() -> None:
    inputs = replace(NETFLIX, n_users=1009, n_items=211, rank=61)  # padded to 64 floats
    assert factor_bytes(inputs, Shape(7, 3)) == (4 * 65 * 145, 4 * 65 * 71)


@pytest.mark.parametrize("value_bytes", [1, 4])
def test_block_bytes__counts_groups_columns_values_and_tiles(value_bytes: int) -> None:
    dense = replace(NETFLIX, n_users=7919, n_items=1543, n_ratings=1_000_003, value_bytes=value_bytes)  # 256 × 256
    groups = 0.25 + 0.625 / (1_000_003 / 7919 * 256 / 1543)
    assert block_bytes(dense, Shape(3, 2)) == int((groups + 1 + value_bytes) * 166_668) + 24 * 11 * 4
    sparse = replace(dense, n_users=791_900)  # no row has more than one rating in a tile of 256 × 2048
    assert block_bytes(sparse, Shape(3, 2)) == (1 + 2 + value_bytes) * 166_668 + 24 * 1032 * 1


# Of the held out ratings of a user few make a group, which the plan does not know of.
@pytest.mark.parametrize(("holdout", "tolerance"), [(0.0, 0.02), (0.1, 0.03)])
@pytest.mark.parametrize("coded", [True, False])
def test_block_bytes__is_what_blocks_take(tmp_path: Path, coded: bool, holdout: float, tolerance: float) -> None:
    write(tmp_path / "r.parquet", random_ratings(20_000, 900, 300, coded=coded))
    blocks = block_ratings(tmp_path / "r.parquet", tmp_path / "blocks", grid=(4, 2), holdout=holdout)
    mean = sum(entry.length for entry in blocks.entries.values()) / 8
    inputs = replace(NETFLIX, n_ratings=20_000, n_users=900, n_items=300, value_bytes=1 if coded else 4)
    assert block_bytes(inputs, Shape(4, 2)) == pytest.approx(mean, rel=tolerance)


def test_worker_bytes__counts_every_term() -> None:
    inputs = replace(NETFLIX, workers=3, threads=2, cache=10_000_019)
    shape = Shape(17, 13)
    pair, block = sum(factor_bytes(inputs, shape)), int(1.2 * block_bytes(inputs, shape))
    found = worker_bytes(inputs, shape)
    assert found == (6 * pair, 2 * 2 * pair, 10_000_019, 2 * block, LIBRARIES)  # 6 + 6 + 5 row blocks
    assert found.total == 10 * pair + 10_000_019 + 2 * block + LIBRARIES
    assert worker_bytes(replace(inputs, cache=2**40), shape).cache == 6 * 13 * block  # no more than there is


@pytest.mark.parametrize("cached", [0.1, 0.3, 0.6, 0.9])
def test_miss_share__is_that_of_the_cache_over_epochs_in_random_order(cached: float) -> None:
    rng, n, n_epochs = np.random.default_rng(0), 400, 40
    cache, n_misses = ByteCache[int](int(cached * n)), 0
    for epoch in range(n_epochs + 1):
        for key in rng.permutation(n).tolist():

            def load(key: int = key, epoch: int = epoch) -> tuple[int, int]:
                nonlocal n_misses
                n_misses += epoch > 0  # in the first everything is missed
                return key, 1

            cache.get(key, load)
    assert miss_share(cached) == pytest.approx(n_misses / (n * n_epochs), abs=0.02)


def test_miss_share__is_all_or_nothing_at_the_ends() -> None:
    assert miss_share(0.0) == 1
    assert miss_share(1.0) == miss_share(3.7) == 0


def test_tasks__are_those_of_the_graph() -> None:
    every, shape = replace(NETFLIX, workers=3), Shape(11, 13)
    own = owners(shape.rows, 3, 1)
    n_epochs = generation_epochs(shape)
    graph = hollow_generation(shape, n_epochs, own).graph
    once = shape.rows + shape.cols + 3  # loads; what stays the same; step size and cost before the first epoch
    moves = sum(str(key[0]).startswith("column-") for key in graph.tasks if isinstance(key, tuple))
    assert moves / n_epochs == pytest.approx(count_moves(shape, 3, 1), rel=0.1)
    rarely = replace(every, save_every=n_epochs)
    assert tasks(rarely, shape) - count_moves(shape, 3, 1) == math.ceil((len(graph.tasks) - once - moves) / n_epochs)
    assert tasks(every, shape) - tasks(rarely, shape) == 25 - 2  # 24 factor blocks and all of them


def test_generation_epochs__are_those_of_the_trainer() -> None:
    found = {size: generation_epochs(Shape(size, size)) for size in (2, 22, 44, 50, 100, 1000)}
    assert found == {2: 20, 22: 20, 44: 5, 50: 4, 100: 1, 1000: 1}


@pytest.mark.parametrize(
    ("inputs", "least", "most"),
    [
        (NETFLIX, 2, 8),
        (replace(NETFLIX, workers=16), 16, 64),
        (replace(NETFLIX, n_users=3, n_items=5), 2, 5),  # no more blocks than lines
        (replace(EXAMPLE, threads=1), 64, 256),
    ],
)
def test_choose_shape__has_a_few_blocks_for_every_slot(inputs: Inputs, least: int, most: int) -> None:
    shape = choose_shape(inputs)
    assert least <= min(shape)
    assert max(shape) <= most


def test_choose_shape__is_coarser_than_that_if_the_scheduler_is_slow() -> None:
    large = replace(NETFLIX, n_ratings=2 * 10**9, workers=16)
    quick, slow = (replace(large, rates=RATES._replace(scheduler=rate)) for rate in (3000, 30))
    assert min(choose_shape(quick)) >= 32
    assert max(choose_shape(slow)) <= 16


@settings(max_examples=25)
@given(
    st.integers(1, 10**12),
    st.integers(1, 10**9),
    st.integers(1, 10**8),
    st.integers(1, 512),
    st.integers(1, 300),
    st.integers(1, 64),
    st.integers(2**28, 2**40),
)
def test_choose_shape__fits_or_names_both_numbers(
    n_ratings: int, n_users: int, n_items: int, rank: int, workers: int, threads: int, memory: int
) -> None:
    inputs = Inputs(n_ratings, n_users, n_items, rank, workers, threads, memory, RATES)
    try:
        shape = choose_shape(inputs)
    except MemoryBudgetError:
        with pytest.raises(MemoryBudgetError, match=f"{memory:,}"):
            choose_shape(inputs)
        return
    assert worker_bytes(inputs, shape).total <= memory
    assert 1 <= shape.rows <= n_users
    assert 1 <= shape.cols <= n_items


def test_make_plan__refuses_what_does_not_fit() -> None:
    small = replace(EXAMPLE, workers=8, memory=16 << 30)
    match = r"a worker needs [\d,]+ bytes at rank 64 .*[\d,]+ for factors, but its memory is 17,179,869,184; take more"
    with pytest.raises(MemoryBudgetError, match=match):
        make_plan(small)
    with pytest.raises(MemoryBudgetError, match="on a grid of 2 × 2 blocks"):
        make_plan(replace(NETFLIX, memory=500 << 20, shape=Shape(2, 2)))


def test_make_plan__plans_for_the_grid_that_is_given() -> None:
    plan = make_plan(replace(NETFLIX, shape=Shape(6, 10)))
    assert plan.shape == Shape(6, 10)
    assert plan.epoch == predict(plan.inputs, Shape(6, 10))


def test_predict__is_the_kernel_where_all_else_is_free() -> None:
    free = replace(NETFLIX, rates=Rates(50e6, 1e15, 1e15, 1e15, 1e9, 0.0), cache=1 << 40)
    found = predict(free, Shape(4, 4))
    assert found.seconds == pytest.approx(1.0, rel=0.15)  # 100 M updates on two threads of 50 M/s; blocks differ
    assert found.split.kernel > 0.95 * found.seconds


def test_predict__adds_checkpoints_and_what_comes_in_between() -> None:
    inputs = replace(NETFLIX, cache=1 << 40)  # nothing is read
    slow = replace(inputs, rates=RATES._replace(disk=1e6))
    saved = 2 * sum(factor_bytes(inputs, Shape(4, 4)))  # of the two row blocks of a worker
    more = predict(slow, Shape(4, 4)).seconds - predict(inputs, Shape(4, 4)).seconds
    assert more == pytest.approx(saved * (1 / 1e6 - 1 / 1e9))
    rarely = predict(replace(slow, save_every=3), Shape(4, 4)).seconds - predict(slow, Shape(4, 4)).seconds
    assert rarely == pytest.approx(-2 / 3 * (saved / 1e6 + 4 * RATES.task))


def test_describe_cluster__shares_out_the_scheduler() -> None:
    cluster = describe_cluster(3, 5, 7.0, 11.0)
    assert (cluster.workers, cluster.threads, cluster.network) == (3, 5, 7.0)
    assert cluster.scheduler_seconds + cluster.submit_seconds == pytest.approx(1 / 11)


def test_describe_work__divides_ratings_and_bytes_by_the_rates() -> None:
    rates = Rates(kernel=2e6, copy=3e6, disk=5e6, network=7e6, scheduler=11, task=13)
    work = describe_work(replace(NETFLIX, rates=rates, cache=1), Shape(4, 8))
    assert work.kernel == pytest.approx(100_000_000 / 32 / 2e6)
    assert work.copy == pytest.approx(260 * (120_000 + 2222) / 3e6)
    assert work.disk == pytest.approx(block_bytes(NETFLIX, Shape(4, 8)) / 5e6, rel=1e-3)
    assert work.column_bytes == 260 * 2222
    assert work.overhead == 13


def test_make_plan__finds_the_scheduler_in_the_way_of_a_grid_for_every_thread() -> None:
    plan = make_plan(replace(EXAMPLE, shape=Shape(1024, 1024)))
    assert plan.bottleneck == "scheduler"
    assert plan.epoch.seconds > plan.n_tasks / RATES.scheduler * 0.9
    coarser = next(change for change in plan.changes if change.what == "a grid of 512 × 512")
    assert coarser.ratio is not None
    assert coarser.ratio < 0.5
    # What the changes say is what a plan for them says.
    assert make_plan(replace(EXAMPLE, shape=coarser.shape)).epoch.seconds == coarser.seconds
    assert coarser.ratio == coarser.seconds / plan.epoch.seconds
    best = make_plan(EXAMPLE)
    assert best.epoch.seconds < 0.3 * plan.epoch.seconds
    assert best.n_tasks < 0.1 * plan.n_tasks


def test_make_plan__names_what_would_shorten_the_epoch_most_and_not_what_takes_most() -> None:
    rates = RATES._replace(kernel=1e7, copy=6e9, disk=6.5e8, task=0.003)
    plan = make_plan(replace(EXAMPLE, rates=rates, shape=Shape(512, 512)))
    assert plan.epoch.split.copy == max(plan.epoch.split)
    assert plan.epoch.loads.scheduler > 0.9
    assert plan.bottleneck == "scheduler"


def test_make_plan__tells_what_would_move_the_bottleneck() -> None:
    plan = make_plan(replace(NETFLIX, workers=1, rates=RATES._replace(kernel=1e6)))
    assert plan.bottleneck == "kernel"
    ratios = {change.what: change.ratio for change in plan.changes}
    assert ratios["a kernel twice as fast"] == pytest.approx(0.5, abs=0.05)
    assert ratios["twice the workers"] == pytest.approx(0.5, abs=0.1)
    assert ratios["a scheduler twice as fast"] == pytest.approx(1, abs=0.02)


def test_plan__counts_the_memory_of_driver_and_scheduler() -> None:
    plan = make_plan(replace(NETFLIX, shape=Shape(4, 4)))
    users, items = 260 * 480_000, 260 * 17_770
    assert plan.driver_bytes == 3 * users + items  # while it sorts the users
    assert plan.scheduler_bytes == 10_000 * plan.n_tasks * 20
    other = make_plan(replace(NETFLIX, n_users=17_770, n_items=480_000, shape=Shape(4, 4)))
    assert other.driver_bytes == 3 * users + 2 * items  # while it sorts the items


def test_describe_plan__says_the_same_in_numbers_and_words() -> None:
    plan = make_plan(NETFLIX)
    sources = dict.fromkeys(RATES._fields, "given")
    found, text = describe_plan(plan, sources)
    assert found["grid"] == list(plan.shape)
    assert found["bytes_per_worker"]["total"] == sum(plan.memory)
    assert sum(found["seconds"].values()) == pytest.approx(found["seconds_per_epoch"])
    assert f"{plan.shape.rows} × {plan.shape.cols} blocks" in text
    assert f"{plan.n_tasks:,} an epoch" in text
    assert all(word in text for word in ("bottleneck", "would help", "rates", "given", "simulated", "kernel", "copies"))
    assert len(text.splitlines()) < 30
