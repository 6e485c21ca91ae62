"""Errors on ratings not trained on: against plain loops over pairs, and against scikit-learn."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import distmf
from distmf import MatrixFactorization, block_ratings, evaluate, evaluate_ranking
from distmf.errors import ParameterError, RatingsError, StoreError
from tests.clusters import cluster
from tests.helpers import random_ratings, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings by users and of items of very different counts, some of them unknown to the model."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    n = 6000
    users, items = (np.minimum(rng.geometric(0.02, n), 250), np.minimum(rng.geometric(0.05, n), 80))
    columns = {"user_id": users, "item_id": items, "rating": rng.integers(1, 6, n).astype(np.float32)}
    for name, part in {"train": slice(0, 4000), "test": slice(4000, n)}.items():
        write(folder / f"{name}.parquet", {key: column[part] for key, column in columns.items()})
    MatrixFactorization(4, epochs=5).fit(folder / "train.parquet").save(folder / "m")
    return folder


def errors_of(mf: MatrixFactorization, columns: dict[str, list[Any]]) -> list[float]:
    pairs = zip(columns["user_id"], columns["item_id"], columns["rating"], strict=True)
    return [rating - float(mf.predict([user], [item])[0]) for user, item, rating in pairs]


@pytest.mark.parametrize(("key", "column"), [("by_user_count", "user_id"), ("by_item_count", "item_id")])
def test_evaluate__has_errors_by_what_was_trained_on(key: str, column: str, folder: Path) -> None:
    mf = distmf.load(folder / "m")
    trained = pq.read_table(folder / "train.parquet")[column].to_pylist()
    tested = pq.read_table(folder / "test.parquet").to_pydict()
    edges = [0, 1, 3, 10, 30, 100, 300, 1000, math.inf]
    expected: dict[int, list[float]] = {}
    for error, raw in zip(errors_of(mf, tested), tested[column], strict=True):
        at_least = max(edge for edge in edges if edge <= trained.count(raw))
        expected.setdefault(int(at_least), []).append(error)
    found = evaluate(mf, folder / "test.parquet")[key]  # type: ignore[literal-required]
    assert len(found) > 4
    assert [bucket["at_least"] for bucket in found] == sorted(expected)
    for bucket in found:
        errors = np.array(expected[bucket["at_least"]])
        assert bucket["n"] == len(errors)
        assert bucket["rmse"] == pytest.approx(math.sqrt(np.mean(errors**2)), rel=1e-6)
        assert bucket["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)


def test_evaluate__of_blocks_is_over_those_held_out(tmp_path: Path) -> None:
    table = random_ratings(2000, 60, 40)
    blocks = block_ratings(write(tmp_path / "r.parquet", table), tmp_path / "b", holdout=0.2, grid=(2, 3))
    mf = MatrixFactorization(4, epochs=5).fit(blocks)
    found = evaluate(mf, blocks)
    assert found["n"] == blocks.n_holdout > 300
    assert found["rmse"] == pytest.approx(mf.history_.holdout_rmse, rel=1e-3)  # predictions are clipped here only
    assert evaluate(mf, blocks, clip=False)["rmse"] == pytest.approx(mf.history_.holdout_rmse, rel=1e-5)
    assert evaluate(mf, tmp_path / "b") == found
    with pytest.raises(ParameterError, match="user, rating can only be given with raw ratings"):
        evaluate(mf, blocks, user="u", rating="r")
    with pytest.raises(RatingsError, match=r"no ratings are held out; block them with holdout=0\.1"):
        evaluate(mf, block_ratings(tmp_path / "r.parquet", tmp_path / "all"))


def test_evaluate_ranking__of_blocks_leaves_out_what_was_trained_on_and_nothing_else(tmp_path: Path) -> None:
    table = random_ratings(2000, 60, 40)
    write(tmp_path / "r.parquet", table)
    blocks = block_ratings(tmp_path / "r.parquet", tmp_path / "b", holdout=0.2, seed=3, grid=(2, 3))
    mf = MatrixFactorization(4, epochs=5).fit(blocks)
    pairs: dict[str, set[tuple[int, int]]] = {"train": set(), "holdout": set()}
    users, items = blocks.ids("user")["id"].to_numpy(), blocks.ids("item")["id"].to_numpy()
    for key in blocks.entries:
        for part, seen in pairs.items():
            rows, cols = blocks.numbers(key, part)  # type: ignore[arg-type]
            seen |= set(zip(users[rows].tolist(), items[cols].tolist(), strict=True))
    ranks, scores = [], mf.reconstruct(clip=False)
    for user in sorted({user for user, _ in pairs["holdout"]} & set(mf.user_ids_.tolist())):
        row = scores[np.searchsorted(mf.user_ids_, user)]
        order = [item for item in mf.item_ids_[np.argsort(-row)].tolist() if (user, item) not in pairs["train"]]
        ranks.append(next((1 / n for n, item in enumerate(order[:5], 1) if (user, item) in pairs["holdout"]), 0.0))
    assert evaluate_ranking(mf, blocks, 5)["mrr"] == pytest.approx(np.mean(ranks), abs=1e-9)


def test_evaluate__of_probabilities_has_their_log_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"user_id": rng.integers(0, 50, 3000), "item_id": rng.integers(0, 30, 3000)}
    for name, (low, high) in {"zero": (0.0, 1.0), "minus": (-1.0, 1.0)}.items():
        liked = rng.random(3000) < 0.3
        rated = {**columns, "rating": np.where(liked, high, low)}
        source = write(tmp_path / f"{name}.parquet", rated)
        mf = MatrixFactorization(3, loss="logistic", epochs=5).fit(source)
        found = evaluate(mf, source)["log_loss"]
        chances = [(mf.predict([u], [i])[0] - low) / (high - low) for u, i in zip(*columns.values(), strict=True)]
        losses = [-math.log(p if yes else 1 - p) for p, yes in zip(chances, liked, strict=True)]
        assert found == pytest.approx(np.mean(losses), rel=1e-5)
        calibration = evaluate(mf, source)["calibration"]
        assert calibration is not None
        for chance, tenth in zip(calibration, sorted({int(10 * p) for p in chances}), strict=True):
            there = [(p, yes) for p, yes in zip(chances, liked, strict=True) if int(10 * p) == tenth]
            assert chance["n"] == len(there)
            assert (chance["predicted"], chance["observed"]) == pytest.approx(np.mean(there, axis=0), rel=1e-5)
    with pytest.raises(RatingsError, match=r"the model tells -1 from 1, but there is a rating of 0\.5"):
        evaluate(mf, write(tmp_path / "t.parquet", {"user_id": [1, 2], "item_id": [1, 2], "rating": [1.0, 0.5]}))


def test_evaluate__on_a_cluster_is_the_same(folder: Path, tmp_path: Path) -> None:
    """Of a model in memory, and of one that the workers read; for ratings in files and in blocks."""
    blocks = block_ratings(folder / "train.parquet", tmp_path / "b", holdout=0.2, grid=(3, 2))
    mf, model, test = distmf.load(folder / "m"), folder / "m", folder / "test.parquet"
    here = [evaluate(mf, source) for source in (test, blocks)]
    ranks = [evaluate_ranking(mf, source, 5, exclude=blocks) for source in (test, blocks)]
    assert evaluate(model, test, threads=1) == here[0]
    with cluster(2, tmp_path) as client:
        for source, errors, lists in zip((test, blocks), here, ranks, strict=True):
            assert evaluate(mf, source, client=client) == evaluate(model, source, client=client) == errors
            assert evaluate_ranking(model, source, 5, exclude=blocks, client=client) == lists
        assert evaluate_ranking(mf, test, 5, exclude=blocks, client=client) == ranks[0]


def test_evaluate__refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no distmf model here, model\.json is missing"):
        evaluate(tmp_path, tmp_path / "t.parquet")


def test_evaluate__has_no_log_loss_of_ratings(folder: Path) -> None:
    found = evaluate(distmf.load(folder / "m"), folder / "test.parquet")
    assert (found["log_loss"], found["calibration"]) == (None, None)


def test_errors__are_those_of_scikit_learn(folder: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="no sklearn: pip install '.[frames]'")
    mf, columns = distmf.load(folder / "m"), pq.read_table(folder / "test.parquet").to_pydict()
    found = evaluate(mf, folder / "test.parquet")
    predicted = mf.predict(columns["user_id"], columns["item_id"]).astype(np.float64)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(columns["rating"], predicted), rel=1e-9)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(columns["rating"], predicted), rel=1e-9)


def test_errors__are_those_of_surprise(folder: Path) -> None:
    accuracy = pytest.importorskip("surprise.accuracy", reason="no surprise: pip install '.[frames]'")
    mf, columns = distmf.load(folder / "m"), pq.read_table(folder / "test.parquet").to_pydict()
    found = evaluate(mf, folder / "test.parquet")
    predicted = mf.predict(columns["user_id"], columns["item_id"]).tolist()
    rows = [(u, i, r, p, {}) for u, i, r, p in zip(*columns.values(), predicted, strict=True)]
    assert found["rmse"] == pytest.approx(accuracy.rmse(rows, verbose=False), rel=1e-9)
    assert found["mae"] == pytest.approx(accuracy.mae(rows, verbose=False), rel=1e-9)


def test_log_loss__is_that_of_scikit_learn(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="no sklearn: pip install '.[frames]'")
    rng = np.random.default_rng(1)
    columns = {"user_id": rng.integers(0, 50, 3000), "item_id": rng.integers(0, 30, 3000)}
    source = write(tmp_path / "r.parquet", {**columns, "rating": (rng.random(3000) < 0.4).astype(np.float32)})
    mf = MatrixFactorization(3, loss="logistic", epochs=5).fit(source)
    rated = pq.read_table(source)["rating"].to_numpy()
    expected = metrics.log_loss(rated, mf.predict(*columns.values()).astype(np.float64))
    assert evaluate(mf, source)["log_loss"] == pytest.approx(expected, rel=1e-6)
