"""A program of somebody who has installed distmf: `.ci/packages` runs it, and checks its types, away from the source.

The types that mypy finds are asserted, so none may be Any; and what is wrong must be refused: `mypy --strict` takes no
"type: ignore" that ignores nothing.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import numpy as np
import numpy.typing as npt

import distmf

Float32 = npt.NDArray[np.float32]


def main(folder: Path) -> None:
    distmf.datasets.planted_ratings(folder / "ratings", 20_000, 300, 100)
    blocks = distmf.block_ratings(folder / "ratings", folder / "blocks", holdout=0.1, seed=1)
    assert_type(blocks, distmf.Blocks)

    mf = distmf.MatrixFactorization(rank=8, reg=0.05, epochs=5).fit(blocks)
    assert_type(mf, distmf.MatrixFactorization)
    assert_type(mf.user_factors_, Float32)
    assert_type(mf.global_bias_, float)
    assert_type(mf.history_.holdout_rmse, float | None)

    users, items = mf.user_ids_[:3], mf.item_ids_[:3]
    ratings = mf.predict(users, items)
    assert_type(ratings, Float32)
    assert_type(mf.recommend(users, n=5).scores, Float32)
    mf.save(folder / "model")
    loaded = distmf.load(folder / "model")
    assert_type(loaded, distmf.MatrixFactorization)
    np.testing.assert_array_equal(loaded.predict(users, items), ratings)

    found = distmf.evaluate(loaded, folder / "ratings")
    assert_type(found["rmse"], float)
    assert_type(found["n_unseen"], int)
    assert found["n"] == 20_000
    assert 0.5 < found["rmse"] < 1.5, found  # the noise is 0.7

    sure = distmf.MatrixFactorization(rank=2, posterior_samples=1, epochs=10).fit(blocks)
    pair = sure.predict(users, items, return_std=True)
    assert_type(pair, tuple[Float32, Float32])
    assert (pair[1] > 0).all()

    matrix = np.array([[3.0, 1.0, -1.0], [1.0, 2.0, 4.0]])
    dense = distmf.MatrixFactorization(rank=1).fit(matrix, is_set=distmf.non_negative)
    assert_type(dense.reconstruct(), Float32)


if TYPE_CHECKING:
    distmf.block_ratings("ratings", "blocks", holdout="a tenth")  # type: ignore[arg-type]
    distmf.MatrixFactorization(rank="large")  # type: ignore[arg-type]
    distmf.MatrixFactorization(ranks=8)  # type: ignore[call-arg]
    distmf.load("model").recommend(1, bound="best")  # type: ignore[arg-type]
    distmf.evaluate(3, "ratings")  # type: ignore[arg-type]
    distmf.trian("ratings")  # type: ignore[attr-defined]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
