"""What a training says about itself, on data made to show each of the findings; and the rules alone."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distmf import Blocks, MatrixFactorization, block_ratings
from distmf.diagnosis import diagnose
from distmf.history import Baselines, Epoch, History
from tests.helpers import write


def blocks_of(folder: Path, n: int, noise: float, rank: int = 2, n_users: int = 400, n_items: int = 300) -> Blocks:
    """Block ratings of a model of that rank (0 for biases only) plus noise, a tenth of them held out."""
    rng = np.random.default_rng(7)
    users, items = rng.integers(n_users, size=n), rng.integers(n_items, size=n)
    values = 3 + rng.normal(0, 0.6, n_users)[users] + rng.normal(0, 0.6, n_items)[items]
    if rank:
        P, Q = rng.normal(size=(n_users, rank)), rng.normal(size=(n_items, rank))
        values += (P[users] * Q[items]).sum(axis=1) / rank**0.5
    values += rng.normal(0, noise, n)
    columns = {"user_id": users, "item_id": items, "rating": values.astype(np.float32)}
    return block_ratings(write(folder / "r.parquet", columns), folder / "b", holdout=0.1, grid=(2, 2))


@pytest.fixture(scope="module")
def signal(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    return blocks_of(tmp_path_factory.mktemp("signal"), 40_000, noise=0.3)


def test_diagnose__says_that_it_has_converged(signal: Blocks) -> None:
    found = MatrixFactorization(4, epochs=40, patience=0).fit(signal).diagnose()
    assert found.codes == ["converged"]
    assert "biases only" in str(found)


def test_diagnose__says_that_it_is_still_getting_better_and_about_how_many_epochs_it_needs(signal: Blocks) -> None:
    mf = MatrixFactorization(4, step_size=0.01, epochs=12, tol=0.0, patience=0).fit(signal)
    (finding,) = mf.diagnose().findings
    assert finding.code == "still falling"
    advised = int(finding.text.rsplit(" ", 2)[1])
    assert 12 < advised <= 120
    longer = MatrixFactorization(4, step_size=0.01, epochs=advised, tol=0.0, patience=0).fit(signal)
    assert "still falling" not in longer.diagnose().codes
    assert longer.history_.holdout_rmse < 0.97 * mf.history_.holdout_rmse


def test_diagnose__says_since_when_it_overfits(tmp_path: Path) -> None:
    blocks = blocks_of(tmp_path, 12_000, noise=1.0)
    options = {"reg": 0.0, "bias_reg": 0.0, "step_size": 0.05, "epochs": 40, "tol": 0.0}
    for patience in (0, 3):
        mf = MatrixFactorization(16, **options, patience=patience).fit(blocks)
        found = mf.diagnose()
        assert found.codes[0] == "overfitting"
        best = 1 + int(np.argmin([epoch.holdout_error for epoch in mf.history_]))
        assert f"since epoch {best}:" in str(found)
        assert "Raise reg" in str(found)
    tamed = MatrixFactorization(16, reg=0.2, epochs=40, patience=0).fit(blocks)
    assert "overfitting" not in tamed.diagnose().codes


def test_diagnose__says_that_the_step_was_too_large_with_the_evidence(signal: Blocks) -> None:
    found = MatrixFactorization(4, step_size=3.0, epochs=15, patience=0).fit(signal).diagnose()
    assert found.codes[0] == "step too large"
    assert "half the step" in str(found)


def test_diagnose__says_that_the_step_was_too_small(signal: Blocks) -> None:
    for step_size in (1e-5, 3e-4, 1e-3):
        found = MatrixFactorization(4, step_size=step_size, epochs=8, patience=0).fit(signal).diagnose()
        assert found.codes == ["step too small"]


def test_diagnose__says_that_there_is_nothing_beyond_the_biases(tmp_path: Path) -> None:
    mf = MatrixFactorization(4, reg=0.2).fit(blocks_of(tmp_path, 40_000, noise=1.0, rank=0))
    assert mf.diagnose().codes == ["no signal"]


def test_diagnose__says_that_the_error_is_down_to_the_noise_in_duplicates(tmp_path: Path) -> None:
    blocks = blocks_of(tmp_path, 60_000, noise=1.0, rank=1, n_users=200, n_items=100)
    assert blocks.settings["noise"] == pytest.approx(1.0, rel=0.02)
    mf = MatrixFactorization(1, reg=0.02, epochs=40).fit(blocks)
    assert "at the noise" in mf.diagnose().codes
    assert "as low as it can be: ratings that repeat a pair differ by" in str(mf.diagnose())
    alone = diagnose(replace(history([0.9, 0.5, 0.3]), noise=0.6), adapts_step=True)
    assert "It fits noise" in str(alone)


def test_noise__is_not_told_by_means_or_a_few(signal: Blocks, tmp_path: Path) -> None:
    assert signal.settings["noise"] == pytest.approx(0.3, rel=0.03)
    source = Path(signal.path).parent / "r.parquet"
    assert block_ratings(source, tmp_path / "b", duplicates="mean").settings["noise"] is None
    columns = {"user_id": [1, 1, 2], "item_id": [1, 1, 1], "rating": [1.0, 2.0, 3.0]}
    few = block_ratings(write(tmp_path / "few.parquet", columns), tmp_path / "f", grid=(1, 1))
    assert (few.settings["n_duplicates"], few.settings["noise"]) == (1, None)


def test_diagnose__says_that_reg_is_too_large(signal: Blocks) -> None:
    assert re.search(
        r"reg(, which)? is \d+ times the automatic", str(MatrixFactorization(4, reg=2.0).fit(signal).diagnose())
    )
    found = diagnose(history([0.94] * 12), adapts_step=True, over_auto=20)
    assert "0.9400, and 0.9500 with biases only. reg is 20 times the automatic one; lower it" in str(found)
    assert "reg too large" not in MatrixFactorization(4).fit(signal).diagnose().codes


def test_diagnose__says_that_a_target_cannot_be_reached_and_what_to_change() -> None:
    matrix = np.array([[3, 1, 1, 3, 1], [1, 2, 4, 1, 3], [3, 1, 1, 3, 1], [4, 3, 5, 4, 4]])
    mf = MatrixFactorization(2, target_cost=0.01, epochs=3000).fit(matrix)
    assert "off target" in mf.diagnose().codes
    assert re.search(
        r"target cost of 0.01 was not reached: the mean squared error came to rest at [\d.]+. Lower reg and bias_reg",
        str(mf.diagnose()),
    )
    lower = MatrixFactorization(2, reg=0, bias_reg=0, target_cost=0.01, epochs=3000).fit(matrix)
    assert lower.diagnose().codes == ["on target"]
    falling = diagnose(history([0.9 * 0.97**n for n in range(20)]), adapts_step=True, target=0.1)
    assert falling.codes == ["still falling", "off target"]
    assert "not at rest yet. Give it more epochs" in str(falling)


def test_diagnose__of_draws_from_the_posterior(signal: Blocks) -> None:
    done = MatrixFactorization(4, posterior_samples=1, epochs=100).fit(signal).diagnose()
    assert (done.codes, done.findings[0].text) == (["converged"], "The draws are done: 1 chain of 100 epochs.")
    short = MatrixFactorization(4, posterior_samples=2, epochs=30).fit(signal).diagnose()
    assert short.codes == ["still falling"]
    assert "chains of 30 epochs are short" in str(short)
    late = MatrixFactorization(4, posterior_samples=2, max_seconds=0.0).fit(signal).diagnose()
    assert "the time was over after 1 epoch of chains of 200" in str(late)


def test_baselines__are_the_errors_of_the_mean_and_of_the_best_biases(signal: Blocks) -> None:
    baselines = MatrixFactorization(4, epochs=1).fit(signal).history_.baselines
    assert baselines is not None
    assert baselines.mean_train == pytest.approx(signal.moments.std, rel=1e-4)
    # Biases have a standard deviation of 0.6 on either side, the factors' product of 1, and the noise of 0.3.
    assert baselines.bias_holdout == pytest.approx((1 + 0.3**2) ** 0.5, rel=0.1)


def history(errors: list[float], holdouts: list[float] | None = None, stopped: str = "epochs") -> History:
    seen = holdouts or [None] * len(errors)
    epochs = tuple(Epoch(n, *pair, 0.04) for n, pair in enumerate(zip(errors, seen, strict=True), 1))
    return History(epochs, stopped, errors[-1], seen[-1], baselines=Baselines(1.0, 1.0, 0.95, 0.95))  # type: ignore[arg-type]


def test_diagnose__names_the_epochs_in_which_the_error_rose() -> None:
    found = diagnose(history([0.9, 0.8, 0.82, 0.7, 0.72, 0.6]), adapts_step=False)
    assert found.codes[0] == "step too large"
    assert "rose in epochs 3, 5" in str(found)


@pytest.mark.parametrize(("first", "fall"), [(0.8, 0.0012), (0.97, 0.0012), (0.98, 0.003)])
def test_diagnose__of_a_fixed_step_that_falls_slowly_does_not_say_that_it_is_done(first: float, fall: float) -> None:
    errors = [first * (1 - fall) ** n for n in range(15)]
    fixed, adaptive = (diagnose(history(errors, errors), adapts_step=adapts) for adapts in (False, True))
    assert set(fixed.codes) <= {"still falling", "step too small"}
    assert fixed.codes
    assert set(adaptive.codes) <= {"converged", "no signal", "still falling"}


def test_diagnose__without_a_holdout_says_what_it_cannot_know() -> None:
    errors = [0.9 * 0.97**n for n in range(20)]
    alone, held_out = (diagnose(history(errors, more), adapts_step=True) for more in (None, errors))
    assert alone.codes == held_out.codes == ["still falling"]
    assert "only ratings that are held out can tell" in str(alone)
    assert "try about 40 epochs" in str(held_out)


def test_diagnose__of_few_epochs_says_that_they_are_too_few() -> None:
    found = diagnose(history([0.9, 0.7], [0.95, 0.8]), adapts_step=True)
    assert found.codes == ["still falling"]
    assert "2 epochs cannot tell" in str(found)


FALLS = 0.9, 0.8, 0.7, 0.65, 0.62, 0.6  # of errors that come to rest from then on


def at_rest(share: float, n: int = 8) -> list[float]:
    """Return errors that fall by a share per epoch at last."""
    return [*FALLS, *(FALLS[-1] * (1 - share) ** k for k in range(1, n))]


@pytest.mark.parametrize(
    ("errors", "holdouts", "options", "code"),
    [
        (at_rest(0.0025), at_rest(0.0025), {}, "still falling"),
        (at_rest(0.0015), at_rest(0.0015), {}, "converged"),
        (at_rest(0.0), [*at_rest(0.0, 7), 0.6 * 1.003], {}, "overfitting"),
        (at_rest(0.0), [*at_rest(0.0, 7), 0.6 * 1.001], {}, "converged"),
        (at_rest(0.0), [0.942] * 13, {}, "no signal"),  # 0.95 with biases only
        (at_rest(0.0), [0.939] * 13, {}, "converged"),
        ([0.99 - 0.001 * n for n in range(13)], None, {}, "step too small"),
        ([0.985] * 13, None, {}, "no signal"),
        ([0.985] * 13, None, {"adapts_step": False}, "step too small"),
        ([0.9, 0.7, 0.5, 0.504, 0.5, 0.504, 0.5, 0.5, 0.5, 0.5], None, {"adapts_step": False}, "step too large"),
        ([0.9, 0.7, 0.5, 0.502, 0.5, 0.502, 0.5, 0.5, 0.5, 0.5], None, {"adapts_step": False}, "converged"),
        (at_rest(0.0), [0.6] * 13, {"noise": 0.58}, "at the noise"),
        (at_rest(0.0), [0.6] * 13, {"noise": 0.56}, "converged"),
        (at_rest(0.01), at_rest(0.01), {"stopped": "time"}, "still falling"),
        (at_rest(0.01), at_rest(0.01), {"stopped": "target"}, "on target"),
        (at_rest(0.01), at_rest(0.01), {"stopped": "interrupted"}, "interrupted"),
        ([0.94] * 13, None, {"over_auto": 2.1}, "reg too large"),  # 0.95 with biases only
        ([0.94] * 13, None, {"over_auto": 1.9}, "converged"),
        ([0.92] * 13, None, {"over_auto": 2.1}, "converged"),
        (at_rest(0.0), None, {"target": 0.35}, "off target"),  # 0.6² = 0.36
        (at_rest(0.0), None, {"target": 0.35, "stopped": "target"}, "on target"),
        ([*at_rest(0.0)] * 8, None, {"chain": 100}, "converged"),
        ([*at_rest(0.0)] * 8, None, {"chain": 99}, "still falling"),
    ],
)
def test_rules__have_their_thresholds(
    errors: list[float], holdouts: list[float] | None, options: dict[str, Any], code: str
) -> None:
    """On either side of each."""
    rules = {"adapts_step": True, **options}
    seen = replace(history(errors, holdouts, rules.pop("stopped", "epochs")), noise=rules.pop("noise", None))
    assert diagnose(seen, **rules).codes == [code]


def test_no_signal__names_the_mean_where_it_is_better_than_biases() -> None:
    noise = replace(history([0.9] * 12, [1.03] * 12), baselines=Baselines(1.0, 1.0, 0.95, 1.02))
    assert "beyond the mean: the error is 1.0300, and 1.0000 with the mean only" in str(
        diagnose(noise, adapts_step=True)
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_diagnose__takes_histories_of_hardly_any_epochs(n: int) -> None:
    for stopped in ("epochs", "interrupted", "target", "time"):
        assert diagnose(history([0.9, 0.8, 0.7, 0.6][:n], stopped=stopped), adapts_step=True).findings
