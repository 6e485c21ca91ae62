"""Weights of ratings, from a column to the cost."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distmf import Blocks, MatrixFactorization, block_ratings
from distmf.blocks import Part
from distmf.errors import RatingsError
from tests.helpers import files, random_ratings, write


def weighted(n: int = 5000, *, coded: bool = True, seed: int = 0) -> pa.Table:
    """Return ratings with weights."""
    weights = np.random.default_rng(seed).gamma(1, 2, n).astype(np.float32) + np.float32(1e-3)
    return random_ratings(n, 300, 100, coded=coded).append_column("w", pa.array(weights))


def rows_of(blocks: Blocks, part: Part) -> list[tuple[Any, ...]]:
    """Return raw ids, rating and weight of every rating."""
    users, items = (blocks.ids(side)["id"].to_numpy() for side in ("user", "item"))
    found: list[tuple[Any, ...]] = []
    for key in blocks.entries:
        rows, cols = blocks.numbers(key, part)
        ratings = blocks.read(key, part)
        assert ratings.weights is not None
        values = ratings.encoding.decode(ratings.values)
        columns = users[rows], items[cols], values, ratings.weights
        found += zip(*(column.tolist() for column in columns), strict=True)
    return found


@pytest.mark.parametrize("coded", [True, False])
def test_block_ratings__keeps_each_rating_with_its_weight(coded: bool, tmp_path: Path) -> None:
    table = weighted(coded=coded)
    blocks = block_ratings(write(tmp_path / "r.parquet", table), tmp_path / "b", weight="w", holdout=0.2, grid=(3, 4))
    train, held_out = rows_of(blocks, "train"), rows_of(blocks, "holdout")
    assert Counter(train + held_out) == Counter(zip(*(column.to_pylist() for column in table.columns), strict=True))
    ratings, weights = (np.array([row[n] for row in train]) for n in (2, 3))
    assert blocks.n_ratings == len(train)
    assert blocks.moments.n == pytest.approx(weights.sum(), rel=1e-6)
    assert blocks.moments.mean == pytest.approx(np.average(ratings, weights=weights), rel=1e-6)
    assert blocks.moments.std**2 == pytest.approx(np.cov(ratings, aweights=weights, ddof=0), rel=1e-5)
    assert blocks.holdout_weight == pytest.approx(sum(row[3] for row in held_out), rel=1e-6)


@pytest.mark.parametrize("coded", [True, False])
def test_block_ratings__with_weights_does_not_depend_on_order_or_files(coded: bool, tmp_path: Path) -> None:
    table = weighted(coded=coded)
    again = table.slice(0, 300).set_column(3, "w", pa.array(np.arange(1, 301, dtype=np.float32)))  # the same ratings
    table = pa.concat_tables([table, again])
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    write(tmp_path / "one.parquet", table)
    (tmp_path / "many").mkdir()
    for n in range(3):
        write(tmp_path / "many" / f"{n}.parquet", shuffled.slice(n * 2000, 2000), row_group_size=300)
    for duplicates in ("keep", "mean"):
        found = []
        for name, source, threads in (("a", "one.parquet", 1), ("b", "many", 2)):
            options: dict[str, Any] = {"weight": "w", "duplicates": duplicates, "threads": threads, "grid": (2, 2)}
            block_ratings(tmp_path / source, tmp_path / name, **options)
            found.append(files(tmp_path / name))
        assert found[0] == found[1]


def test_block_ratings__takes_weighted_means_of_duplicates(tmp_path: Path) -> None:
    columns = {"user_id": [1, 1, 2, 2, 3], "item_id": [1, 1, 1, 1, 2], "rating": [1.0, 4.0, 2.0, 3.0, 5.0]}
    source = write(tmp_path / "r.parquet", {**columns, "w": [1.0, 2.0, 2.0, 2.0, 1.0]})
    blocks = block_ratings(source, tmp_path / "b", weight="w", duplicates="mean", grid=(1, 1))
    assert sorted(rows_of(blocks, "train")) == [(1, 1, 3.0, 3.0), (2, 1, 2.5, 4.0), (3, 2, 5.0, 1.0)]


def test_fit__minimises_the_weighted_error(tmp_path: Path) -> None:
    table = weighted(20_000)
    users, items, ratings, weights = (column.to_numpy() for column in table.columns)
    is_wrong = np.random.default_rng(5).random(len(ratings)) < 0.3
    table = table.set_column(2, "rating", pa.array(np.where(is_wrong, 6 - ratings, ratings)))
    table = table.set_column(3, "w", pa.array(np.where(is_wrong, 0.01, weights).astype(np.float32)))
    source = write(tmp_path / "r.parquet", table)
    mf = MatrixFactorization(4).fit(source, weight="w")
    plain = MatrixFactorization(4).fit(source)

    def error(mf: MatrixFactorization, weights: Any) -> float:
        squares = np.square(mf.predict(users, items, clip=False).astype(np.float64) - table["rating"].to_numpy())
        return float(np.sqrt(np.average(squares, weights=weights)))

    weights = table["w"].to_numpy()
    assert mf.history_.train_rmse == pytest.approx(error(mf, weights), rel=1e-4)
    assert error(mf, weights) < 0.8 * error(plain, weights)
    assert mf.global_bias_ == pytest.approx(np.average(table["rating"].to_numpy(), weights=weights), rel=1e-5)


def test_fit__is_the_same_with_all_weights_alike(tmp_path: Path) -> None:
    table = random_ratings(5000, 300, 100)
    source = write(tmp_path / "r.parquet", table.append_column("w", pa.array(np.full(5000, 8, dtype=np.float32))))
    found = [MatrixFactorization(4, epochs=5).fit(source, **options) for options in ({}, {"weight": "w"})]
    np.testing.assert_allclose(found[0].user_factors_, found[1].user_factors_, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, None, 1.0], "column 'w' has 1 null weight;"),
        ([1.0, -1.0, -2.0], "column 'w' has 2 weights not above 0"),
        ([1.0, float("nan"), 1.0], "column 'w' has 1 NaN weight;"),
        ([0.0, 1.0, 0.0], "column 'w' has 2 weights not above 0"),
        (["a", "b", "c"], "column 'w' has type string; weights must be numbers"),
    ],
)
def test_block_ratings__refuses_weights(weights: list[Any], message: str, tmp_path: Path) -> None:
    columns = {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "rating": [1.0, 2.0, 3.0], "w": weights}
    with pytest.raises(RatingsError, match=message):
        block_ratings(write(tmp_path / "r.parquet", columns), tmp_path / "b", weight="w", grid=(1, 1))


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
def test_fit__hardly_sees_ratings_of_hardly_any_weight(loss: Any, tmp_path: Path) -> None:
    table = random_ratings(5000, 300, 100)
    wrong = table.set_column(2, "rating", pa.array(np.full(5000, 1000, dtype=np.float32)))
    both = pa.concat_tables([table, wrong, wrong])
    weights = np.repeat([1, 1e-9, 1e-9], 5000).astype(np.float32)
    mf = MatrixFactorization(4, loss=loss).fit(
        write(tmp_path / "r.parquet", both.append_column("w", pa.array(weights))), weight="w"
    )
    errors = mf.predict(table["user_id"].to_numpy(), table["item_id"].to_numpy()) - table["rating"].to_numpy()
    assert np.sqrt(np.mean(errors**2)) < 0.6
    assert "at the noise" not in mf.diagnose().codes


def test_weights__are_not_for_draws(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", weighted())
    with pytest.raises(ValueError, match="posterior_samples take no weights"):
        MatrixFactorization(4, posterior_samples=2).fit(source, weight="w")
    with pytest.raises(RatingsError, match="there is no column 'weights'; .* did you mean weight='w'|--weight"):
        MatrixFactorization(4).fit(source, weight="weights")
