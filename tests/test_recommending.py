"""The best items of users: exactly those, whatever is left out, in memory and from files, on any engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client

import distmf
from distmf import MatrixFactorization, block_ratings, recommending
from distmf.best import LANES, USERS, Panels, Rated
from distmf.errors import ParameterError, RatingsError, StoreError
from tests.clusters import cluster
from tests.helpers import random_ratings, write


@pytest.mark.parametrize(
    ("n_users", "n_items", "rank", "n"),
    [(1, 1, 1, 1), (5, 15, 3, 4), (6, 16, 8, 16), (7, 17, 5, 10), (200, 1000, 64, 10), (400, 9000, 33, 30)],
)
@pytest.mark.parametrize("ties", [False, True])
def test_panels__find_the_best(n_users: int, n_items: int, rank: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(n_items)
    users, items = (rng.normal(size=(size, rank)).astype(np.float32) for size in (n_users, n_items))
    biases = rng.normal(size=n_items).astype(np.float32)
    if ties:  # whole numbers: products are exact, and many are the same
        users, items, biases = (np.round(array) for array in (users, items, biases))
    pairs = rng.integers(n_users, size=4 * n_users), rng.integers(n_items, size=4 * n_users)
    rated = Rated.of_pairs(*pairs, n_users)
    scores = users.astype(np.float64) @ items.T + biases
    scores[pairs] = -np.inf
    found, products = Panels(items, biases).best(users, n, rated)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    expected = np.take_along_axis(scores, best, axis=1)
    np.testing.assert_allclose(products, expected, rtol=1e-5, atol=1e-5)
    is_left = np.isfinite(expected)
    if ties:
        np.testing.assert_array_equal(found[is_left], best[is_left])
    taken = np.take_along_axis(scores, found, axis=1)
    np.testing.assert_allclose(taken[is_left], expected[is_left], rtol=1e-5, atol=1e-5)


def test_panels__fit_the_vectors() -> None:
    assert LANES * 4 == 64
    assert 2 * USERS < 16  # sums in registers of 8 floats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with blocks and a model, whose users are in three row groups."""
    folder = tmp_path_factory.mktemp("recommending")
    source = write(folder / "r.parquet", random_ratings(6000, 300, 80))
    blocks = block_ratings(source, folder / "blocks", grid=(3, 2), holdout=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distmf.model.WRITTEN_BYTES", 4 * 8 * 128)
        MatrixFactorization(8, epochs=3).fit(blocks).save(folder / "model")
    return folder


def read(out: Path) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = pq.read_table(out).to_pydict()
    return table


def expected(folder: Path, users: Any, n: int, **options: Any) -> dict[str, list[Any]]:
    """Return what `recommend` finds, as rows."""
    mf = distmf.load(folder / "model")
    best = mf.recommend(users, n, **options)
    rows = [
        (user, item, score, rank)
        for user, items, scores in zip(users, best.item_ids.tolist(), best.scores.tolist(), strict=True)
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1)
        if np.isfinite(score)
    ]
    return dict(zip(("user_id", "item_id", "score", "rank"), map(list, zip(*rows, strict=True)), strict=True))


def expected_of_all(folder: Path, n: int) -> dict[str, list[Any]]:
    """Return what `recommend` finds for all users, of what they have not rated."""
    return expected(folder, distmf.load(folder / "model").user_ids_, n, exclude=folder / "blocks")


@pytest.mark.parametrize("options", [{}, {"exclude": "blocks"}, {"exclude": "blocks", "n": 75}, {"n": 200}])
@pytest.mark.parametrize("filters", [{}, {"among": range(10, 50)}, {"without": [3, 5, 7, 10**6]}])
def test_recommend_all__is_recommend_of_all(
    folder: Path, tmp_path: Path, options: dict[str, Any], filters: dict[str, Any]
) -> None:
    options = {**options, **({"exclude": folder / "blocks"} if "exclude" in options else {})} | filters
    n_rows = distmf.recommend_all(folder / "model", tmp_path / "out", **options)
    users = distmf.load(folder / "model").user_ids_.tolist()
    n = options.pop("n", 10)
    found = read(tmp_path / "out")
    assert found == expected(folder, users, n, **options)
    assert len(found["rank"]) == n_rows
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 3


