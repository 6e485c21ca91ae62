"""Ratings of every shape train to the noise in them: skewed, sparse, wide, tall, and on grids that are not square."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distmf import MatrixFactorization, block_ratings, evaluate, preparing
from distmf.graph import _halfway
from distmf.grid import Shape, tile_shape
from distmf.memory import MemoryPlan
from distmf.schedule import strata
from tests.helpers import files, write

NOISE = 0.3
RANK = 2

Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def uniform(rng: np.random.Generator, n: int, n_users: int, n_items: int) -> Pairs:
    return rng.integers(n_users, size=n), rng.integers(n_items, size=n)


def one_user_with_a_tenth(rng: np.random.Generator) -> Pairs:
    users, items = uniform(rng, 200_000, 3_000, 1_000)
    users[rng.random(len(users)) < 0.1] = 17
    return users, items


def items_with_one_rating(rng: np.random.Generator) -> Pairs:
    users, items = uniform(rng, 200_000, 3_000, 1_000)
    singles = 1_000 + np.arange(9_000)
    return np.append(users, rng.integers(3_000, size=9_000)), np.append(items, singles)


def many_users(rng: np.random.Generator) -> Pairs:
    return uniform(rng, 3_000_000, 19_000, 40)


def many_items(rng: np.random.Generator) -> Pairs:
    return uniform(rng, 3_000_000, 40, 19_000)


def sparse(rng: np.random.Generator) -> Pairs:
    return uniform(rng, 800_000, 16_000, 16_000)


def square(rng: np.random.Generator) -> Pairs:
    return uniform(rng, 200_000, 3_000, 1_000)


def planted(pairs: Pairs, rng: np.random.Generator) -> dict[str, Any]:
    """Return ratings of pairs: biases and factors of each id, and noise."""
    sides = [np.random.default_rng(n) for n in range(2)]
    biases = [side.normal(0, 0.5, 20_000) for side in sides]
    factors = [side.normal(0, 0.7, (20_000, RANK)) for side in sides]
    users, items = pairs
    truth = 3 + biases[0][users] + biases[1][items] + (factors[0][users] * factors[1][items]).sum(axis=1)
    ratings = truth + NOISE * rng.standard_normal(len(users))
    return {"user_id": users, "item_id": items, "rating": ratings.astype(np.float32)}


@pytest.mark.parametrize(
    ("draw", "grid"),
    [
        (one_user_with_a_tenth, (4, 4)),
        (items_with_one_rating, (4, 4)),
        (many_users, (8, 2)),
        (many_users, None),
        (many_items, (2, 8)),
        (many_items, None),
        (sparse, None),
        (square, (16, 4)),
        (square, (3, 7)),
        (square, (1, 5)),
        (square, (9, 1)),
    ],
)
def test_fit__reaches_the_noise(
    draw: Callable[[np.random.Generator], Pairs], grid: tuple[int, int] | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    users, items = draw(rng)
    source = write(tmp_path / "r.parquet", planted((users, items), rng))
    blocks = block_ratings(source, tmp_path / "b", grid=grid, rank=RANK)
    mf = MatrixFactorization(RANK, epochs=20, reg=0.003, bias_reg=0.003).fit(blocks)
    n_rated = np.bincount(items)
    known = np.flatnonzero(n_rated[items] >= 20)
    again = rng.choice(known, 20_000)  # the same pairs, other noise
    test = write(tmp_path / "test.parquet", planted((users[again], items[again]), rng))
    # Each rating tells a little about a bias and RANK factors of its user and of its item.
    per_user, per_item = np.bincount(users)[users[again]], n_rated[items[again]]
    expected = NOISE * np.sqrt(np.mean(1 + (1 + RANK) * (1 / per_user + 1 / per_item)))
    assert evaluate(mf, test)["rmse"] < 1.05 * expected


@pytest.mark.parametrize("shape", [(256, 256), (256, 2048), (1024, 65_536), (65_536, 256)])
def test_fit__reaches_the_noise_in_tiles_of_any_shape(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmf.fitting.tile_shape", lambda *counts: shape)
    test_fit__reaches_the_noise(square, (4, 4), tmp_path)


def test_tile_shape__of_ratings_far_apart() -> None:
    # One rating in a tile of 256 × 256: wide tiles, whose offsets take 1 + 2 bytes, and enough ratings in each.
    height, width = tile_shape(50_000_000, 5_000_000, 10**9)
    assert (height, width) == (256, 65_536)
    assert height * width * 1e9 / 50e6 / 5e6 >= 32


@pytest.mark.parametrize("shape", [Shape(12, 3), Shape(70, 1), Shape(9, 8), Shape(5, 5), Shape(2, 6)])
@pytest.mark.parametrize("epoch", range(8))
def test_halfway__leaves_row_blocks_in_memory_only_while_they_are_visited(shape: Shape, epoch: int) -> None:
    schedule = strata(shape, epoch, 0)
    halfway = _halfway(schedule)
    in_memory: set[int] = set()
    last = {block.row: block for stratum in schedule for block in stratum}
    for stratum in schedule:
        in_memory |= {block.row for block in stratum}
        assert in_memory == {block.row for block in stratum}  # nobody is there who is not visited
        in_memory -= {block.row for block in stratum if block in halfway or block == last[block.row]}
    assert not in_memory
    assert len(halfway) < max(1, shape.cols)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("grid", [(12, 3), (4, 4), (2, 6)])
def test_fit__is_the_same_with_the_row_blocks_on_disk(
    grid: tuple[int, int], checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    source = write(tmp_path / "r.parquet", planted(uniform(rng, 30_000, 1_000, 300), rng))
    blocks = block_ratings(source, tmp_path / "b", grid=grid, holdout=0.1)
    mf = MatrixFactorization(5, epochs=7)
    mf.fit(blocks, threads=2).save(tmp_path / "expected")
    original = preparing.plan_memory

    def plan_memory(*args: Any) -> MemoryPlan:
        return original(*args)._replace(rows_on_disk=True)

    monkeypatch.setattr("distmf.preparing.plan_memory", plan_memory)
    monkeypatch.setattr("distmf.sides.GATHERED_BYTES", 333 * 4 * 5)  # in three parts
    options: dict[str, Any] = {"checkpoint": tmp_path / "c"} if checkpoint else {}
    if checkpoint:
        MatrixFactorization(5, epochs=3).fit(blocks, threads=2, **options)
        options["resume"] = True
        mf = MatrixFactorization(5, epochs=7)
    mf.fit(blocks, threads=2, **options)
    mf.save(tmp_path / "found")
    if not checkpoint:  # a longer training decays its step otherwise
        assert files(tmp_path / "found") == files(tmp_path / "expected")
    assert np.isfinite(mf.user_factors_).all()
    assert mf.user_factors_.shape == (1_000, 5)
    assert not list(tmp_path.glob("b.training*"))
