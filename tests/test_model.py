"""What a trained model predicts and recommends, and that it is the same after it was saved and loaded."""

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf import Blocks, MatrixFactorization, always, block_ratings, evaluate, load
from distmf.errors import NotFittedError, RatingsError, StoreError
from distmf.model import top
from tests.helpers import files, random_ratings, write

TABLE = random_ratings(4000, 200, 80)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "r.parquet", TABLE)


@pytest.fixture(scope="module")
def blocks(source: Path) -> Blocks:
    return block_ratings(source, source.parent / "blocks", holdout=0.1)


@pytest.fixture(scope="module")
def mf(blocks: Blocks) -> MatrixFactorization:
    return MatrixFactorization(6, epochs=8).fit(blocks)


@pytest.fixture(scope="module")
def strings(tmp_path_factory: pytest.TempPathFactory) -> MatrixFactorization:
    """Return a model of string ids, "u7" and "i3"."""
    table = TABLE
    for position, name in enumerate(("user_id", "item_id")):
        ids = pa.array([f"{name[0]}{n}" for n in table[name].to_pylist()])
        table = table.set_column(position, name, ids)
    return MatrixFactorization(6, epochs=8).fit(write(tmp_path_factory.mktemp("strings") / "r.parquet", table))


def test_attributes__are_ordered_by_id(mf: MatrixFactorization) -> None:
    assert mf.user_ids_.tolist() == list(range(200))
    assert mf.item_ids_.tolist() == list(range(80))
    assert mf.user_factors_.shape == (200, 6)
    assert mf.item_factors_.shape == (80, 6)
    assert mf.user_biases_.shape == (200,)
    assert mf.item_biases_.shape == (80,)
    for array in (mf.user_factors_, mf.item_factors_, mf.user_biases_, mf.item_biases_):
        assert array.dtype == np.float32


