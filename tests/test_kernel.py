"""The kernel against the reference, its order of visits, and how it is compiled."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from distmf import kernel
from distmf.buffers import aligned_empty
from distmf.encoding import Encoding
from distmf.kernel import GROUP_SIZES, FactorBlock, Hyperparameters, Ratings, padded_rank
from distmf.losses import LOSSES, Constants, LossName, Objective
from distmf.records import group
from distmf.vectors import Form
from tests import reference

RANKS = [1, 2, 3, 7, 10, 15, 16, 17, 31, 32, 33, 50, 64, 100, 128, 200, 256, 400, 500, 511, 512]
HYPER = Hyperparameters(mean=3.2, scale=1.3, reg=(0.05, 0.07), bias_reg=(0.02, 0.01))


def make_ratings(n: int, *, coded: bool, seed: int = 0, n_tile_rows: int = 2, n_tile_cols: int = 3) -> Ratings:
    """Return random ratings in tiles of 16 × 8."""
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.integers(n_tile_rows * n_tile_cols * 16 * 8, size=n)).astype(np.uint64)
    encoding = Encoding((1.0, 2.0, 3.5, 5.0)) if coded else Encoding()
    values = rng.integers(4, size=n, dtype=np.uint8) if coded else rng.normal(3, 1, n).astype(np.float32)
    return Ratings(*group(cells, values, (16, 8), n_tile_rows * n_tile_cols), encoding, (16, 8), n_tile_cols)


def visits(ratings: Ratings, seed: int) -> list[list[int]]:
    """Return the positions of the ratings of each group in the order in which a pass visits them."""
    order: list[list[int]] = []
    n_tile_cols = ratings.n_tile_cols
    begins = np.append(0, np.cumsum(ratings.sizes())).tolist()
    draw = kernel._mix(np.uint64(seed))
    for tile_row in strides(len(ratings.counts) // n_tile_cols, draw):
        draw = kernel._mix(np.uint64(draw))
        for tile_col in strides(n_tile_cols, draw):
            draw = kernel._mix(np.uint64(draw))
            tile = tile_row * n_tile_cols + tile_col
            begin = begins[tile]
            for size, n in zip(GROUP_SIZES, ratings.counts[tile].tolist(), strict=True):
                order += [list(range(begin + size * k, begin + size * (k + 1))) for k in strides(n, draw)]
                begin += size * n
    return order


def strides(n: int, draw: int) -> list[int]:
    """Return an order of n things, as one level of the kernel's loops visits them."""
    stride, position = kernel._visits(np.uint64(n), np.uint64(draw))
    return [(position + k * stride) % n for k in range(n)]


def triples(ratings: Ratings) -> list[tuple[int, int, float]]:
    """Return row, column and rating of every position."""
    rows, cols = ratings.places()
    return list(zip(rows.tolist(), cols.tolist(), ratings.encoding.decode(ratings.values).tolist(), strict=True))


def make_factors(rank: int, n_rows: int = 32, n_cols: int = 24) -> tuple[npt.NDArray[np.float32], ...]:
    rng = np.random.default_rng(rank)
    P, Q = aligned_empty(n_rows, padded_rank(rank)), aligned_empty(n_cols, padded_rank(rank))
    for factors in (P, Q):
        factors[:] = 0
        factors[:, :rank] = rng.normal(0, 0.5 / math.sqrt(rank), (len(factors), rank))
    return P, Q, rng.normal(0, 0.3, n_rows).astype(np.float32), rng.normal(0, 0.3, n_cols).astype(np.float32)


def blocks(arrays: tuple[npt.NDArray[np.float32], ...]) -> tuple[FactorBlock, FactorBlock]:
    P, Q, b_u, b_i = arrays
    return FactorBlock(P, b_u), FactorBlock(Q, b_i)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shared", [False, True])
def test_train_block__agrees_with_the_reference(rank: int, shared: bool) -> None:
    ratings = make_ratings(400, coded=rank % 2 == 0)
    P, Q, b_u, b_i = make_factors(rank)
    expected = reference.Parameters(*(array.astype(np.float64) for array in (P[:, :rank], Q[:, :rank], b_u, b_i)))
    rng = np.random.default_rng(rank)
    shares = (rng.random(len(P), dtype=np.float32), rng.random(len(Q), dtype=np.float32)) if shared else None
    cost = kernel.train_block(ratings, FactorBlock(P, b_u), FactorBlock(Q, b_i), HYPER, 0.04, 7, shares)
    all_of_them = triples(ratings)
    groups = [[(*all_of_them[position], 1.0) for position in group] for group in visits(ratings, 7)]
    expected_cost = reference.sgd(
        groups,
        expected,
        mean=HYPER.mean,
        scale=HYPER.scale,
        step_size=0.04,
        reg=HYPER.reg,
        bias_reg=HYPER.bias_reg,
        **dict(zip(("row_shares", "col_shares"), shares or (), strict=False)),
    )
    assert cost == pytest.approx(expected_cost, rel=1e-5)
    for found, array in zip((P[:, :rank], Q[:, :rank], b_u, b_i), expected, strict=True):
        # 400 updates of float32 in a row, each with a rounding error of 6e-8 of values below 3
        np.testing.assert_allclose(found, array, rtol=1e-5, atol=5e-6)
    assert not P[:, rank:].any()
    assert not Q[:, rank:].any()


