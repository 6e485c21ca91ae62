"""Draws from the posterior: against one that is known, and against ratings whose noise is known."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import distmf
from distmf import MatrixFactorization, kernel, langevin, moves
from distmf.buffers import aligned_empty
from distmf.encoding import Encoding
from distmf.kernel import FactorBlock, Hyperparameters, Ratings, padded_rank
from distmf.langevin import ChainState, LangevinRule
from distmf.moves import prior_and_noise
from distmf.records import group
from tests.helpers import blocks_in, write

RANK, PRECISION, NOISE_PRECISION = 1, 4.0, 2.0


def block(n: int, value: float, counts: np.ndarray | None = None) -> FactorBlock:
    """Return n rows with one factor of that value each, and no biases."""
    factors = aligned_empty(n, padded_rank(RANK))
    factors[:] = 0
    factors[:, 0] = value
    biases = np.zeros(n, dtype=np.float32)
    mean = FactorBlock(factors.copy(), biases.copy())
    lines = np.zeros((n, 5), dtype=np.float32)
    lines[:, 1], lines[:, 3] = 1, 0 if counts is None else counts
    return FactorBlock(factors, biases, mean, lines)


@pytest.mark.parametrize("n_ratings", [1, 4, 16, 64, 256])
def test_chain__draws_from_a_posterior_that_is_known(n_ratings: int) -> None:
    """Without factors, b_u given n ratings is normal, of precision λ + τ n and mean τ Σ r / (λ + τ n)."""
    n_users, n_epochs = 64, 1500
    rng = np.random.default_rng(n_ratings)
    values = rng.normal(0.7, NOISE_PRECISION**-0.5, n_users * n_ratings).astype(np.float32)
    cells = np.arange(n_users * n_ratings, dtype=np.uint64)
    ratings = Ratings(*group(cells, values, (n_users, n_ratings), 1), Encoding(), (n_users, n_ratings), 1)
    rows = block(n_users, 0.0, np.full(n_users, n_ratings, dtype=np.float32))
    rule = LangevinRule(1, 2, RANK, 0, len(values), (n_users, n_ratings))
    # As the second epoch of a chain of two, after burn-in; as much energy on either side needs no balance.
    state = ChainState(1, 1.0, NOISE_PRECISION, [[1.0, PRECISION]] * 2, [[1.0]] * 2, [1.0] * 3, [100.0] * 2)
    assert rows.lines is not None
    hyper, draws = Hyperparameters(0.0, 1.0), []
    for epoch in range(n_epochs):
        cols = block(n_ratings, 0.0)
        assert cols.lines is not None
        rule.share(rows, "user", state)
        kernel.train_block(ratings, rows, cols, hyper, rule.step_size(state), epoch, (rows.lines, cols.lines))
        rows.lines[:, 2] = rows.lines[:, 3]  # errors as large as expected: so all precisions stay at 1
        langevin.end_epoch(rows, "user", state, rule, int(rng.integers(2**63)))
        draws.append(rows.biases.copy())
    precision = PRECISION + NOISE_PRECISION * n_ratings
    expected = NOISE_PRECISION * values.reshape(n_users, n_ratings).sum(axis=1) / precision
    drawn = np.array(draws[100:])
    # 1,400 draws of 64 users, of which neighbours in time depend on one another
    assert (drawn.mean(axis=0) - expected).mean() == pytest.approx(0, abs=0.1 * precision**-0.5)
    assert np.corrcoef(drawn.mean(axis=0), expected)[0, 1] > 0.95
    # Steps are not small where rows have more than a few ratings, and ratings of a group are visited at once.
    assert drawn.var(axis=0).mean() * precision == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("y", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("x", [0.01, 0.3, 1.0, 2.0])
def test_prior_and_noise__give_the_mean_and_the_variance_of_the_posterior(x: float, y: float) -> None:
    """Of n ratings in a random order, the last count most: a sum of η (1 − η)^k e_k, with errors of variance 1/τ."""
    n = 20_000
    weights = x / n * (1 - x / n) ** np.arange(n)
    of_order = ((weights - weights.mean()) ** 2).sum() * n / x  # in units of T, as everything here
    kept, variance = prior_and_noise(np.float32(x), np.float32(y))
    a = math.exp(-x)
    assert kept * (1 - a) / (1 - kept * a) == pytest.approx(x / (x + y), rel=1e-4)  # m = k (a m + 1 − a)
    assert kept**2 * (a**2 / (x + y) + of_order) + variance == pytest.approx(1 / (x + y), rel=1e-3)


def test_draws__have_the_moments_of_the_normal_distribution() -> None:
    hashed = np.arange(1, 200_001, dtype=np.uint64) * moves.GOLDEN
    z = np.array([moves._draw(x) for x in hashed], dtype=np.float64)
    assert [np.mean(z**k) for k in (1, 2, 3)] == pytest.approx([0, 1, 0], abs=0.01)
    assert np.mean(z**4) == pytest.approx(2.7, abs=0.02)  # of the sum of four uniform numbers; 3 of a normal one
    for lag in (1, RANK + 1, 64):
        assert np.corrcoef(z[lag:], z[:-lag])[0, 1] == pytest.approx(0, abs=0.01)


def planted(folder: Path, n_users: int, n_items: int, n: int, noise: float) -> tuple[Path, Path]:
    """Write ratings of rank 3 with biases and noise, and as many more to test with."""
    rng = np.random.default_rng(1)
    P, Q = rng.normal(size=(n_users, 3)), rng.normal(size=(n_items, 3)) / 3**0.5
    b_u, b_i = rng.normal(0, 0.5, n_users), rng.normal(0, 0.5, n_items)
    users, items = rng.integers(n_users, size=2 * n), rng.integers(n_items, size=2 * n)
    values = 3 + b_u[users] + b_i[items] + (P[users] * Q[items]).sum(axis=1) + rng.normal(0, noise, 2 * n)
    parts = []
    for name, part in (("train", slice(n)), ("test", slice(n, None))):
        columns = {"user_id": users[part], "item_id": items[part], "rating": values[part].astype(np.float32)}
        parts.append(write(folder / f"{name}.parquet", columns))
    return parts[0], parts[1]


@pytest.mark.parametrize("n", [40_000, 120_000])
def test_posterior__is_calibrated_and_better_than_sgd(n: int, tmp_path: Path) -> None:
    train, test = planted(tmp_path, 1500, 600, n, noise=0.7)
    mf = MatrixFactorization(8, posterior_samples=4, epochs=120).fit(train)
    found = distmf.evaluate(mf, test)
    assert found["within_50"] == pytest.approx(0.5, abs=0.03)
    assert found["within_90"] == pytest.approx(0.9, abs=0.02)
    assert mf.model_.noise_std == pytest.approx(0.7, rel=0.1)
    tuned = min(
        distmf.evaluate(MatrixFactorization(8, reg=reg).fit(train), test)["rmse"] for reg in (0.02, 0.05, 0.1, 0.2)
    )
    assert found["rmse"] < tuned
    unseen, std = mf.predict([-1, 0, -1], [0, -1, -1], return_std=True)
    assert len(unseen) == 3
    assert (std > mf.predict([0], [0], return_std=True)[1]).all()  # who is not known may be anybody


def test_posterior__learns_whose_ratings_are_noisy(tmp_path: Path) -> None:
    """Half of the users rate with a noise of 0.4, half with 1.2: what the latter say counts less."""
    n_users, n_items, n = 600, 300, 60_000
    rng = np.random.default_rng(2)
    P, Q = rng.normal(size=(n_users, 3)), rng.normal(size=(n_items, 3)) / 3**0.5
    users, items = rng.integers(n_users, size=2 * n), rng.integers(n_items, size=2 * n)
    noise = np.where(users % 2 == 0, 0.4, 1.2)
    values = 3 + (P[users] * Q[items]).sum(axis=1) + noise * rng.normal(size=2 * n)
    columns = {"user_id": users, "item_id": items, "rating": values.astype(np.float32)}
    train = write(tmp_path / "train.parquet", {name: column[:n] for name, column in columns.items()})
    mf = MatrixFactorization(4, posterior_samples=3, epochs=100).fit(train)
    predicted, stds = mf.predict(users[n:], items[n:], return_std=True)
    is_noisy = users[n:] % 2 == 1
    assert 2.2 < stds[is_noisy].mean() / stds[~is_noisy].mean() < 3.2
    assert mf.model_.items.noises is not None
    assert np.ptp(mf.model_.items.noises) < 0.4  # items are all alike
    for some in (is_noisy, ~is_noisy):
        inside = np.abs(values[n:] - predicted)[some] < 1.645 * stds[some]
        assert inside.mean() == pytest.approx(0.9, abs=0.03)
    squares = np.square(predicted - values[n:])
    floor = (0.4**2 + 1.2**2) / 2
    assert squares.mean() < 1.10 * floor


@pytest.mark.parametrize("side", ["user", "item"])
def test_end_epoch__brings_the_scales_of_both_sides_together(side: Literal["user", "item"]) -> None:
    """Of factors whose squares are four times as large on the other side; rows without ratings have no noise."""
    rows = block(3, 1.5)
    rule = LangevinRule(1, 2, RANK, 0, 100, (3, 3))
    energies = [[1.0], [4.0]] if side == "user" else [[4.0], [1.0]]
    state = ChainState(1, 1.0, 1.0, [[0.0, 0.0]] * 2, energies, [1.0] * 3, [100.0] * 2)
    langevin.end_epoch(rows, side, state, rule, 0)
    np.testing.assert_allclose(rows.factors[:, 0], 1.5 * 4 ** (1 / 12), rtol=1e-5)


def test_recommend__by_a_bound_adds_or_takes_one_standard_deviation_of_the_draws(tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path, 3_000, 100, 40)
    mf = MatrixFactorization(4, posterior_samples=4, epochs=40).fit(blocks)
    model, user = mf.model_, mf.user_ids_[7]
    assert model.noise_std is not None
    assert model.users.noises is not None
    assert model.items.noises is not None
    means = mf.predict([user] * 40, mf.item_ids_, clip=False)
    stds = mf.predict([user] * 40, mf.item_ids_, return_std=True)[1]
    of_draws = np.sqrt(stds**2 - model.noise_std**2 * model.users.noises[7] * model.items.noises)
    for bound, sign in (("optimistic", 1), ("pessimistic", -1)):
        expected = np.argsort(-(means + sign * of_draws), kind="stable")[:10]
        assert mf.recommend(user, 10, bound=bound).item_ids.tolist() == mf.item_ids_[expected].tolist()  # type: ignore[arg-type]


def test_fold_in__of_draws_is_surer_of_users_with_more_ratings_and_of_items_with_less_noise(tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path, 20_000, 200, 100)
    mf = MatrixFactorization(4, posterior_samples=8, epochs=40).fit(blocks)
    mf.save(tmp_path / "m")
    items = mf.item_ids_

    def folded(n: int, noise: float) -> MatrixFactorization:
        found = distmf.load(tmp_path / "m")
        side = found.model_.items
        noises = np.full(len(items), noise, dtype=np.float32)
        found._model = found.model_._replace(items=replace(side, noises=noises))
        columns = {"user_id": np.full(n, 10**6), "item_id": items[:n], "rating": np.full(n, 9.0)}
        return found.fold_in(write(tmp_path / "new.parquet", columns), grid=(1, 1))

    few, many = folded(2, 1.0), folded(80, 1.0)
    stds = [np.sqrt(np.square(mf.predict([10**6] * 20, items[80:], return_std=True)[1]).mean()) for mf in (few, many)]
    assert stds[0] > 1.02 * stds[1]
    noisy = folded(80, 1e6)
    unseen = mf.predict([-1], [items[90]])
    assert abs(noisy.predict([10**6], [items[90]]) - unseen) < 0.05 * abs(many.predict([10**6], [items[90]]) - unseen)


@pytest.mark.parametrize("max_seconds", [0.0, 0.3])
def test_fit__of_draws_ends_when_the_time_is_over(max_seconds: float, tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path, 20_000, 500, 200)
    mf = MatrixFactorization(8, posterior_samples=3, epochs=400, max_seconds=max_seconds).fit(blocks)
    assert mf.history_.stopped == "time"
    assert 1 <= len(mf.history_) < 1200
    assert np.isfinite(mf.predict([1], [1], return_std=True)).all()
