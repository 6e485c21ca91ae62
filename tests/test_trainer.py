"""When training stops, what it does when the cost grows, and that it never ends in NaN."""

import itertools
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distmf import Blocks, MatrixFactorization, block_ratings, kernel, tasks, trainer
from distmf.errors import DivergedError, NotFittedError
from distmf.trainer import _is_steady
from tests.helpers import files, random_ratings, write


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    folder = tmp_path_factory.mktemp("blocks")
    source = write(folder / "r.parquet", random_ratings(6000, 300, 100))
    return block_ratings(source, folder / "b", grid=(3, 3), holdout=0.1)


def exact_mse(mf: MatrixFactorization, blocks: Blocks) -> float:
    """Return the mean squared error over the ratings trained on, from predictions."""
    users, items = (blocks.ids(side)["id"].to_numpy() for side in ("user", "item"))
    errors = []
    for key in blocks.entries:
        rows, cols = blocks.numbers(key, "train")
        block = blocks.read(key, "train")
        errors.append(block.encoding.decode(block.values) - mf.predict(users[rows], items[cols], clip=False))
    return float(np.square(np.concatenate(errors)).mean())


def test_fit__stops_at_epochs(blocks: Blocks) -> None:
    history = MatrixFactorization(4, epochs=7, tol=0).fit(blocks).history_
    assert history.stopped == "epochs"
    assert [epoch.epoch for epoch in history] == list(range(1, 8))


def test_fit__stops_at_the_target_and_means_it(blocks: Blocks) -> None:
    mf = MatrixFactorization(8, epochs=200, target_cost=0.3, reg=0.01).fit(blocks)
    assert mf.history_.stopped == "target"
    assert exact_mse(mf, blocks) < 0.3
    assert len(mf.history_) < 200
    assert mf.history_[-1].train_error ** 2 < 0.3
    assert all(epoch.train_error**2 >= 0.3 for epoch in mf.history_[:-1])


