"""What each loss is for, on data made for it; bounds, penalties, and factors that are not negative."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import distmf
from distmf import MatrixFactorization
from tests.helpers import random_ratings, write

N, N_USERS, N_ITEMS = 60_000, 600, 200
Floats = npt.NDArray[np.float64]


class Planted:
    """Pairs with a planted signal: a tenth of them is for tests."""

    def __init__(self, signal: str = "normal") -> None:
        rng = self.rng = np.random.default_rng(0)
        self.users, self.items = np.divmod(rng.choice(N_USERS * N_ITEMS, N, replace=False), N_ITEMS)
        P, Q = (rng.normal(size=(n, 3)) for n in (N_USERS, N_ITEMS))
        if signal == "positive":
            P, Q = (rng.gamma(0.5, 1, (n, 3)) for n in (N_USERS, N_ITEMS))
        self.signal = (P[self.users] * Q[self.items]).sum(axis=1)
        self.is_test = rng.random(N) < 0.1

    def fit(self, folder: Path, ratings: Any, **options: Any) -> MatrixFactorization:
        """Train on nine tenths of some ratings of the pairs."""
        columns = {"user_id": self.users, "item_id": self.items, "rating": np.asarray(ratings, dtype=np.float32)}
        source = write(folder / "r.parquet", pa.table(columns).filter(pa.array(~self.is_test)))
        return MatrixFactorization(**{"rank": 8, "epochs": 30, **options}).fit(source)

    def predicted(self, mf: MatrixFactorization) -> Floats:
        """Return predictions of the tenth."""
        return mf.predict(self.users[self.is_test], self.items[self.is_test]).astype(np.float64)

    def rmse(self, mf: MatrixFactorization) -> float:
        """Return the error against the signal itself."""
        return float(np.sqrt(np.mean(np.square(self.predicted(mf) - self.signal[self.is_test]))))


@pytest.mark.parametrize("loss", ["absolute", "huber"])
def test_robust_losses__do_not_mind_outliers(loss: Any, tmp_path: Path) -> None:
    data = Planted()
    ratings = data.signal + 0.3 * data.rng.normal(size=N)
    ratings[data.rng.random(N) < 0.01] = 1e4
    mf = data.fit(tmp_path, ratings, loss=loss)
    assert data.rmse(mf) < 0.4 * data.signal.std()
    assert mf.history_.measure == {"absolute": "MAE", "huber": "Huber loss"}[loss]
    assert mf.history_.train_rmse is None
    assert data.rmse(data.fit(tmp_path, ratings)) > 10  # which the squared error does


def test_absolute__reports_the_mean_size_of_errors(tmp_path: Path) -> None:
    data = Planted()
    mf = data.fit(tmp_path, data.signal, loss="absolute", epochs=3)
    errors = np.abs(mf.predict(data.users, data.items, clip=False) - data.signal)[~data.is_test]
    assert mf.history_.train_error == pytest.approx(errors.mean(), rel=1e-4)


@pytest.mark.parametrize("low", [0, -1])
def test_logistic__finds_the_probabilities(low: int, tmp_path: Path) -> None:
    data = Planted()
    chances = 1 / (1 + np.exp(-(data.signal - 1)))
    is_high = data.rng.random(N) < chances
    mf = data.fit(tmp_path, np.where(is_high, 1, low), loss="logistic")
    predicted = (data.predicted(mf) - low) / (1 - low)
    truth, outcome = chances[data.is_test], is_high[data.is_test]
    assert ((predicted >= 0) & (predicted <= 1)).all()

    def log_loss(chances: Floats) -> float:
        return float(-np.mean(np.log(np.where(outcome, chances, 1 - chances))))

    mean = np.full(len(truth), is_high.mean())
    assert log_loss(truth) < log_loss(predicted) < 0.45 * log_loss(mean) + 0.55 * log_loss(truth)
    assert mf.history_.measure == "log loss"
    trained = (mf.predict(data.users, data.items).astype(np.float64) - low) / (1 - low)
    own = -np.mean(np.log(np.where(is_high, trained, 1 - trained))[~data.is_test])
    assert mf.history_.train_error == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_hinge__tells_the_two_values_apart(loss: Any, tmp_path: Path) -> None:
    data = Planted()
    mf = data.fit(tmp_path, np.sign(data.signal), loss=loss)
    assert (np.sign(data.predicted(mf)) == np.sign(data.signal[data.is_test])).mean() > 0.93


def test_poisson__does_better_on_counts_than_squared_errors(tmp_path: Path) -> None:
    data = Planted("positive")
    rates = 3 * data.signal
    counts = data.rng.poisson(rates).astype(np.float64)

    def deviance(predicted: Floats) -> float:
        r, rate = counts[data.is_test], np.maximum(predicted, 0.1)
        return float(2 * np.mean(np.where(r > 0, r * np.log(np.maximum(r, 1) / rate), 0) - r + rate))

    found = {}
    for name, options in {
        "squared": {},
        "poisson": {"loss": "poisson"},
        "nonnegative": {"loss": "poisson", "nonnegative": True},
    }.items():
        mf = data.fit(tmp_path, counts, **options)
        found[name] = deviance(data.predicted(mf))
        assert (data.predicted(mf) >= 0).all()
    assert (mf.user_factors_ >= 0).all()
    assert (mf.item_factors_ >= 0).all()
    assert deviance(rates[data.is_test]) < found["nonnegative"] < min(found["poisson"], found["squared"])


def test_bounds__are_never_left_nor_clipped(tmp_path: Path) -> None:
    data = Planted()
    ratings = 5 / (1 + np.exp(-2 * data.signal)) + 0.1 * data.rng.normal(size=N)
    ratings = np.clip(ratings, 0, 5)
    mf = data.fit(tmp_path, ratings, bounds=(0, 5), reg=0.01)
    free = mf.predict(data.users, data.items, clip=False)
    assert ((free > 0) & (free < 5)).all()
    errors = {
        "bounded": data.predicted(mf) - ratings[data.is_test],
        "clipped": data.predicted(data.fit(tmp_path, ratings, reg=0.01)) - ratings[data.is_test],
    }
    assert np.square(errors["bounded"]).mean() < 0.6 * np.square(errors["clipped"]).mean()
    mf.save(tmp_path / "m")
    loaded = distmf.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(data.users, data.items), mf.predict(data.users, data.items))
    users = np.arange(5)
    found = loaded.recommend(users, n=3)
    np.testing.assert_allclose(found.scores[:, 0], mf.reconstruct()[np.searchsorted(mf.user_ids_, users)].max(axis=1))


def test_l1__makes_factors_zero(tmp_path: Path) -> None:
    data = Planted()
    ratings = data.signal + 0.3 * data.rng.normal(size=N)
    sparse, dense = (data.fit(tmp_path, ratings, reg=0.01, l1_reg=l1) for l1 in (0.008, 0))
    assert (dense.user_factors_ == 0).mean() < 0.01
    assert (sparse.user_factors_ == 0).mean() > 0.3
    assert data.rmse(sparse) < 1.3 * data.rmse(dense)


def test_reg__may_differ_for_users_and_items(tmp_path: Path) -> None:
    data = Planted()

    def sizes(**options: Any) -> Floats:
        mf = data.fit(tmp_path, data.signal, epochs=5, **options)
        arrays = mf.user_factors_, mf.item_factors_, mf.user_biases_, mf.item_biases_
        return np.array([np.square(array).mean() for array in arrays])

    same = sizes(reg=0.05, bias_reg=0.02)
    np.testing.assert_array_equal(sizes(reg=(0.05, 0.05), bias_reg=[0.02, 0.02]), same)
    users = sizes(reg=(0.5, 0.05), bias_reg=(2.0, 0.02))
    assert users[0] / users[1] < 0.5 * same[0] / same[1]
    assert users[2] < 0.5 * same[2]
    assert users[3] > 0.5 * same[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "logstic"}, "did you mean 'logistic'"),
        ({"loss": "logistic"}, r"two values, as 0 and 1, or -1 and 1; here are 5 of them: 1, 2, 3, …"),
        ({"loss": "hinge", "bounds": (1, 5)}, "bounds are for the losses 'squared', 'absolute', 'huber'"),
        ({"bounds": (2, 5)}, "bounds are 2 and 5, but there are ratings from 1 to 5"),
        ({"bounds": (5, 1)}, "two numbers, the lower one first"),
        ({"bounds": 5}, "two numbers, the lower one first"),
        ({"reg": (1, 2, 3)}, r"reg is \(1, 2, 3\); it can be 'auto', a number from 0 on, or two of them"),
        ({"l1_reg": "auto"}, "l1_reg is 'auto'; it can be a number from 0 on"),
        ({"bias_reg": -1}, "bias_reg is -1"),
        ({"loss": "huber", "posterior_samples": 2}, "loss is 'huber' with posterior_samples"),
        ({"nonnegative": True, "posterior_samples": 2}, "nonnegative is True with posterior_samples"),
    ],
)
def test_fit__refuses_what_does_not_go_together(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(2000, 100, 50))
    with pytest.raises(ValueError, match=message):
        MatrixFactorization(4, **options).fit(source)


def test_poisson__refuses_negative_ratings() -> None:
    with pytest.raises(ValueError, match="there are ratings from -1 on"):
        MatrixFactorization(2, loss="poisson").fit(np.array([[-1.0, 2.0], [3.0, 1.0]]))


def test_logistic__takes_a_matrix() -> None:
    matrix = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, np.nan]])
    mf = MatrixFactorization(2, loss="logistic", reg=0.01, epochs=2000, tol=0, step_size=0.1).fit(matrix)
    np.testing.assert_array_equal(np.rint(mf.reconstruct()), [[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]])
