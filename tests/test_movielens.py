"""Real ratings. The files may not be part of the project; where they lie, the environment says."""

import os
from pathlib import Path

import pytest

from distmf import MatrixFactorization, tune

FOLDER = Path(os.environ.get("DISTMF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
RATINGS = FOLDER / "ml-1m.parquet"

pytestmark = pytest.mark.skipif(
    not RATINGS.exists(), reason=f"there is no {RATINGS}; set DISTMF_TEST_DATA to a folder with MovieLens 1M as Parquet"
)


@pytest.mark.parametrize("seed", range(5))
def test_fit__with_the_defaults_reaches_0_850_on_movielens_1m(seed: int) -> None:
    history = MatrixFactorization(seed=seed).fit(RATINGS, holdout=0.1).history_
    assert history.holdout_rmse is not None
    assert history.holdout_rmse <= 0.850


def test_tune__beats_the_defaults_on_movielens_1m_and_says_so() -> None:
    tuning = tune(RATINGS)
    assert tuning.best.holdout_error is not None
    assert tuning.defaults.holdout_error is not None
    assert tuning.best.holdout_error < tuning.defaults.holdout_error - 0.001
    assert f"% less than the {tuning.defaults.holdout_error:.4f} of the defaults" in tuning.verdict()