@pytest.mark.parametrize("options", [{"target_cost": 0.3, "reg": 0.01}, {"tol": 0.5}, {"step_size": 10.0, "epochs": 1}])
def test_fit__ends_a_generation_when_what_comes_does_not_count(
    options: dict[str, Any], blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, visited = tasks.visit, []

    def visit(*arguments: Any) -> tasks.Visited:
        if arguments[3].rank == 8:  # not the model of biases only
            visited.append(arguments[5])
        return original(*arguments)

    monkeypatch.setattr(tasks, "visit", visit)
    mf = MatrixFactorization(8, **{"epochs": 200, **options}).fit(blocks, checkpoint=tmp_path / "c", threads=2)
    n_blocks, n_counted = len(blocks.entries), len(mf.history_) + mf.history_.rollbacks
    assert n_blocks * n_counted <= len(visited) < n_blocks * (n_counted + 2)


def test_fit__stops_when_the_cost_stays(blocks: Blocks) -> None:
    # A decaying step comes to rest.
    mf = MatrixFactorization(4, epochs=500, step_size=0.05, step_decay=0.7, tol=1e-4).fit(blocks)
    assert mf.history_.stopped == "converged"
    costs = [epoch.train_error**2 for epoch in mf.history_]
    changes = [abs(after / before - 1) for before, after in itertools.pairwise(costs)]
    assert max(changes[-3:]) <= 1e-4
    assert all(max(changes[n : n + 3]) > 1e-4 for n in range(len(changes) - 3))
    assert (
        MatrixFactorization(4, epochs=60, step_size=0.05, step_decay=0.7, tol=0, patience=0)
        .fit(blocks)
        .history_.stopped
        == "epochs"
    )


def test_is_steady__needs_several_changes_in_a_row() -> None:
    assert _is_steady([1.0, 1.0, 1.0, 1.0], 1e-9)
    assert not _is_steady([1.0, 1.0, 1.0], 1e-9)
    assert not _is_steady([2.0, 1.0, 1.0, 1.0], 1e-9)
    assert not _is_steady([1.0, 0.9, 0.8, 0.7], 0.1)
    assert _is_steady([0.0, 0.0, 0.0, 0.0], 1e-9)


def test_fit__reports_exact_errors_at_the_end(blocks: Blocks) -> None:
    mf = MatrixFactorization(4, epochs=5).fit(blocks)
    assert mf.history_.train_rmse is not None
    assert mf.history_.train_rmse**2 == pytest.approx(exact_mse(mf, blocks), rel=1e-5)
    assert mf.history_.holdout_rmse is not None
    # Seen on the way, the holdout is predicted in the middle of the last epoch.
    assert mf.history_.holdout_rmse == pytest.approx(mf.history_[-1].holdout_error, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [{}, {"target_cost": 0.35, "epochs": 200}, {"step_size": 3.0, "epochs": 12}, {"step_size": 0.6, "epochs": 4}],
)
def test_fit__does_not_depend_on_the_length_of_a_generation(
    options: dict[str, Any], blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for n in (1, 3, 5, 50):
        for name in "EPOCHS_PER_GENERATION", "EPOCHS_IN_MEMORY":
            monkeypatch.setattr(trainer, name, n)
        for checkpoint in None, tmp_path / f"c{n}":
            mf = MatrixFactorization(8, **options).fit(blocks, checkpoint=checkpoint)
            mf.save(tmp_path / "m")
            found.append(files(tmp_path / "m"))
            shutil.rmtree(tmp_path / "m")
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("step_size", [1.0, 10.0, 1e4])
def test_fit__rolls_back_from_steps_that_are_too_large(step_size: float, blocks: Blocks) -> None:
    mf = MatrixFactorization(8, step_size=step_size, epochs=30, patience=0).fit(blocks)
    history = mf.history_
    assert history.rollbacks > 0
    assert len(history) == 30
    assert history[-1].step_size < step_size
    assert history.train_rmse is not None
    assert history.train_rmse < blocks.moments.std  # better than the mean alone
    assert np.isfinite(mf.reconstruct()).all()


@pytest.mark.parametrize("epochs", [1, 2, 7])
@pytest.mark.parametrize("step_size", [3.0, 1e15])
def test_fit__sees_a_divergence_in_the_last_epoch(epochs: int, step_size: float, tmp_path: Path) -> None:
    # One rating of every user and item: the cost seen on the way through an epoch knows nothing of its own updates.
    ids = np.arange(3000)
    ratings = np.random.default_rng(0).normal(3, 1, 3000)
    source = write(tmp_path / "r.parquet", {"user_id": ids, "item_id": ids, "rating": ratings})
    mf = MatrixFactorization(4, epochs=epochs, tol=0, step_size=step_size).fit(source)
    assert mf.history_.rollbacks > 0
    assert len(mf.history_) == epochs
    assert mf.history_.train_rmse is not None
    assert mf.history_.train_rmse < 1.5 * ratings.std()
    assert np.isfinite(mf.predict(ids, ids, clip=False)).all()


@pytest.mark.parametrize("options", [{"step_size": 1e300}, {"reg": 1e300}, {"bias_reg": 1e38}])
def test_fit__ends_in_an_error_or_finite(options: dict[str, Any], blocks: Blocks) -> None:
    mf = MatrixFactorization(4, epochs=1, **options)
    with pytest.raises(DivergedError, match="the cost grows even with"):
        mf.fit(blocks)
    with pytest.raises(NotFittedError):
        mf.predict(1, 1)


def test_fit__gives_up_when_no_step_helps(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "DIVERGED", 0.0)
    with pytest.raises(
        DivergedError, match="the cost grows even with a step size of .*; look for ratings of very different sizes"
    ):
        MatrixFactorization(2, epochs=3).fit(blocks)


SCALES = [(0, 1), (1, 5), (-10, 10), (0, 1_000_000), (1e6, 1e6 + 1), (0, 1e-6)]


@pytest.mark.parametrize(("low", "high"), SCALES)
def test_fit__takes_ratings_of_every_scale_with_the_same_defaults(low: float, high: float, tmp_path: Path) -> None:
    table = random_ratings(20_000, 400, 150, coded=False)
    values = table["rating"].to_numpy().astype(np.float64)
    values = low + (high - low) * (values - values.min()) / np.ptp(values)
    source = write(tmp_path / "r.parquet", table.set_column(2, "rating", [values]))
    mf = MatrixFactorization(8).fit(source, holdout=0.1)
    assert mf.history_.rollbacks == 0
    assert mf.history_.holdout_rmse is not None
    # The share of the spread that is left is the same on every scale; float32 itself is coarse at 1e6 + [0, 1].
    assert mf.history_.holdout_rmse / values.std() == pytest.approx(0.321, abs=0.03)
    assert np.isfinite(mf.reconstruct()).all()


@pytest.mark.parametrize("value", [0.0, 3.5, -1e6])
def test_fit__takes_ratings_that_are_all_the_same(value: float, tmp_path: Path) -> None:
    table = random_ratings(500, 40, 30)
    source = write(tmp_path / "r.parquet", table.set_column(2, "rating", [np.full(500, value)]))
    mf = MatrixFactorization(4).fit(source)
    assert (mf.reconstruct() == np.float32(value)).all()
    assert mf.history_.stopped == "converged"


def test_fit__logs_a_line_per_epoch(blocks: Blocks, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distmf"):
        MatrixFactorization(4, epochs=12, tol=0).fit(blocks)
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert len(lines) == 12
    for n, line in enumerate(lines, start=1):
        assert line.startswith(f"epoch {n:2d}/12  train RMSE ")
        for word in ("holdout RMSE ", "step ", " M ratings/s", " s left"):
            assert word in line


def test_fit__says_what_share_of_the_threads_was_in_kernels(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def asleep(ratings: kernel.Ratings, *_: Any) -> float:
        time.sleep(0.02)
        return float(len(ratings.values))

    monkeypatch.setattr(kernel, "train_block", asleep)
    shares = []
    for threads in 1, 16:  # of which 3 can be at work
        found = MatrixFactorization(2, epochs=10, tol=0).fit(blocks, threads=threads).history_
        shares.append(np.mean([epoch.utilization for epoch in found]))
    assert shares[0] > 0.5
    assert 0.02 < shares[1] < 0.3


def test_fit__keeps_the_last_good_model_when_interrupted(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = trainer.Trainer.accept, []

    def accept(self: trainer.Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        calls.append(self.progress.state.epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "accept", accept)
    mf = MatrixFactorization(4, epochs=50, tol=0)
    with pytest.raises(KeyboardInterrupt):
        mf.fit(blocks)
    assert mf.history_.stopped == "interrupted"
    assert len(mf.history_) == 10
    monkeypatch.undo()
    assert math.isfinite(exact_mse(mf, blocks))


@pytest.fixture
def overfitting(tmp_path: Path) -> Blocks:
    """Return blocks of few ratings with much noise, on which training without reg gets worse after some epochs."""
    rng = np.random.default_rng(3)
    users, items = rng.integers(300, size=6000), rng.integers(200, size=6000)
    values = 3 + 0.5 * np.sin(users) + 0.5 * np.cos(items) + rng.normal(0, 1, 6000)
    source = write(tmp_path / "r.parquet", {"user_id": users, "item_id": items, "rating": values.astype(np.float32)})
    return block_ratings(source, tmp_path / "b", holdout=0.2, grid=(2, 2))


OVERFITTING = {"reg": 0.0, "bias_reg": 0.0, "step_size": 0.05, "tol": 0.0, "epochs": 60}


@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"checkpoint": True, "checkpoint_every": 4}])
def test_fit__stops_early_and_keeps_the_best_epoch(
    overfitting: Blocks, options: dict[str, Any], tmp_path: Path
) -> None:
    if options:
        options = {**options, "checkpoint": tmp_path / "c"}
    mf = MatrixFactorization(8, **OVERFITTING, patience=3).fit(overfitting, **options)
    history = mf.history_
    errors = [epoch.holdout_error for epoch in history]
    best = int(np.argmin(errors)) + 1
    assert (history.stopped, history.best_epoch, len(history)) == ("early", best, best + 3)
    assert f"the model is that of epoch {best}" in history.summary()
    until = MatrixFactorization(8, **{**OVERFITTING, "epochs": best}, patience=0).fit(overfitting)
    assert np.array_equal(mf.user_factors_, until.user_factors_)
    assert np.array_equal(mf.item_factors_, until.item_factors_)
    assert history.holdout_rmse == until.history_.holdout_rmse


def test_fit__keeps_the_best_epoch_also_at_the_last_one(overfitting: Blocks) -> None:
    stopped = MatrixFactorization(8, **OVERFITTING, patience=3).fit(overfitting).history_
    epochs = len(stopped) - 1
    mf = MatrixFactorization(8, **{**OVERFITTING, "epochs": epochs}, patience=3).fit(overfitting)
    assert (mf.history_.stopped, mf.history_.best_epoch) == ("epochs", stopped.best_epoch)
    last = MatrixFactorization(8, **{**OVERFITTING, "epochs": epochs}, patience=0).fit(overfitting)
    assert last.history_.best_epoch is None
    assert mf.history_.holdout_rmse < last.history_.holdout_rmse


def test_fit__allowed_more_epochs_is_hardly_worse(overfitting: Blocks) -> None:
    """The best epoch of a long line has large steps; a few more, with steps that go to zero, make up for it."""
    errors = {}
    for epochs in (15, 60):
        history = MatrixFactorization(8, reg=0.02, epochs=epochs).fit(overfitting).history_
        errors[epochs] = history.holdout_rmse
    assert history.stopped == "early"
    assert history.cooled == 5
    assert "and 5 epochs with steps to zero" in history.summary()
    best = min(epoch.holdout_error or math.inf for epoch in history)
    assert errors[60] < 0.995 * best
    assert errors[60] < 1.005 * errors[15]


def test_fit__trains_no_epochs_beyond_those_that_were_asked_for(overfitting: Blocks) -> None:
    for options in ({"patience": 1000}, {"patience": 1, "max_seconds": 0.0}):
        history = MatrixFactorization(8, reg=0.0, epochs=30, **options).fit(overfitting).history_  # type: ignore[arg-type]
        assert history.cooled == 0


def test_fit__stops_when_the_time_is_over(overfitting: Blocks, tmp_path: Path) -> None:
    mf = MatrixFactorization(8, epochs=4, max_seconds=0.0)
    options = {"checkpoint": tmp_path / "c", "resume": True}
    history = mf.fit(overfitting, **options).history_
    assert (history.stopped, len(history)) == ("time", 1)
    mf.max_seconds = None  # a training that goes on may have more of it
    history = mf.fit(overfitting, **options).history_
    assert (history.stopped, len(history)) == ("epochs", 4)