def test_recommend_all__takes_what_is_in_memory(folder: Path, tmp_path: Path) -> None:
    """A model and ratings, of which nothing is left beside the recommendations."""
    distmf.recommend_all(folder / "model", tmp_path / "one", 5, exclude=folder / "r.parquet")
    ratings = pq.read_table(folder / "r.parquet")
    distmf.recommend_all(distmf.load(folder / "model"), tmp_path / "two", 5, exclude=ratings)
    assert read(tmp_path / "two") == read(tmp_path / "one") == expected_of_all(folder, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_recommend_all__of_some_users(folder: Path, tmp_path: Path) -> None:
    known = [5, 17, 290]
    distmf.recommend_all(folder / "model", tmp_path / "out", 4, users=[290, 10**7, 5, 17, 5], exclude=folder / "blocks")
    found = read(tmp_path / "out")
    assert found == expected(folder, [*known, 10**7], 4, exclude=folder / "blocks")


def test_recommend_all__on_a_cluster_is_the_same(folder: Path, tmp_path: Path) -> None:
    options = {"n": 5, "exclude": folder / "blocks"}
    distmf.recommend_all(folder / "model", tmp_path / "threads", **options)  # type: ignore[arg-type]
    with cluster(2, tmp_path) as client:
        assert isinstance(client, Client)
        distmf.recommend_all(folder / "model", tmp_path / "workers", **options, client=client)  # type: ignore[arg-type]
    for file in (tmp_path / "threads").glob("*.parquet"):
        assert file.read_bytes() == (tmp_path / "workers" / file.name).read_bytes()


def test_recommend_all__goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    original = recommending._write

    def write_some(work: Any, part: int, *arguments: Any) -> int:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part)
        return original(work, part, *arguments)

    monkeypatch.setattr(recommending, "_write", write_some)
    options: dict[str, Any] = {"exclude": folder / "blocks", "threads": 1}
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        distmf.recommend_all(folder / "model", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    later: list[int] = []

    def write_and_note(work: Any, part: int, *arguments: Any) -> int:
        later.append(part)
        return original(work, part, *arguments)

    monkeypatch.setattr(recommending, "_write", write_and_note)
    distmf.recommend_all(folder / "model", tmp_path / "out", **options)
    assert sorted([*done, *later]) == [0, 1, 2]
    distmf.recommend_all(folder / "model", tmp_path / "whole", exclude=folder / "blocks")
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".job")] == []


def test_recommend__refuses(folder: Path, tmp_path: Path) -> None:
    mf = distmf.load(folder / "model")
    with pytest.raises(ParameterError, match="no item is left to recommend"):
        mf.recommend(5, among=[10**6])
    with pytest.raises(ParameterError, match="n is 0; it is a whole number"):
        distmf.recommend_all(folder / "model", tmp_path / "out", 0)
    with pytest.raises(ParameterError, match="bound is 'best'"):
        distmf.recommend_all(folder / "model", tmp_path / "out", bound="best")  # type: ignore[arg-type]
    with pytest.raises(RatingsError, match="item ids are of type string"):
        mf.recommend(5, without=["x"])
    with pytest.raises(StoreError, match="no distmf model here, but distmf blocks"):
        distmf.recommend_all(folder / "blocks", tmp_path / "out")
    with pytest.raises(StoreError, match="one is in the other"):
        distmf.recommend_all(folder / "model", folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match="exists and is not only distmf recommendations"):
        distmf.recommend_all(folder / "model", tmp_path / "other")


def test_similar_items__are_no_more_than_there_are(folder: Path) -> None:
    mf = distmf.load(folder / "model")
    others = [item for item in mf.item_ids_.tolist() if item != 5]
    assert sorted(mf.similar_items(5, n=500).ids.tolist()) == others
    found = mf.similar_items([5, 7], n=500)
    assert sorted(found.ids[0].compressed().tolist()) == others
    assert np.isneginf(found.cosines[0]).sum() == np.ma.count_masked(found.ids[0]) == 1


def test_similar_items__are_those_with_the_largest_cosines(folder: Path) -> None:
    mf = distmf.load(folder / "model")
    Q = mf.item_factors_ / np.linalg.norm(mf.item_factors_, axis=1, keepdims=True)
    cosines = Q @ Q.T
    np.fill_diagonal(cosines, -np.inf)
    ids, place = mf.item_ids_, 12
    found = mf.similar_items(ids[[3, place]], n=5)
    assert found.ids.shape == (2, 5)
    assert found.ids[1].tolist() == ids[np.argsort(-cosines[place])[:5]].tolist()
    np.testing.assert_allclose(found.cosines[1], np.sort(cosines[place])[::-1][:5], rtol=1e-5)
    assert mf.similar_items(ids[place], n=5).ids.tolist() == found.ids[1].tolist()
    assert mf.similar_users(5, n=3).ids.shape == (3,)
    assert 5 not in mf.similar_users(5, n=300).ids[:-1]
    with pytest.raises(RatingsError, match="item 1000000 was not trained on"):
        mf.similar_items([5, 10**6])