@pytest.mark.parametrize("rank", [1, 16, 50, 512])
def test_train_block__weighs_ratings_by_the_precisions_of_both_lines(rank: int) -> None:
    """As with weights that are their products; and it adds up squared errors, each times the other's precision."""
    rng = np.random.default_rng(rank)
    ratings, free = make_ratings(400, coded=False), HYPER._replace(reg=(0.0, 0.0), bias_reg=(0.0, 0.0))
    lines = [np.zeros((n, 5), dtype=np.float32) for n in (32, 24)]
    for each in lines:
        each[:, :2] = rng.uniform(0.2, 2.0, (len(each), 2))
    shares = tuple(each[:, 0].copy() for each in lines)
    at = ratings.places()
    precisions = [each[where, 1] for each, where in zip(lines, at, strict=True)]
    weighted = ratings._replace(weights=precisions[0] * precisions[1])
    found, expected = make_factors(rank), make_factors(rank)
    cost = kernel.train_block(ratings, *blocks(found), free, 0.04, 7, tuple(lines))  # type: ignore[arg-type]
    kernel.train_block(weighted, *blocks(expected), free, 0.04, 7, shares)  # type: ignore[arg-type]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    standing = make_factors(rank)
    for each in lines:
        each[:, [0, 2]] = 0  # no step: errors are those of one place
    cost = kernel.train_block(ratings, *blocks(standing), free, 0.04, 7, tuple(lines))  # type: ignore[arg-type]
    P, Q, b_u, b_i = standing
    values = (ratings.encoding.decode(ratings.values) - free.mean) / free.scale
    squares = (values - b_u[at[0]] - b_i[at[1]] - (P[at[0]] * Q[at[1]]).sum(axis=1)) ** 2
    assert cost == pytest.approx(squares.sum(), rel=1e-5)
    for n in (0, 1):
        sums = np.bincount(at[n], squares * precisions[1 - n], minlength=len(lines[n]))
        np.testing.assert_allclose(lines[n][:, 2], sums, rtol=1e-4)


# Of ratings that are whole numbers from 0 to 4, or, for the binary losses, -1 and 1.
AT = Constants(low=-2.0, width=5.0, offset=0.4, slope=1.5)
COSTS: dict[LossName, tuple[reference.Cost, bool]] = {
    "squared": (reference.square, True),
    "absolute": (lambda value, score: abs(value - score), False),
    "huber": (reference.huber, True),
    "poisson": (reference.deviance(1.6), True),
    "logistic": (reference.log_loss(0.4, 1.5), False),
    "hinge": (reference.hinge, False),
    "squared_hinge": (lambda value, score: reference.hinge(value, score) ** 2, True),
}


@pytest.mark.parametrize(
    ("name", "is_bounded", "is_weighted", "l1_reg", "nonnegative"),
    [
        *((name, False, True, 0.3, True) for name in LOSSES),
        *((name, True, False, 0.0, False) for name in ("squared", "absolute", "huber")),
        ("poisson", False, False, 0.0, False),
        ("logistic", False, False, 0.3, False),
    ],
)
def test_train_block__agrees_with_the_reference_for_every_loss(
    name: LossName, is_bounded: bool, is_weighted: bool, l1_reg: float, nonnegative: bool
) -> None:
    rng, ratings, rank = np.random.default_rng(1), make_ratings(400, coded=False), 10
    if LOSSES[name].is_binary:
        mean, scale, values = 0.0, 1.0, rng.choice([-1.0, 1.0], 400)
    else:
        mean, scale, values = 2.0, 1.25, rng.integers(5, size=400).astype(np.float64)
    ratings = ratings._replace(values=values.astype(np.float32))
    if is_weighted:
        ratings = ratings._replace(weights=rng.gamma(2, 1, 400).astype(np.float32))
    at = AT._replace(offset=1.6) if name == "poisson" else AT
    regs = {"reg": (0.05, 0.07), "bias_reg": (0.02, 0.01), "l1_reg": (l1_reg, l1_reg / 2)}
    objective = Objective(name, is_bounded, nonnegative, at)
    hyper = Hyperparameters(mean, scale, **regs, objective=objective, mean_weight=2.0 if is_weighted else 1.0)
    P, Q, b_u, b_i = make_factors(rank)
    if nonnegative:
        P, Q = (np.abs(factors, out=factors) for factors in (P, Q))
    expected = reference.Parameters(*(array.astype(np.float64) for array in (P[:, :rank], Q[:, :rank], b_u, b_i)))
    shares = rng.random(len(P), dtype=np.float32), rng.random(len(Q), dtype=np.float32)
    before = kernel.measure_block(ratings, FactorBlock(P, b_u), FactorBlock(Q, b_i), hyper)
    found = kernel.train_block(ratings, FactorBlock(P, b_u), FactorBlock(Q, b_i), hyper, 0.04, 7, shares)

    weights = np.ones(400) if ratings.weights is None else ratings.weights / 2.0
    cost, is_square = COSTS[name]
    cost = reference.bounded(cost, *at) if is_bounded else cost
    scores = [reference.score(expected, u, i) for u, i, _ in triples(ratings)]
    costs = [cost((rating - mean) / scale, score) for (*_, rating), score in zip(triples(ratings), scores, strict=True)]
    assert before / hyper.mean_weight == pytest.approx(weights @ costs, rel=1e-5)
    all_of_them = [(*triple, weight) for triple, weight in zip(triples(ratings), weights.tolist(), strict=True)]
    groups = [[all_of_them[position] for position in group] for group in visits(ratings, 7)]
    options = {"mean": mean, "scale": scale, "step_size": 0.04, "nonnegative": nonnegative, **regs}
    options |= {"row_shares": shares[0], "col_shares": shares[1], "cost": cost, "is_square": is_square}
    assert found / hyper.mean_weight == pytest.approx(reference.sgd(groups, expected, **options), rel=1e-4)
    for array, other in zip((P[:, :rank], Q[:, :rank], b_u, b_i), expected, strict=True):
        # the derivatives of the reference are differences
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5)
    if l1_reg:
        assert (P[:, :rank] == 0).mean() > 0.05
    assert not P[:, rank:].any()


