"""Planted ratings: what is on disk, against what was asked for and against the planted truth."""

import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmf import datasets
from distmf.datasets import Planted, planted_ratings
from distmf.errors import StoreError

SHAPES = {  # n_ratings, n_users, n_items, ratings per partition
    "one rating": (1, 1, 1, 10),
    "one user with everything": (500, 1, 500, 100),
    "one item with everything": (500, 500, 1, 100),
    "full matrix": (60 * 40, 60, 40, 500),
    "one pair short of full": (60 * 40 - 1, 60, 40, 500),
    "one rating per user": (300, 300, 50, 100),
    "fewer ratings than users": (100, 300, 50, 30),
    "one user beyond a partition": (4_000, 1, 5_000, 1_000),
    "light and heavy users": (30_000, 1_000, 300, 5_000),
    "light users": (30_000, 5_000, 20_000, 100_000),
}


class Ratings(NamedTuple):
    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]


def read(path: Path) -> Ratings:
    return Ratings(*(column.to_numpy() for column in pq.read_table(path).columns))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planted]:
    """300,000 ratings by 6,000 users of 2,000 items in partitions of about 50,000."""
    path = tmp_path_factory.mktemp("planted") / "ratings"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_PARTITION_RATINGS", 50_000)
        return path, planted_ratings(path, 300_000, 6_000, 2_000)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_planted_ratings__draws_distinct_pairs_in_range_exactly_as_many(
    shape: tuple[int, int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_ratings, n_users, n_items, n_partition = shape
    monkeypatch.setattr(datasets, "_PARTITION_RATINGS", n_partition)
    planted_ratings(tmp_path, n_ratings, n_users, n_items)
    users, items, ratings = read(tmp_path)
    assert len(np.unique(users * n_items + items)) == len(users) == n_ratings
    assert users.min() >= 0
    assert users.max() < n_users
    assert items.min() >= 0
    assert items.max() < n_items
    assert np.isfinite(ratings).all()
    assert len(np.unique(users)) == n_users or n_ratings < n_users
    assert max(pq.read_metadata(file).num_rows for file in tmp_path.iterdir()) <= 1.5 * n_partition


def test_planted_ratings__writes_numbered_partitions_of_three_typed_columns(large: tuple[Path, Planted]) -> None:
    path, _ = large
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("rating", pa.float32())])
    assert sorted(file.name for file in path.iterdir()) == [f"part-{number:05d}.parquet" for number in range(6)]
    assert all(pq.read_schema(file).equals(schema) for file in path.iterdir())


def test_planted_ratings__spreads_users_over_all_partitions_unsorted(large: tuple[Path, Planted]) -> None:
    for file in large[0].iterdir():
        users = read(file).users
        # Two random users are in ascending order half of the time; 5 standard errors of 50,000 pairs are 0.01.
        assert np.mean(users[1:] > users[:-1]) == pytest.approx(0.5, abs=0.02)
        assert np.histogram(users, bins=10, range=(0, 6_000))[0].min() > 0.05 * len(users)


