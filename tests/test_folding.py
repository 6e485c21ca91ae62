"""New users and more ratings, without training anew."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import distmf
from distmf import MatrixFactorization, block_ratings
from distmf.errors import NotFittedError, RatingsError
from tests.clusters import at_epoch, cluster, kill, worker_pids
from tests.helpers import files, write

N_USERS, N_ITEMS, RANK = 400, 120, 3
POSTERIOR = {"posterior_samples": 2, "epochs": 60}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Give ratings of a third of all pairs, by users 1000, 1001, …, and which of them are to test on."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.33)
    P, Q = rng.normal(size=(N_USERS, RANK)), rng.normal(size=(N_ITEMS, RANK))
    ratings = (P[users] * Q[items]).sum(axis=1) + 0.3 * rng.normal(size=len(users)) + np.sin(users)
    columns = {"user_id": 1000 + users, "item_id": items, "rating": ratings.astype(np.float32)}
    return pa.table({**columns, "is_test": rng.random(len(users)) < 0.2})


class Parts:
    """Ratings of old users and of new ones, in files."""

    def __init__(self, table: pa.Table, folder: Path) -> None:
        is_new, is_test = pc.greater_equal(table["user_id"], 1300), table["is_test"]
        columns = ["user_id", "item_id", "rating"]

        def part(name: str, mask: Any) -> Path:
            return write(folder / f"{name}.parquet", table.filter(mask).select(columns))

        self.all = part("all", pc.invert(is_test))
        self.old = part("old", pc.and_not(pc.invert(is_new), is_test))
        self.new = part("new", pc.and_not(is_new, is_test))
        self.test_old = part("test-old", pc.and_(pc.invert(is_new), is_test))
        self.test_new = part("test-new", pc.and_(is_new, is_test))


@pytest.fixture
def parts(table: pa.Table, tmp_path: Path) -> Parts:
    return Parts(table, tmp_path)


def rmse(mf: MatrixFactorization, path: Path) -> float:
    return distmf.evaluate(mf, path)["rmse"]


@pytest.mark.parametrize("options", [{"reg": 0.02}, POSTERIOR], ids=["sgd", "posterior"])
def test_fold_in__predicts_new_users_nearly_as_training_does(options: dict[str, Any], parts: Parts) -> None:
    mf = MatrixFactorization(RANK, **{"epochs": 60, **options}).fit(parts.old)
    before, unknown = rmse(mf, parts.test_old), rmse(mf, parts.test_new)
    everything = MatrixFactorization(RANK, **{"epochs": 60, **options}).fit(parts.all)
    mf.fold_in(parts.new)
    assert rmse(mf, parts.test_new) < 1.06 * rmse(everything, parts.test_new) < 0.4 * unknown
    assert rmse(mf, parts.test_old) == before
    assert distmf.evaluate(mf, parts.test_new)["n_unseen"] == 0
    assert len(mf.user_ids_) == N_USERS
    assert (np.diff(mf.user_ids_) > 0).all()
    if options is POSTERIOR:
        found = distmf.evaluate(mf, parts.test_new)
        assert found["within_90"] == pytest.approx(0.9, abs=0.05)


def test_fold_in__solves_the_regression(parts: Parts, tmp_path: Path) -> None:
    mf = MatrixFactorization(RANK, reg=(0.03, 0.1), bias_reg=(0.05, 0.2)).fit(parts.old)
    scale = mf.model_.normalisation.scale
    columns = {"user_id": [7, 7, 7, 7], "item_id": [3, 1, 4, 99_999], "rating": [1.0, -1.0, 2.0, 5.0]}
    mf.fold_in(write(tmp_path / "one.parquet", columns))
    at = np.searchsorted(mf.item_ids_, [3, 1, 4])
    Q = np.column_stack([mf.item_factors_[at], np.ones(3)]).astype(np.float64)
    errors = np.array([1.0, -1.0, 2.0]) - mf.global_bias_ - mf.item_biases_[at]
    trained = np.column_stack([mf.user_factors_[1:], mf.user_biases_[1:]]).astype(np.float64)
    assert mf.history_.train_rmse is not None
    prior = mf.history_.train_rmse**2 / np.square(trained).mean(axis=0) / (1 + 3 / 5)
    expected = np.linalg.solve(Q.T @ Q + 3 * np.diag([0.03 * scale] * RANK + [0.05]) + np.diag(prior), Q.T @ errors)
    assert mf.user_ids_[0] == 7
    np.testing.assert_allclose(mf.user_factors_[0], expected[:-1], rtol=1e-4)
    assert mf.user_biases_[0] == pytest.approx(expected[-1], rel=1e-4)
    assert mf.model_.users.counts[0] == 3


def test_fold_in__of_weights_is_that_of_repeated_ratings(parts: Parts, tmp_path: Path) -> None:
    others = {"user_id": [9] * 6, "item_id": [*range(6)], "rating": [1.0] * 6, "w": [0.5] * 6}  # so that the mean is 1
    once = {"user_id": [7, 7, 8], "item_id": [3, 1, 5], "rating": [1.0, -1.0, 2.0], "w": [2.0, 1.0, 3.0]}
    once = {name: [*once[name], *others[name]] for name in once}
    twice = {"user_id": [7, 7, 7, 8, 8, 8], "item_id": [3, 3, 1, 5, 5, 5], "rating": [1.0, 1.0, -1.0, 2.0, 2.0, 2.0]}
    first = MatrixFactorization(RANK, epochs=5).fit(parts.old)
    first.save(tmp_path / "m")
    second = distmf.load(tmp_path / "m")
    first.fold_in(write(tmp_path / "w.parquet", once), weight="w", grid=(1, 1))
    second.fold_in(write(tmp_path / "t.parquet", twice), grid=(1, 1))
    np.testing.assert_allclose(first.user_factors_[:2], second.user_factors_[:2], rtol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fold_in__of_few_ratings_is_better_than_nothing(n: int, parts: Parts, tmp_path: Path) -> None:
    mf = MatrixFactorization(RANK, epochs=20).fit(parts.old)
    unknown, new = rmse(mf, parts.test_new), pq.read_table(parts.new)
    users = new["user_id"].to_numpy()
    first = np.flatnonzero([n > k - np.argmax(users == user) for k, user in enumerate(users)])
    mf.fold_in(write(tmp_path / "few.parquet", new.take(pa.array(first))), grid=(1, 1))
    assert rmse(mf, parts.test_new) < (1 - 0.01 * n) * unknown


def test_fold_in__solves_anew_for_known_users(parts: Parts, tmp_path: Path) -> None:
    mf = MatrixFactorization(RANK, reg=0.02, epochs=60).fit(parts.old)
    trained: npt.NDArray[np.float32] = mf.user_factors_
    mf.fold_in(parts.old)
    assert np.corrcoef(mf.user_factors_.ravel(), trained.ravel())[0, 1] > 0.99
    mf.save(tmp_path / "m")
    np.testing.assert_array_equal(distmf.load(tmp_path / "m").user_factors_, mf.user_factors_)


def test_fold_in__does_not_depend_on_the_grid(parts: Parts, tmp_path: Path) -> None:
    found = []
    for n, grid in enumerate([(1, 1), (3, 2)]):
        mf = MatrixFactorization(RANK, epochs=5).fit(parts.old)
        found.append(mf.fold_in(block_ratings(parts.new, tmp_path / str(n), grid=grid)).user_factors_)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_fold_in__refuses(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        MatrixFactorization(RANK).fold_in(parts.new)
    with pytest.raises(ValueError, match="fold_in solves for squared errors"):
        MatrixFactorization(RANK, loss="huber", epochs=2).fit(parts.old).fold_in(parts.new)
    mf = MatrixFactorization(RANK, epochs=2).fit(parts.old)
    names = {"user_id": ["a", "b"], "item_id": [1, 2], "rating": [1.0, 2.0]}
    with pytest.raises(RatingsError, match="ids are of type string"):
        mf.fold_in(write(tmp_path / "s.parquet", names), grid=(1, 1))


def test_partial_fit__learns_new_users_and_keeps_what_is_known(parts: Parts) -> None:
    mf = MatrixFactorization(RANK, reg=0.02, epochs=60).fit(parts.old)
    before, unknown, factors = rmse(mf, parts.test_old), rmse(mf, parts.test_new), mf.user_factors_
    n_before = int(mf.model_.items.counts.sum())
    mf.partial_fit(parts.new)
    assert rmse(mf, parts.test_new) < 0.4 * unknown
    assert rmse(mf, parts.test_old) < 1.03 * before
    assert len(mf.user_ids_) == N_USERS
    np.testing.assert_array_equal(mf.user_factors_[:300], factors)  # nothing is new about them
    n_new = int(mf.model_.users.counts[300:].sum())
    assert int(mf.model_.items.counts.sum()) == n_before + n_new


def test_partial_fit__is_better_than_nothing_for_known_users(table: pa.Table, tmp_path: Path) -> None:
    is_late = np.random.default_rng(1).random(len(table)) < 0.2
    columns, is_test = ["user_id", "item_id", "rating"], table["is_test"].to_numpy()
    early, late, test = (
        write(tmp_path / f"{name}.parquet", table.filter(pa.array(mask)).select(columns))
        for name, mask in (("early", ~is_late & ~is_test), ("late", is_late & ~is_test), ("test", is_test))
    )
    mf = MatrixFactorization(RANK, epochs=40).fit(early)
    before = rmse(mf, test)
    mf.partial_fit(late)
    assert rmse(mf, test) < before


def test_partial_fit__is_the_same_anywhere_and_after_a_stop(parts: Parts, tmp_path: Path) -> None:
    blocks = block_ratings(parts.new, tmp_path / "b", grid=(3, 3))
    MatrixFactorization(RANK, epochs=5).fit(parts.old).save(tmp_path / "m")
    found = []
    for name, threads, checkpoint in (("one", 1, None), ("two", 2, tmp_path / "c"), ("resumed", 2, tmp_path / "d")):
        mf = distmf.load(tmp_path / "m")
        if name == "resumed":
            mf.max_seconds = 0.0  # stops after the first epoch
            mf.partial_fit(blocks, checkpoint=checkpoint)
            assert len(mf.history_) < 5
            mf = distmf.load(tmp_path / "m")
            mf.partial_fit(blocks, checkpoint=checkpoint, resume=True)
        else:
            mf.partial_fit(blocks, threads=threads, checkpoint=checkpoint)
        mf.max_seconds = None
        mf.save(tmp_path / name)
        found.append(files(tmp_path / name))
    assert found[0] == found[1] == found[2]


def test_partial_fit__is_the_same_on_processes_of_which_one_is_killed(
    table: pa.Table, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = pa.array(1 + np.arange(len(table)) % 3)
    source = write(tmp_path / "w.parquet", table.select(["user_id", "item_id", "rating"]).append_column("w", weights))
    options = {"loss": "huber", "bounds": (-30.0, 30.0), "l1_reg": 0.001, "epochs": 6}
    MatrixFactorization(RANK, **options).fit(source).save(tmp_path / "m")
    distmf.load(tmp_path / "m").partial_fit(source, weight="w", grid=(4, 4)).save(tmp_path / "threads")
    with cluster(2, tmp_path_factory.mktemp("workers")) as client:
        pids = worker_pids(client)
        mf = distmf.load(tmp_path / "m")
        with at_epoch(3, lambda: kill(pids[1])) as done:
            mf.partial_fit(source, weight="w", grid=(4, 4), client=client).save(tmp_path / "processes")
        assert done
    assert files(tmp_path / "threads") == files(tmp_path / "processes")


@pytest.mark.parametrize(
    ("options", "ratings", "message"),
    [
        ({"loss": "logistic"}, [1.0, 2.0, 3.0], "for ratings of 0 and 1, but there are ratings from 1 to 3"),
        ({"loss": "hinge"}, [-1.0, 1.0, 1.0], "for ratings of 0 and 1, but there are ratings from -1 to 1"),
        ({"loss": "poisson"}, [-1.0, 1.0, 1.0], "counts and other amounts, but there are ratings from -1 on"),
        ({"bounds": (0, 1)}, [0.0, 1.0, 1.1], "for ratings between 0 and 1, but there are ratings from 0 to 1.1"),
    ],
)
def test_partial_fit__refuses_ratings_that_the_model_is_not_for(
    options: dict[str, Any], ratings: list[float], message: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.arange(200), 20)
    old = {"user_id": users, "item_id": items, "rating": rng.integers(2, size=200).astype(np.float32)}
    mf = MatrixFactorization(2, epochs=2, **options).fit(write(tmp_path / "old.parquet", old), grid=(1, 1))
    new = write(tmp_path / "new.parquet", {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "rating": ratings})
    with pytest.raises(RatingsError, match=message):
        mf.partial_fit(new, grid=(1, 1))


def test_ids__that_do_not_fit_are_refused_before_training(parts: Parts, tmp_path: Path) -> None:
    mf = MatrixFactorization(RANK, epochs=2).fit(parts.old)
    columns = {"user_id": pa.array([2**63 + 5, 1], pa.uint64()), "item_id": [1, 2], "rating": [1.0, 2.0]}
    source = write(tmp_path / "large.parquet", columns)
    for run in (mf.partial_fit, mf.fold_in):
        with pytest.raises(RatingsError, match="there are user ids that do not fit int64"):
            run(source, grid=(1, 1))


def test_fit__starts_only_from_a_model_of_its_kind(parts: Parts) -> None:
    start = MatrixFactorization(RANK, epochs=2).fit(parts.old)
    with pytest.raises(ValueError, match="rank is 5, but 3 in the model to start from"):
        MatrixFactorization(5).fit(parts.new, start=start)
    with pytest.raises(ValueError, match="loss is 'huber', but 'squared'"):
        MatrixFactorization(RANK, loss="huber").fit(parts.new, start=start)
    draws = MatrixFactorization(RANK, posterior_samples=1, epochs=4).fit(parts.old)
    with pytest.raises(ValueError, match="draws from the posterior cannot go on"):
        draws.partial_fit(parts.new)


def test_fold_in_and_partial_fit__take_tables(parts: Parts) -> None:
    """As training does: the same as from the files that hold them."""
    from_files, from_tables = (MatrixFactorization(RANK, epochs=5).fit(parts.old) for _ in range(2))
    for name in ("fold_in", "partial_fit"):
        getattr(from_files, name)(parts.new)
        getattr(from_tables, name)(pq.read_table(parts.new).rename_columns(["userId", "movie", "stars"]))
        np.testing.assert_array_equal(from_files.user_ids_, from_tables.user_ids_)
        np.testing.assert_array_equal(from_files.user_factors_, from_tables.user_factors_)


@pytest.mark.parametrize(
    ("users", "ratings"),
    [
        ([10**6] * 3, [1, 1, 1]),
        ([3] * 4, [5, 1, 5, 1]),
        ([3], [1]),
        ([*range(10**6, 10**6 + 50)] * 10, [1, 5] * 250),
    ],
)
def test_partial_fit__takes_ratings_that_are_far_from_what_it_expects(
    users: list[int], ratings: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """No step size can help that; it is not the step that is wrong."""
    rng = np.random.default_rng(0)
    old = {"user_id": rng.integers(0, 100, 3000), "item_id": rng.integers(0, 60, 3000)}
    mf = MatrixFactorization(4, epochs=8).fit(pa.table({**old, "rating": 3.5 + 0.3 * rng.standard_normal(3000)}))
    new = pa.table({"user_id": users, "item_id": rng.integers(0, 60, len(users)), "rating": ratings})
    before = distmf.evaluate(mf, new)["rmse"]
    with caplog.at_level("INFO", "distmf"):
        mf.partial_fit(new)
    assert "cost grew" not in caplog.text
    assert distmf.evaluate(mf, new)["rmse"] < before
    assert "step" not in str(mf.diagnose())
