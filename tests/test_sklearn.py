"""What scikit-learn expects of an estimator; it is no dependency but of these tests."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distmf import MatrixFactorization
from distmf.errors import NotFittedError, ParameterError, RatingsError
from tests.helpers import random_ratings

for name in ("pandas", "sklearn"):
    pytest.importorskip(name, reason=f"no {name}: pip install '.[frames]'")

import pandas as pd
import sklearn
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return random_ratings(3000, 100, 60)


def pairs(table: pa.Table, kind: str) -> Any:
    frame = table.select(["user_id", "item_id"]).to_pandas()
    return {"array": frame.to_numpy(), "pandas": frame, "arrow": table.select(["user_id", "item_id"])}[kind]


def test_parameters__are_got_and_set() -> None:
    mf = MatrixFactorization(32, reg=0.05)
    assert mf.get_params()["reg"] == 0.05
    assert mf.set_params(rank=16, posterior_samples=4) is mf
    assert (mf.rank, mf.hyperparameters["epochs"]) == (16, 200)
    with pytest.raises(ParameterError, match="there is no parameter 'rnk'; did you mean 'rank'"):
        mf.set_params(rnk=3)
    assert repr(MatrixFactorization()) == "MatrixFactorization()"
    assert repr(MatrixFactorization(8, reg=0.1)) == "MatrixFactorization(rank=8, reg=0.1)"


def test_clone__has_the_parameters_and_no_model(table: pa.Table) -> None:
    mf = MatrixFactorization(4, epochs=2, bounds=(1.0, 5.0)).fit(pairs(table, "array"), table["rating"])
    other = clone(mf)
    assert other.get_params() == mf.get_params()
    with pytest.raises(NotFittedError):
        other.predict(pairs(table, "array"))
    with pytest.raises(SklearnNotFittedError):
        check_is_fitted(other)
    with pytest.raises(SklearnNotFittedError) as caught:
        other.score(pairs(table, "array"), table["rating"])
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)
    check_is_fitted(mf)
    assert is_regressor(mf)


@pytest.mark.parametrize("kind", ["array", "pandas", "arrow"])
def test_fit__takes_pairs_and_ratings(kind: str, table: pa.Table) -> None:
    X, y = pairs(table, kind), table["rating"].to_numpy()
    mf = MatrixFactorization(4, epochs=5).fit(X, y)
    whole = MatrixFactorization(4, epochs=5).fit(table)
    np.testing.assert_array_equal(mf.user_factors_, whole.user_factors_)
    predicted = mf.predict(X)
    np.testing.assert_array_equal(predicted, mf.predict(table["user_id"], table["item_id"]))
    assert mf.score(X, y) == pytest.approx(r2_score(y, predicted), abs=1e-6)
    with pytest.raises(RatingsError, match=r"array of shape \(n, 2\); this has the shape \(5,\)"):
        mf.predict(np.arange(5))


def test_fit__takes_pairs_under_other_names(table: pa.Table) -> None:
    y = table["rating"].to_numpy()
    whole = MatrixFactorization(4, epochs=5).fit(table)
    more = table.select(["user_id", "item_id"]).rename_columns(["who", "what"]).to_pandas().sample(frac=1)
    one_known = MatrixFactorization(4, epochs=5).fit(more.rename(columns={"who": "userId"}), y[more.index])
    three = more.assign(user=1)[["what", "user", "who"]]
    named = MatrixFactorization(4, epochs=5).fit(three, y[more.index].reshape(-1, 1), user="who", item="what")
    for mf in one_known, named:
        np.testing.assert_array_equal(mf.user_factors_, whole.user_factors_)
    expected = whole.predict(three["who"], three["what"])
    np.testing.assert_array_equal(named.predict(three), expected)  # it knows the names
    np.testing.assert_array_equal(named.predict(three[["what", "who"]]), expected)
    np.testing.assert_array_equal(
        named.predict(more.rename(columns={"who": "user_id"})), whole.predict(more.to_numpy())
    )
    for fit_or_predict in (whole.predict, lambda X: whole.fit(X, y[more.index])):
        with pytest.raises(
            RatingsError, match=r"no column 'user_id'; .*; or give an array of shape \(n, 2\), users first"
        ):
            fit_or_predict(three[["what", "who"]])
    with pytest.raises(ParameterError, match="rating: not with y; ratings are in y, and weights in sample_weight"):
        named.fit(three, y[more.index], rating="r")


def test_partial_fit_and_fold_in__take_pairs_and_ratings(table: pa.Table) -> None:
    X, y = pairs(table, "pandas"), table["rating"].to_numpy()
    mf, other = (MatrixFactorization(4, epochs=3) for _ in range(2))
    np.testing.assert_array_equal(mf.partial_fit(X, y).user_factors_, other.fit(table).user_factors_)  # from nothing
    new = X[:50].assign(user_id=10**6)
    mf.partial_fit(new, y[:50])
    other.partial_fit(pa.Table.from_pandas(new.assign(rating=y[:50])))
    np.testing.assert_array_equal(mf.user_factors_, other.user_factors_)
    mf.fold_in(new.assign(user_id=10**7), y[:50])
    assert mf.user_ids_[-2:].tolist() == [10**6, 10**7]


def test_weights__are_those_of_a_column(table: pa.Table) -> None:
    X, y = pairs(table, "array"), table["rating"].to_numpy()
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y))
    mf = MatrixFactorization(4, epochs=5).fit(X, y, sample_weight=weights)
    named = MatrixFactorization(4, epochs=5).fit(table.append_column("w", pa.array(weights)), weight="w")
    np.testing.assert_array_equal(mf.user_factors_, named.user_factors_)
    assert mf.score(X, y, sample_weight=weights) == pytest.approx(r2_score(y, mf.predict(X), sample_weight=weights))
    with pytest.raises(RatingsError, match=r"sample_weight has the shape \(2,\); it needs \(n,\), for 3,000 pairs"):
        mf.fit(X, y, sample_weight=[1, 2])
    with pytest.raises(ParameterError, match="sample_weight goes with y; without, name the column of weights by wei"):
        mf.fit(table, sample_weight=weights)


def test_routing__lets_searches_and_pipelines_work(table: pa.Table) -> None:
    X, y = pairs(table, "pandas"), table["rating"].to_numpy()
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = Pipeline([("mf", MatrixFactorization(4, epochs=3))])
        assert GridSearchCV(pipeline, {"mf__rank": [2, 4]}, cv=2).fit(X, y).best_score_ > 0
        assert (cross_val_score(pipeline, X, y, cv=2) > 0).all()
        weights = np.random.default_rng(0).integers(0, 3, len(y))
        mf = MatrixFactorization(4, epochs=3).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(mf, {"rank": [4]}, cv=2).fit(X, y, sample_weight=weights)
        expected = MatrixFactorization(4, epochs=3).fit(X, y, sample_weight=weights)
        np.testing.assert_array_equal(search.best_estimator_.user_factors_, expected.user_factors_)


def test_weights__of_zero_leave_a_rating_out(table: pa.Table) -> None:
    X, y = pairs(table, "array"), table["rating"].to_numpy()
    weights = np.random.default_rng(0).integers(0, 2, len(y))
    mf = MatrixFactorization(4, epochs=3).fit(X, y, sample_weight=weights)
    some = MatrixFactorization(4, epochs=3).fit(X[weights == 1], y[weights == 1], sample_weight=np.ones(weights.sum()))
    np.testing.assert_array_equal(mf.user_factors_, some.user_factors_)


def test_fit__leaves_its_parameters_as_they_are(table: pa.Table) -> None:
    mf = MatrixFactorization(np.int64(4), epochs=None, reg="auto")  # type: ignore[arg-type]
    before = mf.get_params()
    mf.fit(table)
    assert all(mf.get_params()[name] is value for name, value in before.items())


def test_grid_search__works_on_pairs_with_names(table: pa.Table) -> None:
    frame = table.to_pandas()
    X, y = frame[["user_id", "item_id"]].rename(columns={"item_id": "movieId"}), frame["rating"]
    X = X.assign(user_id="u" + X["user_id"].astype(str))
    search = GridSearchCV(MatrixFactorization(epochs=8), {"rank": [1, 4], "bias_reg": [0.02, 5.0]}, cv=3).fit(X, y)
    assert search.best_params_["bias_reg"] == 0.02
    assert search.best_score_ > 0.5
    assert isinstance(search.predict(pd.DataFrame({"user_id": ["u3"], "movieId": [5]})), np.ndarray)


def test_pipeline__ends_with_it(table: pa.Table) -> None:
    X, y = pairs(table, "array"), table["rating"].to_numpy()
    train_X, test_X, train_y, test_y = train_test_split(X, y, random_state=0)
    pipeline = Pipeline([("shift", FunctionTransformer(lambda X: X + 7)), ("mf", MatrixFactorization(4))])
    pipeline.set_params(mf__epochs=10).fit(train_X, train_y)
    assert pipeline.score(test_X, test_y) > 0.5
    assert cross_val_score(pipeline, X, y, cv=3, scoring="neg_root_mean_squared_error").mean() > -0.6


def test_import__does_not_need_scikit_learn() -> None:
    code = "import sys, distmf; distmf.MatrixFactorization(3).get_params(); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