def test_planted_ratings__follows_power_laws(large: tuple[Path, Planted]) -> None:
    users, items, _ = read(large[0])
    for ids, n in ((users, 6_000), (items, 2_000)):
        counts = np.sort(np.bincount(ids, minlength=n))[::-1]
        assert counts[: n // 100].sum() > 0.04 * counts.sum()  # even counts would give 0.01
        assert counts[n // 2 :].sum() < 0.35 * counts.sum()  # even counts would give 0.5


def test_planted_ratings__scatters_popular_items_over_the_ids(large: tuple[Path, Planted]) -> None:
    popular = np.argsort(np.bincount(read(large[0]).items))[-100:]
    assert np.histogram(popular, bins=4, range=(0, 2_000))[0].min() >= 10  # 25 expected, 3 standard deviations less


def test_planted_ratings__leaves_noise_of_the_planted_size(large: tuple[Path, Planted]) -> None:
    path, planted = large
    users, items, ratings = read(path)
    residuals = ratings - planted.true_ratings(users, items).astype(np.float64)
    n = len(residuals)
    # 5 standard errors: of a normal sample's standard deviation, σ / √2n, and of its mean, σ / √n.
    assert residuals.std() == pytest.approx(planted.noise_floor, abs=5 * 0.7 / np.sqrt(2 * n))
    assert residuals.mean() == pytest.approx(0, abs=5 * 0.7 / np.sqrt(n))


def test_planted_ratings__without_noise_writes_the_truth(tmp_path: Path) -> None:
    planted = planted_ratings(str(tmp_path), 1_000, 100, 50, noise=0)
    users, items, ratings = read(tmp_path)
    np.testing.assert_array_equal(ratings, planted.true_ratings(users, items))
    assert planted.noise_floor == 0


def test_planted_ratings__depends_on_its_arguments_only(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        planted_ratings(tmp_path / name, 5_000, 300, 100, seed=seed)
    first, again, other = (pq.read_table(tmp_path / name) for name in "abc")
    assert first.equals(again)
    assert all(a != b for a, b in zip(first.columns, other.columns, strict=True))


def test_planted_ratings__needs_memory_that_does_not_grow_with_ratings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_PARTITION_RATINGS", 5_000)
    peaks = []
    for n_ratings in (40_000, 40_000, 400_000):  # the first run also pays for what is imported and cached once
        tracemalloc.start()
        planted_ratings(tmp_path / str(len(peaks)), n_ratings, 4_000, 2_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 10 times the ratings; chunks differ in size as heavy users fall into them. All ratings at once are 8 MB.
    assert peaks[2] < 1.5 * peaks[1] < 3_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_ratings": 0}, "n_ratings is 0; .* at least 1"),
        ({"n_users": 0}, "n_users is 0; .* at least 1"),
        ({"n_items": -1}, "n_items is -1; .* at least 1"),
        ({"rank": 0}, "rank is 0; .* at least 1"),
        ({"noise": -0.1}, r"noise is -0\.1; .* at least 0"),
        ({"noise": float("nan")}, "noise is nan; .* finite"),
        ({"noise": float("inf")}, "noise is inf; .* finite"),
        ({"seed": -1}, "seed is -1; .* at least 0"),
        ({"n_ratings": 5_001}, "n_ratings is 5,001 .* only 5,000 pairs"),
    ],
)
def test_planted_ratings__refuses_bad_arguments_before_it_writes(
    arguments: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        planted_ratings(tmp_path / "ratings", **{"n_ratings": 10, "n_users": 100, "n_items": 50, **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_planted_ratings__refuses_to_overwrite(occupied: str, tmp_path: Path) -> None:
    path, precious = tmp_path / "ratings", tmp_path / "ratings"
    if occupied == "folder":
        path.mkdir()
        precious = path / "precious"
    precious.write_text("precious")
    with pytest.raises(StoreError, match="ratings exists and is not an empty folder"):
        planted_ratings(path, 10, 5, 5)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_planted_ratings__leaves_nothing_when_interrupted(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = pq.write_table

    def fail_at_the_third(table: pa.Table, where: Path, **options: object) -> None:
        write_table(table, where, **options)
        assert list(tmp_path.rglob("part-*.parquet"))  # there is something to remove
        if where.name == "part-00002.parquet":
            raise error

    monkeypatch.setattr(datasets, "_PARTITION_RATINGS", 100)
    monkeypatch.setattr(datasets.pq, "write_table", fail_at_the_third)
    with pytest.raises(error):
        planted_ratings(tmp_path / "ratings", 1_000, 100, 50)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [1, 3, 10, 64])
def test_planted__values_spread_as_stated_at_any_rank(rank: int) -> None:
    n = 40_000
    planted = Planted(n, n, n, rank)
    ids = np.arange(n)
    p_u, q_i = planted.user_factors(ids), planted.item_factors(ids)
    assert p_u.shape == q_i.shape == (n, rank)
    # 5 standard errors, 5 √((3.24 - 1) / 4n): 3.24 is the kurtosis of the product of two uniforms, the widest here.
    assert planted.user_biases(ids).std() == pytest.approx(0.35, rel=0.02)
    assert planted.item_biases(ids).std() == pytest.approx(0.35, rel=0.02)
    assert np.sum(p_u * q_i, axis=1).std() == pytest.approx(0.6, rel=0.02)
    for values in (planted.user_biases(ids), planted.item_biases(ids), *p_u.T, *q_i.T):
        assert values.mean() == pytest.approx(0, abs=5 * values.std() / np.sqrt(n))


def test_planted__values_are_uncorrelated() -> None:
    planted, ids = Planted(1, 1, 1, rank=8), np.arange(40_000)
    sides = [
        planted.user_biases(ids),
        *planted.user_factors(ids).T,
        planted.item_biases(ids),
        *planted.item_factors(ids).T,
    ]
    correlations = np.corrcoef(sides) - np.eye(len(sides))
    assert np.abs(correlations).max() < 5 / np.sqrt(len(ids))  # 5 standard errors


def test_true_ratings__is_the_formula_beyond_one_slice() -> None:
    planted = Planted(40_000, 10_000_000, 1_000_000, seed=3)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 10_000_000, 40_000), rng.integers(0, 1_000_000, 40_000)
    dots = np.sum(planted.user_factors(users).astype(np.float64) * planted.item_factors(items), axis=1)
    expected = planted.mean + planted.user_biases(users) + planted.item_biases(items) + dots
    np.testing.assert_allclose(planted.true_ratings(users, items), expected, rtol=1e-5, atol=1e-5)


def test_draw_heavy__draws_items_as_often_as_draw_light() -> None:
    n_users, n_items, degree = 4_000, 400, 50
    rng = np.random.default_rng(0)
    bases = np.arange(n_users) * n_items
    light = datasets._draw_light(rng, np.repeat(bases, degree), n_items)
    heavy = np.concatenate([*datasets._draw_heavy(rng, bases, np.full(n_users, degree), n_items)])
    shares = [np.bincount(pairs % n_items, minlength=n_items) / n_users for pairs in (light, heavy)]
    assert shares[0][:10].mean() > 3 * shares[0][-10:].mean()  # a flat draw would not tell the two apart
    # 5 standard errors of the difference of two shares near 0.35, the largest.
    np.testing.assert_allclose(*shares, rtol=0, atol=5 * np.sqrt(2 * 0.35 * 0.65 / n_users))


def test_splitmix64__gives_the_published_stream() -> None:
    # The first outputs of the reference implementation, https://prng.di.unimi.it/splitmix64.c, from state 0.
    stream = datasets._splitmix64(np.uint64(0), np.arange(1, 4, dtype=np.uint64))
    assert [hex(value) for value in stream] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
