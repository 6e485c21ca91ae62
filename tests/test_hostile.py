"""With the defaults nothing diverges, whatever the ratings: neither SGD nor draws from the posterior."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distmf import MatrixFactorization
from tests.helpers import write

N = 20_000
Ratings = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def hostile(name: str) -> Ratings:
    """Return users, items and ratings."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(500, size=N), rng.integers(300, size=N)
    signal = np.clip(np.sin(users) + np.cos(items) + 0.3 * rng.normal(size=N), -2.5, 2.5)
    if " to " in name:
        low, high = map(float, name.split(" to "))
        return users, items, low + (high - low) * (signal + 2.5) / 5
    if name == "constant":
        return users, items, np.full(N, 3.0)
    if name == "one rating per user":
        return np.arange(N), items, signal
    if name == "outliers":
        signal[rng.integers(N, size=20)] = 1e4
        return users, items, signal
    if name == "heavy tails":
        return users, items, signal + rng.standard_t(1.1, size=N)
    assert name == "rank above the model's"
    P, Q = rng.normal(size=(500, 30)), rng.normal(size=(300, 30))
    return users, items, (P[users] * Q[items]).sum(axis=1)


@pytest.mark.parametrize("options", [{}, {"posterior_samples": 2, "epochs": 20}], ids=["sgd", "posterior"])
@pytest.mark.parametrize(
    "name",
    [
        "0 to 1",
        "1 to 5",
        "-10 to 10",
        "0 to 100",
        "0 to 1000000",
        "constant",
        "one rating per user",
        "outliers",
        "heavy tails",
        "rank above the model's",
    ],
)
def test_defaults__diverge_on_nothing(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    users, items, ratings = hostile(name)
    columns = {"user_id": users, "item_id": items, "rating": ratings.astype(np.float32)}
    mf = MatrixFactorization(8, **options).fit(write(tmp_path / "r.parquet", columns), holdout=0.1)
    history = mf.history_
    assert history.train_rmse is not None
    assert history.baselines is not None
    spread = history.baselines.mean_train
    assert history.train_rmse <= 1.01 * max(spread, 0.1)  # no worse than the mean of all
    assert np.isfinite(mf.predict(users, items, clip=False)).all()
    assert np.isfinite([epoch.train_error for epoch in history]).all()
    if " to " in name:  # the signal is found at any scale
        assert history.holdout_rmse is not None
        assert history.holdout_rmse < 0.35 * spread
