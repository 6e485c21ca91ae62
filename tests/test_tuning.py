"""Choosing hyperparameters: the planted ones win, nothing is trained twice, and defaults that are best are named."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from distributed import Client

import distmf
from distmf import MatrixFactorization, block_ratings, tune
from distmf.cli import main
from distmf.errors import DivergedError, MemoryBudgetError, RatingsError, StoreError
from distmf.trainer import Trainer
from distmf.tuning import DEFAULTS, Tuning
from tests.clusters import at_epoch, cluster, start, wait_for
from tests.helpers import random_ratings, write

FEW: dict[str, Any] = {"ranks": [2, 12], "regs": [0.02, "auto"], "epochs": [4, 6]}
FLAGS = "--rank", "2,12", "--reg", "0.02,auto", "--epochs", "4,6"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> distmf.Blocks:
    """Return blocks of ratings of rank 4, a tenth of them held out."""
    folder = tmp_path_factory.mktemp("planted")
    distmf.datasets.planted_ratings(folder / "r", 60_000, 1000, 300, rank=4, noise=0.8)
    return block_ratings(folder / "r", folder / "b", grid=(2, 2), holdout=0.1)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> distmf.Blocks:
    """Return blocks of a few ratings, a fifth of them held out, beside r.parquet."""
    folder = tmp_path_factory.mktemp("few")
    source = write(folder / "r.parquet", random_ratings(4000, 200, 80))
    return block_ratings(source, folder / "b", grid=(2, 2), holdout=0.2)


def found(tuning: Tuning) -> list[Any]:
    """Return what must not depend on where and when it was tuned."""
    return [(each.settings, *[result[:-1] for result in each.results]) for each in tuning.candidates]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Killed(BaseException):
    """As if the process ended here."""


def kill() -> None:
    raise Killed


def test_tune__finds_the_planted_rank_and_a_reg_near_the_automatic_one(planted: distmf.Blocks) -> None:
    tuning = tune(planted, ranks=[1, 4], regs=[0.001, "auto", 1.0], epochs=[15])
    assert tuning.settings == {"rank": 4, "reg": "auto", "epochs": 15, "seed": 0}
    assert tuning.best.holdout_error is not None
    assert tuning.defaults.holdout_error is not None
    assert 0.8 < tuning.best.holdout_error < 0.995 * tuning.defaults.holdout_error
    share = 100 * (1 - tuning.best.holdout_error / tuning.defaults.holdout_error)
    assert f"Best is rank 4, reg auto, 15 epochs: holdout RMSE {tuning.best.holdout_error:.4f}, {share:.2f} % less" in (
        tuning.verdict()
    )
    assert len(tuning.candidates) == 7
    assert sum(not each.is_whole for each in tuning.candidates) == 4
    assert str(tuning).splitlines()[-1] == tuning.verdict()


def test_tune__tells_the_error_of_the_very_model_that_the_settings_give(blocks: distmf.Blocks) -> None:
    tuning = tune(blocks, **FEW, seed=3)
    for each in tuning.candidates:
        if each.is_whole:
            history = MatrixFactorization(**each.settings._asdict(), seed=3).fit(blocks).history_
            assert each.holdout_error == history.holdout_rmse  # though it paused half way
            assert each.done == len(history)
    assert [each.holdout_error for each in tuning.candidates if each.is_whole] == sorted(
        each.holdout_error for each in tuning.candidates if each.is_whole and each.holdout_error
    )


def test_tune__trains_the_defaults_to_the_end_and_the_best_third_of_the_others(blocks: distmf.Blocks) -> None:
    tuning = tune(blocks, **FEW)
    assert tuning.defaults.is_whole
    assert tuning.defaults.results[-1].until == DEFAULTS.epochs
    for epochs in FEW["epochs"]:
        rivals = [each for each in tuning.candidates if each.settings.epochs == epochs]
        assert len(rivals) == 4
        whole = [each for each in rivals if each.is_whole]
        assert len(whole) == 2
        assert max(each.error(0) for each in whole) <= min(each.error(0) for each in rivals if not each.is_whole)


def test_tune__says_so_if_the_defaults_are_best(planted: distmf.Blocks) -> None:
    tuning = tune(planted, ranks=[1], regs=[2.0], epochs=[4])
    assert tuning.best is tuning.defaults
    assert tuning.verdict() == (
        f"The defaults, rank 64, reg auto, 15 epochs, are best: holdout RMSE {tuning.best.holdout_error:.4f}."
    )


def test_tune__takes_the_defaults_among_the_candidates_for_one_candidate(blocks: distmf.Blocks) -> None:
    tuning = tune(blocks, ranks=[64], regs=["auto"], epochs=[15])
    assert [each.settings for each in tuning.candidates] == [DEFAULTS]


@pytest.mark.parametrize("n_trained", range(1, 9, 2))
def test_tune__goes_on_after_it_was_killed_and_trains_nothing_twice(
    n_trained: int, blocks: distmf.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found(tune(blocks, **FEW))
    trained: list[Any] = []
    original = Trainer.run

    def run(self: Trainer) -> Any:
        assert self.checkpoint is not None
        trained.append((self.checkpoint.settings, self.rules.epochs))
        if len(trained) == n_trained:
            with at_epoch(2, kill):
                return original(self)
        return original(self)

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(Killed):
        tune(blocks, **FEW, checkpoint=tmp_path / "t")
    tuning = tune(blocks, **FEW, checkpoint=tmp_path / "t")
    assert found(tuning) == expected
    assert trained[n_trained - 1] == trained[n_trained]  # it goes on with the one that was under way
    assert len(trained) == 1 + 1 + 2 * (4 + 2)
    assert found(tune(blocks, **FEW, checkpoint=tmp_path / "t")) == expected
    assert len(trained) == 14


def test_tune__takes_other_losses(blocks: distmf.Blocks, tmp_path: Path) -> None:
    few: dict[str, Any] = {"ranks": [2, 12], "regs": None, "epochs": [4]}
    fixed: dict[str, Any] = {"loss": "absolute", "bounds": (0.0, 6.0), "bias_reg": (0.02, 0.03)}
    tuning = tune(blocks, **few, **fixed, checkpoint=tmp_path / "t")
    assert tuning.measure == "MAE"
    assert "holdout MAE" in str(tuning)
    assert {name: tuning.settings[name] for name in fixed} == fixed
    mf = MatrixFactorization(**tuning.settings).fit(blocks)
    assert mf.history_.holdout_error == tuning.best.holdout_error
    with pytest.raises(StoreError, match="is another tuning, with loss 'absolute' and not 'squared'"):
        tune(blocks, **few, checkpoint=tmp_path / "t")
    flags = "--rank", "2,12", "--epochs", "4", "--loss", "absolute", "--bounds", "0", "6", "--bias-reg", "0.02,0.03"
    result = json.loads(run("tune", blocks.path, *flags, "--checkpoint", tmp_path / "t", "--json", "-q").stdout)
    assert (result["measure"], result["holdout_error"]) == ("MAE", tuning.best.holdout_error)
    assert "--loss absolute --bounds 0.0 6.0 --bias-reg 0.02,0.03" in result["command"]
    inspected = json.loads(run("inspect", tmp_path / "t", "--json").stdout)
    assert inspected["kind"] == "tuning"
    assert inspected["holdout_error"] == tuning.best.holdout_error
    assert inspected["candidates"] == len(tuning.candidates)


def test_tune__keeps_the_checkpoint_of_the_best(blocks: distmf.Blocks, tmp_path: Path) -> None:
    tuning = tune(blocks, **FEW, checkpoint=tmp_path / "t")
    assert tuning.checkpoint is not None
    assert [str(path) for path in (tmp_path / "t" / "candidates").iterdir()] == [tuning.checkpoint]
    with at_epoch(1, kill) as done:  # no epoch is done again
        mf = MatrixFactorization(**tuning.settings).fit(blocks, checkpoint=tuning.checkpoint, resume=True)
    assert not done
    assert mf.history_.holdout_rmse == tuning.best.holdout_error


def test_tune__leaves_nothing_without_a_folder(blocks: distmf.Blocks) -> None:
    before = sorted(path.name for path in Path(blocks.path).parent.iterdir())
    assert tune(blocks, **FEW).checkpoint is None
    assert sorted(path.name for path in Path(blocks.path).parent.iterdir()) == before


def test_tune__on_a_cluster_is_the_same(blocks: distmf.Blocks, tmp_path: Path) -> None:
    with cluster(2, tmp_path) as client:
        assert isinstance(client, Client)
        assert found(tune(blocks, **FEW, client=client)) == found(tune(blocks, **FEW))


def test_tune__of_raw_ratings_holds_a_tenth_out(blocks: distmf.Blocks, tmp_path: Path) -> None:
    source = Path(blocks.path).parent / "r.parquet"
    held_out = block_ratings(source, tmp_path / "b", holdout=0.1)
    assert found(tune(source, **FEW)) == found(tune(held_out, **FEW))
    assert found(tune(source, **FEW, holdout=0.2, grid=(2, 2))) == found(tune(blocks, **FEW))


def diverge(monkeypatch: pytest.MonkeyPatch, *ranks: int) -> None:
    """Let trainings at these ranks diverge."""
    original = Trainer.run

    def run(self: Trainer) -> Any:
        if self.training.rank in ranks:
            raise DivergedError("the cost grows")
        return original(self)

    monkeypatch.setattr(Trainer, "run", run)


def test_tune__counts_candidates_that_diverge_as_the_worst(
    blocks: distmf.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, 12)
    tuning = tune(blocks, **FEW, checkpoint=tmp_path / "t")
    assert found(tune(blocks, **FEW, checkpoint=tmp_path / "t")) == found(tuning)
    last = tuning.candidates[-4:]
    assert {(each.settings.rank, each.holdout_error, each.is_whole) for each in last} == {(12, None, False)}
    assert str(tuning).count("diverged") == 4
    assert tuning.best.error() < math.inf


def test_tune__says_so_if_the_defaults_diverge_or_all(blocks: distmf.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, 64, 12)
    assert "The defaults, rank 64, reg auto, 15 epochs, diverge." in tune(blocks, **FEW).verdict()
    with pytest.raises(DivergedError, match="all candidates diverge"):
        tune(blocks, ranks=[12])


def test_tune__refuses_what_it_cannot_tune(blocks: distmf.Blocks, tmp_path: Path) -> None:
    source = Path(blocks.path).parent / "r.parquet"
    whole = block_ratings(source, tmp_path / "b", rank=8)
    for ratings, options in (whole, {}), (source, {"holdout": 0.0}):
        with pytest.raises(RatingsError, match=r"nothing is held out .* with holdout=0.1 \(--holdout 0.1\)"):
            tune(ratings, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ranks is \[\]; it is a list of values to try"):
        tune(blocks, ranks=[])
    with pytest.raises(ValueError, match="rank is 0; it is a whole number, from 1 to"):
        tune(blocks, ranks=[4, 0])
    with pytest.raises(ValueError, match="posterior_samples: not for tuning, which takes of hyperparameters loss"):
        tune(blocks, posterior_samples=3)
    with pytest.raises(ValueError, match="loss is 'cubic'"):
        tune(blocks, loss="cubic")
    with pytest.raises(ValueError, match="reg is -1"):
        tune(blocks, regs=[-1])
    with pytest.raises(ValueError, match="holdout can only be given with raw ratings"):
        tune(blocks, holdout=0.1)
    with pytest.raises(MemoryBudgetError):
        tune(blocks, memory="1 MiB")


def test_tune__refuses_a_folder_of_something_else(blocks: distmf.Blocks, tmp_path: Path) -> None:
    tune(blocks, ranks=[2], epochs=[2], checkpoint=tmp_path / "t")
    with pytest.raises(StoreError, match="is another tuning, with seed 0 and not 1; use what it was begun"):
        tune(blocks, ranks=[2], epochs=[2], checkpoint=tmp_path / "t", seed=1)
    with pytest.raises(StoreError, match=r"is another tuning, with rank \[2\] and not \[3\]"):
        tune(blocks, ranks=[3], epochs=[2], checkpoint=tmp_path / "t")
    with pytest.raises(StoreError, match="one is in the other"):
        tune(blocks, checkpoint=Path(blocks.path) / "t")
    write(tmp_path / "r.parquet", random_ratings(100, 10, 20))
    with pytest.raises(StoreError, match="exists and is not only distmf tuning"):
        tune(blocks, checkpoint=tmp_path)


def test_tune__interrupted_says_what_is_best_so_far(blocks: distmf.Blocks, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    class Later(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "rung 2" in record.getMessage():
                interrupt()

    with at_epoch(1, interrupt), pytest.raises(KeyboardInterrupt, match="^no candidate is trained to the end$"):
        tune(blocks, **FEW)
    handler, logger = Later(), logging.getLogger("distmf.halving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(
            KeyboardInterrupt, match=r"^best of 2 so far is rank .*: holdout RMSE 0\.\d{4}; the same .*/t$"
        ):
            tune(blocks, **FEW, checkpoint=tmp_path / "t")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_command__prints_a_table_a_verdict_and_how_to_train(blocks: distmf.Blocks, tmp_path: Path) -> None:
    result = run("tune", blocks.path, *FLAGS, "--seed", 3, "--checkpoint", tmp_path / "t")
    assert result.exit_code == 0, result.output
    tuning = tune(blocks, **FEW, seed=3, checkpoint=tmp_path / "t")
    *_, verdict, command = result.stdout.splitlines()
    assert verdict == tuning.verdict()
    assert result.stdout.splitlines()[0].split() == ["rank", "reg", "epochs", "holdout", "RMSE", "seconds"]
    assert len(result.stdout.splitlines()) == 1 + 9 + 3
    for text in "the defaults: rank 64", "rung 1 of 2, candidate 4 of 4: rank 2, reg auto, 4 epochs: holdout RMSE":
        assert text in result.stderr
    assert "\nepoch " not in result.stderr  # for these trainings are short
    words = command.split()
    assert words[:4] == ["distmf", "train", blocks.path, "model"]
    trained = run(*words[1:3], tmp_path / "m", *words[4:], "--json", "-q")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["holdout_rmse"] == tuning.best.holdout_error


def test_command__of_raw_ratings_trains_on_the_same_holdout(blocks: distmf.Blocks, tmp_path: Path) -> None:
    source = Path(blocks.path).parent / "r.parquet"
    found = json.loads(run("tune", source, *FLAGS, "--grid", "2x2", "--json", "-q").stdout)
    words = found["command"].split()
    assert words[-4:] == ["--holdout", "0.1", "--grid", "2x2"]
    trained = run(*words[1:3], tmp_path / "m", *words[4:], "--json", "-q")
    assert json.loads(trained.stdout)["holdout_rmse"] == found["holdout_error"]


def test_command__prints_json(blocks: distmf.Blocks) -> None:
    result = run("tune", blocks.path, *FLAGS, "--json", "-q")
    assert result.stderr == ""
    found, tuning = json.loads(result.stdout), tune(blocks, **FEW)
    assert found["best"] == tuning.settings
    assert found["holdout_error"] == tuning.best.holdout_error
    assert found["defaults_holdout_error"] == tuning.defaults.holdout_error
    assert found["defaults_are_best"] == (tuning.best is tuning.defaults)
    assert found["auto_reg"] == tuning.auto_reg
    assert [each["holdout_error"] for each in found["candidates"]] == [each.holdout_error for each in tuning.candidates]
    assert {each["rung"] for each in found["candidates"]} == {1, 2}
    assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rank", "8,,16"], 2, "'' is not a valid integer"),
        (["--rank", "0"], 2, "0 is not in the range 1<=x<=512"),
        (["--reg", "auto,much"], 2, "'much' is not a valid FLOAT|auto"),
        (["--epochs", "0"], 2, "0 is not in the range"),
        (["--checkpoint", ""], 2, "--checkpoint is ''"),
        (["--holdout", "0.1"], 2, "--holdout: only for raw ratings"),
        (["--threads", "2", "--workers", "2"], 2, "exclude one another"),
        (["--memory", "1 MiB"], 1, "distmf: "),
    ],
)
def test_command__refuses(arguments: list[str], code: int, message: str, blocks: distmf.Blocks) -> None:
    result = run("tune", blocks.path, *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_command__that_is_interrupted_says_what_is_best_and_goes_on(blocks: distmf.Blocks, tmp_path: Path) -> None:
    command = "tune", blocks.path, *FLAGS, "--checkpoint", tmp_path / "t"
    with start(*command) as process:
        wait_for(process, "rung 1 of 2, candidate 2")
        process.terminate()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert "distmf: interrupted; best of 1 so far is rank 64, reg auto, 15 epochs: holdout RMSE " in errors
    assert json.loads(run(*command, "--json", "-q").stdout)["best"] == tune(blocks, **FEW).settings