def test_predict__is_the_formula(mf: MatrixFactorization) -> None:
    users, items = np.array([3, 0, 199, 3]), np.array([79, 5, 0, 5])
    expected = (
        mf.global_bias_
        + mf.user_biases_[users].astype(np.float64)
        + mf.item_biases_[items]
        + np.sum(mf.user_factors_[users].astype(np.float64) * mf.item_factors_[items], axis=1)
    )
    found = mf.predict(users, items, clip=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(mf.predict(users, items), np.clip(found, 1, 5))
    np.testing.assert_allclose(mf.reconstruct(clip=False)[users, items], expected, rtol=1e-5)


def test_predict__falls_back_to_what_is_known(mf: MatrixFactorization) -> None:
    found = mf.predict([1000, 1000, 7], [1000, 7, -1], clip=False)
    expected = [mf.global_bias_, mf.global_bias_ + mf.item_biases_[7], mf.global_bias_ + mf.user_biases_[7]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert mf.is_unseen([1000, 1000, 7, 7], [1000, 7, -1, 7]).tolist() == [True, True, True, False]


def test_predict__takes_single_ids_lists_arrays_and_arrow(mf: MatrixFactorization) -> None:
    expected = mf.predict(np.array([3]), np.array([4]))
    for user, item in (
        (3, 4),
        ([3], [4]),
        (np.array([3], dtype=np.uint8), np.array([4], dtype=np.int16)),
        (pa.array([3]), pa.array([4])),
        (pa.chunked_array([[3]]), pa.chunked_array([[4]])),
        (pa.array([3]).dictionary_encode(), pa.array([4]).dictionary_encode()),
    ):
        np.testing.assert_array_equal(mf.predict(user, item), expected)
    assert mf.predict([], []).shape == (0,)


def test_predict__takes_large_unsigned_ids(tmp_path: Path) -> None:
    ids = pa.array([2**64 - 1, 2**63, 5], pa.uint64())
    source = write(tmp_path / "r.parquet", {"user_id": ids, "item_id": ids, "rating": [1.0, 2.0, 3.0]})
    mf = MatrixFactorization(2, epochs=3).fit(source)
    assert mf.is_unseen([2**64 - 1, 2**63, 7], [5, 5, 5]).tolist() == [False, False, True]
    assert mf.is_unseen([-1], [5]).tolist() == [True]


def test_predict__takes_strings(strings: MatrixFactorization) -> None:
    found = strings.predict(["u3", "nobody"], np.array(["i4", "i4"]), clip=False)
    user, item = (list(ids).index(name) for ids, name in ((strings.user_ids_, "u3"), (strings.item_ids_, "i4")))
    assert found[0] == pytest.approx(strings.reconstruct(clip=False)[user, item], rel=1e-5)
    assert strings.is_unseen(["u3", "nobody"], ["i4", "i4"]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("users", "items", "error", "message"),
    [
        (["3"], [4], RatingsError, "user ids are of type string, but in the model of type int64"),
        ([3], [4.5], RatingsError, "item ids are of type double"),
        ([None], [4], RatingsError, "of the user ids, 1 of 1 are null"),
        ([1, 2], [3], RatingsError, "2 user ids and 1 item id;"),
    ],
)
def test_predict__refuses_other_ids(
    users: Any, items: Any, error: type[Exception], message: str, mf: MatrixFactorization
) -> None:
    with pytest.raises(error, match=message):
        mf.predict(users, items)


def test_methods__need_training_first() -> None:
    mf = MatrixFactorization()
    for call in (lambda: mf.predict(1, 1), lambda: mf.user_factors_, lambda: mf.save("x"), lambda: mf.recommend(1)):
        with pytest.raises(NotFittedError, match="call fit first"):
            call()
    assert not hasattr(mf, "user_factors_")


def test_load__gives_the_model_that_was_saved(
    mf: MatrixFactorization, strings: MatrixFactorization, tmp_path: Path
) -> None:
    for name, model in (("integers", mf), ("strings", strings)):
        model.save(tmp_path / name)
        again = load(tmp_path / name)
        np.testing.assert_array_equal(again.reconstruct(), model.reconstruct())
        assert again.user_ids_.tolist() == model.user_ids_.tolist()
        assert again.hyperparameters == model.hyperparameters
        assert again.history_.epochs == tuple(epoch._replace(utilization=None) for epoch in model.history_)
        assert all(epoch.utilization is not None and 0 < epoch.utilization <= 1 for epoch in model.history_)
        assert again.history_.stopped == model.history_.stopped
        again.save(tmp_path / "again")
        assert files(tmp_path / "again") == files(tmp_path / name)


def test_save__writes_what_the_format_says(mf: MatrixFactorization, tmp_path: Path) -> None:
    mf.save(tmp_path / "model")
    assert sorted(files(tmp_path / "model")) == ["items.parquet", "model.json", "users.parquet"]
    manifest = json.loads((tmp_path / "model" / "model.json").read_text())
    assert manifest["version"] == 4
    assert manifest["normalisation"]["mean"] == mf.global_bias_
    assert manifest["hyperparameters"]["rank"] == 6
    assert manifest["distmf"]
    assert len(manifest["history"]["epochs"]) == 8
    users = pq.read_table(tmp_path / "model" / "users.parquet")
    assert users.schema.field("factors").type == pa.list_(pa.float32(), 6)
    assert users.column_names == ["id", "bias", "factors", "count"]
    assert users["count"].to_numpy().sum() == mf.model_.users.counts.sum() > 3000


def test_save__works_with_urls(mf: MatrixFactorization) -> None:
    try:
        mf.save("memory://models/m")
        mf.save("memory://models/m")
        np.testing.assert_array_equal(load("memory://models/m").reconstruct(), mf.reconstruct())
    finally:
        fsspec.filesystem("memory").rm("/models", recursive=True)


def test_save__keeps_the_old_model_when_it_fails(
    mf: MatrixFactorization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mf.save(tmp_path / "model")
    before = files(tmp_path)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distmf.store.Folder.write_manifest", fail)
    with pytest.raises(OSError, match="No space left"):
        mf.save(tmp_path / "model")
    assert files(tmp_path) == before
    with pytest.raises(StoreError, match="exists and is not only distmf model"):
        mf.save(tmp_path)


def test_load__refuses_what_is_no_model(mf: MatrixFactorization, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing: no distmf model here, model.json is missing"):
        load(tmp_path / "missing")
    mf.save(tmp_path / "model")
    (tmp_path / "model" / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="users.parquet does not match its checksum"):
        load(tmp_path / "model")
    (tmp_path / "model" / "users.parquet").unlink()
    with pytest.raises(StoreError, match="users.parquet is missing"):
        load(tmp_path / "model")
    mf.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "model.json").read_text())
    for change, message in (
        ({"version": 1}, "format version 1"),
        ({"hyperparameters": {}}, "model.json is damaged"),
        ({"global_bias": 3.25}, "model.json is damaged"),
    ):
        (tmp_path / "model" / "model.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(StoreError, match=message):
            load(tmp_path / "model")


def test_recommend__gives_the_best_items(mf: MatrixFactorization) -> None:
    scores = mf.reconstruct(clip=False)
    found = mf.recommend([5, 17, 5], n=7)
    assert found.item_ids.shape == found.scores.shape == (3, 7)
    for user, items in zip((5, 17, 5), found.item_ids, strict=True):
        assert items.tolist() == np.argsort(-scores[user], kind="stable")[:7].tolist()
    single = mf.recommend(17, n=7)
    assert single.item_ids.tolist() == found.item_ids[1].tolist()
    assert mf.recommend(3, n=1000).item_ids.shape == (80,)
    assert (found.scores <= 5).all()


def test_recommend__gives_unseen_users_the_best_liked_items(mf: MatrixFactorization) -> None:
    assert mf.recommend(12345, n=4).item_ids.tolist() == np.argsort(-mf.item_biases_)[:4].tolist()


def test_recommend__leaves_out_what_was_rated(mf: MatrixFactorization, blocks: Blocks) -> None:
    rated: dict[int, set[int]] = {}
    for user, item in zip(TABLE["user_id"].to_pylist(), TABLE["item_id"].to_pylist(), strict=True):
        rated.setdefault(user, set()).add(item)
    users = [5, 17, 5, 999, *range(100, 130)]
    for exclude in (blocks, blocks.path, TABLE):
        found = mf.recommend(users, n=80, exclude=exclude)
        np.testing.assert_array_equal(np.ma.getmaskarray(found.item_ids), np.isneginf(found.scores))
        for user, items in zip(users, found.item_ids, strict=True):
            assert set(items.compressed().tolist()) == set(range(80)) - rated.get(user, set())
            assert set(mf.recommend(user, n=80, exclude=exclude).item_ids.tolist()) == set(items.compressed().tolist())
    assert not np.ma.isMaskedArray(mf.recommend(users, n=2, exclude=blocks).item_ids)


def test_recommend__refuses_blocks_of_other_ids(strings: MatrixFactorization, blocks: Blocks) -> None:
    with pytest.raises(RatingsError, match="item ids are of type int64, but in the model of type string"):
        strings.recommend("u3", exclude=blocks)


def test_recommend__works_in_parts(mf: MatrixFactorization, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    users = list(range(199, 100, -1))
    whole = mf.recommend(users, n=5, exclude=blocks)
    monkeypatch.setattr("distmf.model.SCORES_AT_ONCE", 240)
    monkeypatch.setattr("distmf.model.PAIRS_AT_ONCE", 7)
    parts = mf.recommend(users, n=5, exclude=blocks)
    np.testing.assert_array_equal(whole.item_ids, parts.item_ids)
    assert mf.predict(users, users[:99]).shape == (99,)


def test_recommend__refuses_no_items(mf: MatrixFactorization) -> None:
    with pytest.raises(ValueError, match="n is 0; it is a whole number, at least 1"):
        mf.recommend(1, n=0)


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_top__is_a_stable_sort(rows: list[list[int]], n: int) -> None:
    scores = np.array(rows, dtype=np.float32)
    positions, values = top(scores, n)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))
    np.testing.assert_array_equal(positions, expected)


def test_evaluate__is_the_error_of_the_predictions(mf: MatrixFactorization, source: Path) -> None:
    found = evaluate(mf, source)
    errors = TABLE["rating"].to_numpy() - mf.predict(TABLE["user_id"].to_numpy(), TABLE["item_id"].to_numpy())
    assert found["n"] == 4000
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(errors, dtype=np.float64).mean()), rel=1e-6)
    assert found["mae"] == pytest.approx(np.abs(errors, dtype=np.float64).mean(), rel=1e-6)
    assert found["n_unseen"] == 0


