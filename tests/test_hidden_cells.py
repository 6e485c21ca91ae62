"""The 4 × 5 matrix that the project began with, and one test for each defect of the program that did not converge."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distmf import MatrixFactorization, always, factors, graph, kernel, non_negative, not_nan, tasks
from distmf.buffers import aligned_empty
from distmf.encoding import Encoding
from distmf.errors import RatingsError
from distmf.kernel import FactorBlock, Hyperparameters, Ratings
from distmf.trainer import BIAS_EPOCHS

MATRIX = np.array([[3, 1, 1, 3, 1], [1, 2, 4, 1, 3], [3, 1, 1, 3, 1], [4, 3, 5, 4, 4]], dtype=np.float64)


def hide(n: int, seed: int, mark: float = np.nan) -> npt.NDArray[np.float64]:
    matrix = MATRIX.copy()
    matrix.flat[np.random.default_rng(seed).choice(MATRIX.size, n, replace=False)] = mark
    return matrix


@pytest.mark.parametrize(("hidden", "seed"), [*itertools.product((0, 2, 5), range(10))])
def test_fit__converges_with_hidden_cells(hidden: int, seed: int) -> None:
    matrix = hide(hidden, seed)
    mf = MatrixFactorization(rank=2, reg=0, bias_reg=0, target_cost=1e-2, epochs=5000, seed=seed).fit(matrix)
    assert mf.history_.stopped == "target"
    is_set = not_nan(matrix)
    assert is_set.sum() == MATRIX.size - hidden
    assert np.square(mf.reconstruct(clip=False) - MATRIX)[is_set].mean() < 1e-2


@pytest.mark.parametrize("step_size", [0.01, 0.05])
def test_fit__converges_with_a_constant_step(step_size: float) -> None:
    options: dict[str, Any] = {"rank": 2, "reg": 0, "bias_reg": 0, "target_cost": 1e-2, "epochs": 5000, "tol": 0}
    assert MatrixFactorization(**options, step_size=step_size).fit(hide(2, 0)).history_.stopped == "target"


def step(rating: float, *, reg: float = 0.0, bias_reg: float = 0.0, step_size: float = 0.1) -> dict[str, Any]:
    """Train on one rating of row 1 and column 2, and return everything before and after."""
    ratings = Ratings(
        np.array([[0, 0, 1]], dtype=np.uint32),
        np.array([1], dtype=np.uint8),
        np.array([2], dtype=np.uint8),
        np.array([rating], dtype=np.float32),
        Encoding(),
        (256, 256),
        1,
    )
    P, Q = aligned_empty(3, 16), aligned_empty(4, 16)
    rng = np.random.default_rng(0)
    P[:], Q[:] = rng.normal(0, 0.5, P.shape), rng.normal(0, 0.5, Q.shape)
    b_u, b_i = rng.normal(0, 1, 3).astype(np.float32), rng.normal(0, 1, 4).astype(np.float32)
    before = [array.astype(np.float64) for array in (P, Q, b_u, b_i)]
    hyper = Hyperparameters(0.0, 1.0, (reg, reg), (bias_reg, bias_reg))
    cost = kernel.train_block(ratings, FactorBlock(P, b_u), FactorBlock(Q, b_i), hyper, step_size, 0)
    error = rating - before[2][1] - before[3][2] - before[0][1] @ before[1][2]
    return {"before": before, "after": [P, Q, b_u, b_i], "cost": cost, "error": error}


def test_defect__a_bias_update_that_adds_to_the_whole_vector() -> None:
    found = step(5.0)
    for n, line in (2, 1), (3, 2):
        changed = np.flatnonzero(found["after"][n] != found["before"][n].astype(np.float32))
        assert changed.tolist() == [line]
    for n, line in (0, 1), (1, 2):
        changed = np.flatnonzero((found["after"][n] != found["before"][n].astype(np.float32)).any(axis=1))
        assert changed.tolist() == [line]


def test_defect__a_regularisation_of_the_wrong_sign() -> None:
    # With an error of zero, only λ is left, and it must shrink what there is.
    without = step(0.0)
    rating = -without["error"]
    found = step(rating, reg=0.5, bias_reg=0.5)
    assert found["error"] == pytest.approx(0, abs=1e-12)
    for n, line in (0, 1), (1, 2), (2, 1), (3, 2):
        np.testing.assert_allclose(found["after"][n][line], 0.95 * found["before"][n][line], rtol=1e-5)


def test_defect__an_item_update_with_the_user_factors_already_updated() -> None:
    found = step(5.0, step_size=0.5)
    (P, Q, *_), (new_p, new_q, *_) = found["before"], found["after"]
    np.testing.assert_allclose(new_q[2], Q[2] + 0.5 * found["error"] * P[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_p[1], P[1] + 0.5 * found["error"] * Q[2], rtol=1e-5, atol=1e-6)
    assert np.abs(new_q[2] - (Q[2] + 0.5 * found["error"] * new_p[1])).max() > 0.1  # the test can tell


@pytest.mark.parametrize(
    ("matrix", "is_told"),
    [
        ([[101, 7, 4.5], [102, 9, 3], [102, 7, 1]], True),
        ([[101, 7, 4.5, 978300760], [102, 9, 3, 978300761]], True),
        ([[1, 2, 3], [3, 2, 1], [5, 5, 1]], False),
        ([[101, 7, 4.5], [102, 9, np.nan], [102, 7, 1]], False),
    ],
)
def test_fit__tells_that_rows_may_be_ratings(
    matrix: list[list[float]], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    MatrixFactorization(rank=1, epochs=2).fit(np.array(matrix))
    assert ("if its rows are a user, an item and a rating, give them as a table" in caplog.text) == is_told


@pytest.mark.parametrize("unset", [-1e3, 1e9, np.inf, np.nan])
def test_defect__a_cost_that_counts_unset_cells(unset: float) -> None:
    def is_set(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return np.asarray((values >= 1) & (values <= 5))

    expected = MatrixFactorization(2, epochs=20).fit(hide(5, 0))
    found = MatrixFactorization(2, epochs=20).fit(hide(5, 0, unset), is_set=is_set)
    assert [epoch.train_error for epoch in found.history_] == [epoch.train_error for epoch in expected.history_]
    np.testing.assert_array_equal(found.reconstruct(), expected.reconstruct())


def test_defect__a_sum_where_a_mean_belongs() -> None:
    # Twice the same matrix side by side has the same mean of squared errors, and twice the sum.
    options: dict[str, Any] = {"rank": 1, "epochs": 1, "step_size": 1e-12}
    once = MatrixFactorization(**options).fit(MATRIX).history_
    twice = MatrixFactorization(**options).fit(np.hstack([MATRIX, MATRIX])).history_
    # The first factors, of size 0.1, are others; without them both are the standard deviation.
    assert once[0].train_error == pytest.approx(MATRIX.std(), rel=0.02)
    assert twice[0].train_error == pytest.approx(MATRIX.std(), rel=0.02)


def test_defect__no_stop_rule_on_the_change_of_the_cost() -> None:
    # At rank 1 the cost cannot reach the target.
    options: dict[str, Any] = {"rank": 1, "step_size": 0.02, "step_decay": 0.99, "target_cost": 1e-6, "reg": 0}
    history = MatrixFactorization(**options, epochs=5000, tol=1e-4).fit(MATRIX).history_
    assert history.stopped == "converged"
    assert len(history) < 5000


def test_defect__no_limit_of_epochs() -> None:
    history = MatrixFactorization(1, target_cost=1e-6, epochs=12, tol=0).fit(MATRIX).history_
    assert (history.stopped, len(history)) == ("epochs", 12)


def test_defect__samples_shuffled_once_and_not_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    original = kernel.train_block

    def train_block(*args: Any) -> float:
        if len(args[0].values):  # not the call that only compiles
            orders.append(args[5])
        return original(*args)

    monkeypatch.setattr(kernel, "train_block", train_block)
    MatrixFactorization(2, epochs=30, tol=0).fit(MATRIX)
    orders = orders[BIAS_EPOCHS:]  # without those of the model of biases only
    assert len(orders) == len(set(orders)) == 30  # what the order within a block is drawn from; see test_kernel


@pytest.mark.parametrize("shift", [0, 1000])
def test_defect__factors_initialised_at_the_scale_of_the_mean(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[tuple[tasks.Training, graph.State]] = []
    original = graph.first_state

    def first_state(training: tasks.Training, **options: Any) -> graph.State:
        first.append((training, original(training, **options)))
        return first[-1][1]

    monkeypatch.setattr("distmf.trainer.first_state", first_state)
    MatrixFactorization(8, epochs=1).fit(MATRIX + shift)
    training, state = first[0]
    assert training.hyper.mean == pytest.approx(MATRIX.mean() + shift)
    for source in (state.rows[0], state.cols[0]):
        side = factors.fetch(source, None, training.rank)
        assert not side.biases.any()
        values = side.factors[:, :8]
        assert np.abs(values @ values.T).max() < 0.5  # in standard deviations, not in means
        assert 0 <= values.min() < values.max() < 0.1
        assert values.std() > 0.02


@pytest.mark.parametrize("seed", range(5))
def test_defect__random_cells_drawn_with_replacement_or_transposed(seed: int) -> None:
    # A 2 × 40 matrix whose rows differ: every set cell is trained on once an epoch, at its own place.
    matrix = np.vstack([np.full(40, 1.0), np.full(40, 5.0)])
    matrix[:, ::7] = np.nan
    mf = MatrixFactorization(1, epochs=200, reg=0, bias_reg=0, seed=seed).fit(matrix)
    assert mf.user_factors_.shape == (2, 1)
    assert mf.item_factors_.shape == (40, 1)
    assert mf.model_.users.counts.tolist() == [34, 34]
    assert mf.model_.items.counts.tolist() == [0 if n % 7 == 0 else 2 for n in range(40)]
    np.testing.assert_allclose(
        mf.reconstruct(clip=False), np.nan_to_num(matrix, nan=0) + np.isnan(matrix) * [[1], [5]], atol=0.05
    )


def test_defect__a_sentinel_for_unset_where_ratings_may_be_negative() -> None:
    matrix = MATRIX - 4  # from -3 to 1, with -1 among them
    mf = MatrixFactorization(2, reg=0, bias_reg=0, target_cost=1e-2, epochs=5000).fit(matrix)
    assert mf.model_.users.counts.sum() == 20
    assert np.square(mf.reconstruct(clip=False) - matrix).mean() < 1e-2


def test_is_set__chooses_the_entries() -> None:
    values = np.array([[-1.0, 0.0, np.nan, 2.0]])
    assert non_negative(values).tolist() == [[False, True, False, True]]
    assert not_nan(values).tolist() == [[True, True, False, True]]
    assert always(values).all()
    marked = np.where(np.isnan(hide(5, 3)), -1, hide(5, 3))
    for matrix, is_set in ((marked, non_negative), (marked.astype(int), non_negative), (hide(5, 3), not_nan)):
        found = MatrixFactorization(2, epochs=5).fit(matrix, is_set=is_set)
        assert found.model_.users.counts.sum() == 15


@pytest.mark.parametrize(
    ("matrix", "options", "error", "message"),
    [
        (np.full((2, 3), np.nan), {}, RatingsError, r"matrix of shape \(2, 3\) .* no entry is set"),
        (np.zeros((0, 3)), {}, RatingsError, "no entry is set"),
        (np.array([[1, np.inf]]), {}, RatingsError, "entries are set that are not finite, or beyond .*: 1;"),
        (
            np.array([[1, np.nan]]),
            {"is_set": always},
            RatingsError,
            "entries are set that are not finite, or beyond .*: 1;",
        ),
        (np.zeros(3), {}, ValueError, "2 dimensions, this has 1"),
        (MATRIX, {"is_set": lambda values: values[0] > 0}, ValueError, r"is_set returned shape \(5,\)"),
        (MATRIX, {"holdout": 0.1}, ValueError, "holdout can only be given with raw ratings"),
        (np.array([["a", "b"]]), {}, RatingsError, "type str32; a matrix of numbers is needed"),
    ],
)
def test_fit__refuses_matrices(matrix: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MatrixFactorization(2).fit(matrix, **options)


def test_fit__takes_masked_arrays() -> None:
    masked = np.ma.masked_array(np.where(np.isnan(hide(5, 1)), 999, MATRIX), mask=np.isnan(hide(5, 1)))
    found, expected = (MatrixFactorization(2, epochs=9).fit(matrix).reconstruct() for matrix in (masked, hide(5, 1)))
    np.testing.assert_array_equal(found, expected)


def test_fit__predicts_rows_and_columns_without_ratings_by_what_is_known() -> None:
    matrix = np.vstack([MATRIX, np.full(5, np.nan)])
    mf = MatrixFactorization(2, epochs=50).fit(matrix)
    np.testing.assert_allclose(mf.reconstruct(clip=False)[4], mf.global_bias_ + mf.item_biases_, rtol=1e-6)
    assert mf.is_unseen([4, 0], [0, 0]).tolist() == [True, False]
    assert math.isclose(mf.user_biases_[4], 0)