@pytest.mark.parametrize("coded", [True, False])
def test_measure_block__is_the_cost_at_fixed_factors(coded: bool) -> None:
    ratings = make_ratings(300, coded=coded)
    arrays = make_factors(20)
    before = [array.copy() for array in arrays]
    cost = kernel.measure_block(ratings, *blocks(arrays), HYPER)
    parameters = reference.Parameters(*(array.astype(np.float64) for array in arrays))
    mse = reference.mse(triples(ratings), parameters, HYPER.mean, HYPER.scale)
    assert cost * HYPER.scale**2 / 300 == pytest.approx(mse, rel=1e-5)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_train_block__with_a_step_of_zero_measures() -> None:
    ratings = make_ratings(300, coded=True)
    arrays = make_factors(20)
    trained = kernel.train_block(ratings, *blocks(arrays), HYPER, 0.0, 3)
    assert trained == pytest.approx(
        kernel.measure_block(ratings, *blocks(arrays), HYPER), rel=1e-12
    )  # same terms, other order


@pytest.mark.parametrize("n", [*range(1, 40), 97, 128, 1000])
def test_visits__are_a_permutation(n: int) -> None:
    for draw in (0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF):
        assert sorted(strides(n, draw)) == list(range(n))


def test_visits__differ_from_epoch_to_epoch() -> None:
    ratings = make_ratings(500, coded=True)
    orders = [tuple(itertools.chain(*visits(ratings, seed))) for seed in range(20)]
    assert len(set(orders)) == 20
    assert all(sorted(order) == list(range(500)) for order in orders)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_train_block__takes_hardly_any_ratings(n: int) -> None:
    ratings = make_ratings(n, coded=False)
    arrays = make_factors(4)
    before = [array.copy() for array in arrays]
    cost = kernel.train_block(ratings, *blocks(arrays), HYPER, 0.04, 1)
    assert (cost > 0) == (n > 0)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True)) == (n == 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_train_block__shows_divergence(value: float) -> None:
    arrays = make_factors(4)
    arrays[0][:, 0] = value
    assert not math.isfinite(kernel.train_block(make_ratings(50, coded=True), *blocks(arrays), HYPER, 0.04, 1))


def test_train_block__compiles_one_signature() -> None:
    for coded in (True, False):
        kernel._compiled.cache_clear()
        for seed in range(3):
            ratings = make_ratings(20 * seed, coded=coded, seed=seed)
            kernel.compile_for(ratings, 12, HYPER)
            arrays = make_factors(12)
            for array in ratings[:4]:
                array.setflags(write=bool(seed % 2))
            kernel.train_block(ratings, *blocks(arrays), HYPER, 0.1, 2**64 - 1)
            kernel.train_block(ratings, *blocks(arrays), HYPER, np.float64(0.1), seed)  # type: ignore[arg-type]
            for array in arrays[2:]:
                array.setflags(write=False)
            kernel.measure_block(ratings, *blocks(arrays), HYPER)
        for training in (True, False):
            compiled = kernel._compiled(16, 1, coded, Form(Objective(), is_training=training))
            assert len(compiled.signatures) == 1  # type: ignore[attr-defined]