def test_evaluate__counts_unseen_pairs_and_takes_column_names(mf: MatrixFactorization, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"u": [1, 999, 1], "i": [1, 1, 999], "r": [9.0, 3.0, 3.0]})
    clipped = evaluate(mf, path, user="u", item="i", rating="r")
    assert (clipped["n"], clipped["n_unseen"]) == (3, 2)
    free = evaluate(mf, path, user="u", item="i", rating="r", clip=False)
    assert clipped["rmse"] > 4 / np.sqrt(3) > 0
    assert free["n"] == 3
    with pytest.raises(RatingsError, match="no column 'user_id'"):
        evaluate(mf, path)
    with pytest.raises(NotFittedError):
        evaluate(MatrixFactorization(), path, user="u", item="i", rating="r")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; it is a whole number, from 1 to 512"),
        ({"rank": 513}, "rank is 513"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"reg": -1}, "reg is -1"),
        ({"reg": np.nan}, "reg is nan"),
        ({"bias_reg": "x"}, "bias_reg is 'x'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": True}, "epochs is True"),
        ({"step_size": "fast"}, "step_size is 'fast'; it can be 'auto' or a positive number"),
        ({"step_size": 0}, "step_size is 0"),
        ({"step_size": np.inf}, "step_size is inf"),
        ({"step_size": True}, "step_size is True"),
        ({"step_decay": -0.5}, "step_decay is -0.5"),
        ({"tol": -1}, "tol is -1"),
        ({"target_cost": -1}, "target_cost is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_fit__refuses_hyperparameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixFactorization(**options).fit(np.ones((2, 2)))


def test_fit__takes_numpy_numbers(tmp_path: Path) -> None:
    mf = MatrixFactorization(np.int64(2), reg=np.float32(0.5), epochs=np.int32(3), seed=np.int64(1))  # type: ignore[arg-type]
    mf.fit(np.arange(12.0).reshape(3, 4)).save(tmp_path / "m")
    assert load(tmp_path / "m").hyperparameters["reg"] == 0.5


def test_fit__names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RatingsError, match="nowhere: no such file"):
        MatrixFactorization().fit(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="threads is 0"):
        MatrixFactorization().fit(np.ones((2, 2)), threads=0)
    with pytest.raises(ValueError, match="is_set chooses the entries of a matrix"):
        MatrixFactorization().fit(tmp_path, is_set=always)
