"""Vectors for nearest neighbours: their products are the predictions, and their neighbours the recommendations."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import distmf
from distmf import MatrixFactorization, export
from distmf.errors import ParameterError, StoreError
from tests.helpers import random_ratings, write


def trained(folder: Path, table: pa.Table | None = None, **options: Any) -> MatrixFactorization:
    source = write(folder / "r.parquet", random_ratings(3000, 100, 60) if table is None else table)
    mf = MatrixFactorization(6, epochs=4, **options).fit(source, grid=(2, 3), holdout=0.1)
    mf.save(folder / "m")
    return mf


def read(folder: Path, side: str, kind: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if kind == "numpy":
        return np.load(folder / f"{side}_ids.npy"), np.load(folder / f"{side}.npy")
    table = pq.read_table(folder / f"{side}.parquet")
    assert table.column_names == ["id", "vector"]
    return table["id"].to_numpy(), np.array(table["vector"].to_pylist(), dtype=np.float32)


@pytest.mark.parametrize("kind", ["parquet", "numpy"])
@pytest.mark.parametrize("options", [{}, {"posterior_samples": 2}, {"loss": "huber"}])
def test_export__products_are_predictions(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    mf = trained(tmp_path, **options)
    n_users, n_items = export(tmp_path / "m", tmp_path / "v", kind)
    (users, p), (items, q) = read(tmp_path / "v", "users", kind), read(tmp_path / "v", "items", kind)
    assert (n_users, n_items) == (len(users), len(items)) == (100, 60)
    assert p.dtype == q.dtype == np.float32
    pairs = np.repeat(users, len(items)), np.tile(items, len(users))
    np.testing.assert_allclose((p @ q.T).ravel(), mf.predict(*pairs, clip=False), rtol=1e-5, atol=1e-5)


def test_export__of_a_model_in_memory(tmp_path: Path) -> None:
    mf = trained(tmp_path)
    for name, model in ("one", mf), ("two", tmp_path / "m"):
        export(model, tmp_path / name)
    assert (tmp_path / "one/users.parquet").read_bytes() == (tmp_path / "two/users.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "one", "r.parquet", "two"]


def test_export__has_the_score_of_a_sigmoid(tmp_path: Path) -> None:
    mf = trained(tmp_path, bounds=(0, 6))
    export(tmp_path / "m", tmp_path / "v", "numpy")
    scores = np.load(tmp_path / "v/users.npy") @ np.load(tmp_path / "v/items.npy").T
    np.testing.assert_allclose(6 / (1 + np.exp(-scores)), mf.reconstruct(clip=False), rtol=1e-5)


def test_export__takes_strings_and_leaves_out_who_was_not_trained_on(tmp_path: Path) -> None:
    table = random_ratings(2000, 100, 60)
    names = [f"Kö{user}" for user in table["user_id"].to_pylist()]
    only_held_out = distmf.block_ratings(
        write(tmp_path / "s.parquet", table.set_column(0, "user_id", pa.array(names))), tmp_path / "b", holdout=0.95
    )
    mf = MatrixFactorization(3, epochs=2).fit(only_held_out)
    mf.save(tmp_path / "m")
    known = mf.user_ids_[mf.model_.users.counts > 0]
    assert 0 < len(known) < len(mf.user_ids_)
    for kind in ("numpy", "parquet"):
        export(tmp_path / "m", tmp_path / "v", kind)  # type: ignore[arg-type]
        ids, vectors = read(tmp_path / "v", "users", kind)
        assert ids.tolist() == known.tolist()
        assert vectors.shape == (len(known), 5)


def test_export__takes_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmf.model.WRITTEN_BYTES", 24 * 7)
    trained(tmp_path)
    assert pq.ParquetFile(tmp_path / "m/users.parquet").num_row_groups == 15
    export(tmp_path / "m", tmp_path / "v")
    export(tmp_path / "m", tmp_path / "w", "numpy")
    np.testing.assert_array_equal(read(tmp_path / "v", "users", "parquet")[1], np.load(tmp_path / "w/users.npy"))
    assert pq.ParquetFile(tmp_path / "v/users.parquet").num_row_groups == 15


def test_export__refuses(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ParameterError, match="format is 'csv'; it can be 'parquet' or 'numpy'"):
        export(tmp_path / "m", tmp_path / "v", "csv")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="one is in the other"):
        export(tmp_path / "m", tmp_path / "m/v")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not only distmf vectors"):
        export(tmp_path / "m", tmp_path / "other")
    data = (tmp_path / "m/users.parquet").read_bytes()
    (tmp_path / "m/users.parquet").write_bytes(data[:100] + b"?" + data[101:])
    with pytest.raises(StoreError, match="does not match its checksum"):
        export(tmp_path / "m", tmp_path / "v")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "other", "r.parquet"]


def test_faiss__finds_what_recommend_does(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="no faiss: pip install '.[frames]'")
    mf = trained(tmp_path)
    export(tmp_path / "m", tmp_path / "v", "numpy")
    users, items = np.load(tmp_path / "v/users.npy"), np.load(tmp_path / "v/items.npy")
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    ratings, places = index.search(users, 10)
    best = mf.recommend(mf.user_ids_, 10)
    np.testing.assert_array_equal(mf.item_ids_[places], best.item_ids)
    np.testing.assert_allclose(np.clip(ratings, *mf.model_.rating_range), best.scores, rtol=1e-5)


def test_hnswlib__finds_what_recommend_does(tmp_path: Path) -> None:
    hnswlib = pytest.importorskip("hnswlib", reason="no hnswlib: pip install '.[frames]'")
    mf = trained(tmp_path)
    export(tmp_path / "m", tmp_path / "v", "numpy")
    users, items = np.load(tmp_path / "v/users.npy"), np.load(tmp_path / "v/items.npy")
    index = hnswlib.Index("ip", items.shape[1])
    index.init_index(len(items))
    index.add_items(items)
    index.set_ef(200)
    places, distances = index.knn_query(users, 10)
    best = mf.recommend(mf.user_ids_, 10)
    assert np.mean(mf.item_ids_[places] == best.item_ids) > 0.99  # it is approximate
    predicted = mf.predict(np.repeat(mf.user_ids_, 10), best.item_ids.ravel(), clip=False)
    assert np.median(np.abs(1 - distances.ravel() - predicted)) < 1e-4
