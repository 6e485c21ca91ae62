"""The commands: what they print, write and refuse, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import distmf
from distmf.cli import main
from tests.clusters import start, wait_for
from tests.helpers import files, random_ratings, write

TABLE = random_ratings(4000, 200, 80)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def as_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ratings, their blocks, and a model."""
    path = tmp_path_factory.mktemp("cli")
    write(path / "r.parquet", TABLE)
    assert run("block", path / "r.parquet", path / "blocks", "--holdout", 0.1, "--rank", 8, "-q").exit_code == 0
    assert run("train", path / "blocks", path / "model", "--rank", 8, "--epochs", 5, "-q").exit_code == 0
    return path


def test_block__prints_what_inspect_prints(folder: Path, tmp_path: Path) -> None:
    arguments = folder / "r.parquet", tmp_path / "b", "--holdout", 0.2, "--grid", "2x3", "--seed", 4
    found = as_json(run("block", *arguments, "--memory-per-task", "64 MiB", "--duplicates", "error", "--json"))
    assert found == as_json(run("inspect", tmp_path / "b", "--json"))
    assert found["kind"] == "blocks"
    assert found["grid"] == [2, 3]
    assert (found["n_users"], found["n_items"]) == (200, 80)
    assert found["n_ratings"] + found["n_holdout"] == 4000
    assert (
        found["ratings_per_block"]["least"]
        <= found["ratings_per_block"]["median"]
        <= found["ratings_per_block"]["most"]
    )
    assert 2.25 <= found["bytes_per_rating"] < 4  # a byte for column and code each, and one for the row of a group
    assert (found["holdout"], found["duplicates"], found["seed"], found["n_duplicates"]) == (0.2, "error", 4, 0)
    text = run("inspect", tmp_path / "b").stdout
    for word in ("200 (int64)", "2 × 3 blocks", "at least", "in the median", "at most", "bytes a rating", "held out"):
        assert word in text


def test_train__from_blocks_and_from_raw_ratings_is_the_same(folder: Path, tmp_path: Path) -> None:
    options = "--rank", 8, "--epochs", 5, "--json"
    found = as_json(run("train", folder / "r.parquet", tmp_path / "m", "--holdout", 0.1, *options))
    assert files(tmp_path / "m") == files(folder / "model")
    assert found["epochs"] == 5
    assert found["stopped"] == "epochs"
    assert 0 < found["train_rmse"] < found["holdout_rmse"] < 1.5
    assert found["ratings_per_second"] > 0
    assert found["seconds"] > 0
    inspected = as_json(run("inspect", tmp_path / "m", "--json"))
    assert inspected["kind"] == "model"
    assert inspected["holdout_rmse"] == found["holdout_rmse"]
    assert inspected["hyperparameters"]["rank"] == 8
    without = as_json(run("train", folder / "r.parquet", tmp_path / "m", *options))
    assert without["holdout_rmse"] is None


def test_inspect__reads_no_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmf.blocks.Blocks.ids", None)  # there may be more of them than memory holds
    assert "200 (int64)" in run("inspect", folder / "blocks").stdout


def test_inspect__says_where_a_checkpoint_is(folder: Path, tmp_path: Path) -> None:
    settings = "--epochs", 5, "--rank", 8, "--checkpoint", tmp_path / "c"
    trained = as_json(run("train", folder / "blocks", tmp_path / "m", *settings, "--json"))
    found = as_json(run("inspect", tmp_path / "c", "--json"))
    assert (found["kind"], found["epochs"], found["states"], found["driver"]) == ("checkpoint", 5, [4, 5], None)
    assert found["holdout_error"] == pytest.approx(trained["holdout_rmse"], abs=0.05)
    assert (found["measure"], found["settings"]["rank"]) == ("RMSE", 8)
    text = run("inspect", tmp_path / "c").stdout
    for words in ("5 of 5 done; train RMSE", "the states after epoch 4 and 5", "none; distmf train …", "rank"):
        assert words in text


def test_train__passes_every_option_on(folder: Path, tmp_path: Path) -> None:
    options = {"rank": 3, "reg": 0.2, "bias_reg": 0.3, "epochs": 4, "step_size": 0.01, "step_decay": 0.9, "tol": 0.5}
    options |= {"target_cost": 0.125, "patience": 3, "max_seconds": 60.0, "posterior_samples": 0, "seed": 9}
    options |= {"loss": "huber", "l1_reg": 0.001}
    flags = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]
    flags += ["--bounds", 0, 6, "--nonnegative"]
    assert run("train", folder / "blocks", tmp_path / "m", *flags).exit_code == 0
    options |= {"bounds": (0.0, 6.0), "nonnegative": True}
    assert distmf.load(tmp_path / "m").hyperparameters == options


def test_train__shows_progress_unless_quiet(folder: Path, tmp_path: Path) -> None:
    loud = run("train", folder / "blocks", tmp_path / "m", "--epochs", 3, "--tol", 0)
    assert loud.stderr.count("\nepoch ") + loud.stderr.startswith("epoch ") == 3
    assert loud.stdout.startswith("stopped after 3 epochs: all epochs are done; train RMSE ")
    quiet = run("train", folder / "blocks", tmp_path / "m", "--epochs", 3, "-q")
    assert quiet.stderr == ""
    assert "saved in" in quiet.stdout


def test_evaluate(folder: Path) -> None:
    found = as_json(run("evaluate", folder / "model", folder / "r.parquet", "--json"))
    assert found == dict(distmf.evaluate(distmf.load(folder / "model"), folder / "r.parquet"))
    assert f"RMSE {found['rmse']:.4f}" in run("evaluate", folder / "model", folder / "r.parquet").stdout


def test_predict(folder: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.parquet", {"u": [3, 999, 4], "item_id": [5, 6, 7]})
    found = as_json(run("predict", folder / "model", pairs, tmp_path / "out.parquet", "--user", "u", "--json"))
    assert (found["n"], found["n_unseen"]) == (3, 1)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["u", "item_id", "prediction", "is_unseen"]
    assert table["u"].to_pylist() == [3, 999, 4]
    assert table["is_unseen"].to_pylist() == [False, True, False]
    expected = distmf.load(folder / "model").predict([3, 999, 4], [5, 6, 7])
    np.testing.assert_array_equal(table["prediction"].to_numpy(), expected)


def test_predict__of_text_as_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("user,item\n3,5\n999,6\n")
    assert run("predict", folder / "model", tmp_path / "p.csv", tmp_path / "out.csv").exit_code == 0
    table = pyarrow.csv.read_csv(tmp_path / "out.csv")
    assert table.drop(["prediction"]).to_pydict() == {"user": [3, 999], "item": [5, 6], "is_unseen": [False, True]}
    expected = distmf.load(folder / "model").predict([3, 999], [5, 6])
    np.testing.assert_allclose(table["prediction"].to_numpy(), expected, rtol=1e-6)


def test_predict_and_recommend__say_how_sure_they_are_where_there_are_draws(folder: Path, tmp_path: Path) -> None:
    pairs, out = write(tmp_path / "p.parquet", {"user_id": [3, 999], "item_id": [5, 6]}), tmp_path / "o.parquet"
    for command in (["predict", folder / "model", pairs, out, "--std"], ["recommend", folder / "model", out]):
        refused = run(*command, *(["--bound", "optimistic"] if command[0] == "recommend" else []))
        assert refused.exit_code == 1
        assert "train it with posterior_samples" in refused.stderr
        assert not out.exists()
    mf = distmf.MatrixFactorization(4, posterior_samples=2, epochs=4).fit(folder / "blocks")
    mf.save(tmp_path / "m")
    assert run("predict", tmp_path / "m", pairs, out, "--std").exit_code == 0
    predicted, stds = mf.predict([3, 999], [5, 6], return_std=True)
    np.testing.assert_array_equal(pq.read_table(out)["prediction"].to_numpy(), predicted)
    np.testing.assert_array_equal(pq.read_table(out)["std"].to_numpy(), stds)
    assert run("recommend", tmp_path / "m", tmp_path / "best", "--bound", "pessimistic", "-n", 3).exit_code == 0
    user = mf.user_ids_[0]
    best = mf.recommend(user, 3, bound="pessimistic")
    rows = pq.read_table(tmp_path / "best", filters=[("user_id", "==", user)])
    assert rows["item_id"].to_pylist() == best.item_ids.tolist()


def test_evaluate__judges_lists(folder: Path) -> None:
    mf, source = distmf.load(folder / "model"), folder / "r.parquet"
    found = as_json(run("evaluate", folder / "model", source, "--ranking", 5, "--relevant", 4, "--json"))
    expected = {**distmf.evaluate(mf, source), **distmf.evaluate_ranking(mf, source, 5, relevant=4)}
    assert found == expected
    assert "over the 5 best for " in run("evaluate", folder / "model", source, "--ranking", 5).stdout
    assert run("evaluate", folder / "model", source, "--relevant", 4).exit_code == 2


def test_recommend(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    found = as_json(run("recommend", folder / "model", out, "-n", 3, "--json"))
    assert found == {"n": 600, "path": str(out)}
    users = write(tmp_path / "u.parquet", {"who": [7, 3]})
    arguments = "recommend", folder / "model", out, "--users", users, "--user", "who", "-n", 4
    assert run(*arguments, "--exclude", folder / "blocks").exit_code == 0
    table = pq.read_table(out).to_pydict()
    best = distmf.load(folder / "model").recommend([3, 7], n=4, exclude=folder / "blocks")
    assert table["user_id"] == [3] * 4 + [7] * 4
    assert table["item_id"] == best.item_ids.reshape(-1).tolist()
    assert table["rank"] == [1, 2, 3, 4] * 2
    assert table["score"] == best.scores.reshape(-1).tolist()


@pytest.mark.parametrize("text", ["3\n7\n", "userId\n3\n7\n", "userId,name\n3,Ada\n7,Alan\n"])
def test_recommend__takes_ids_from_text(text: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(text)
    (tmp_path / "items.csv").write_text("5\n6\n")
    files = "--users", tmp_path / "users.csv", "--among", tmp_path / "items.csv"
    assert run("recommend", folder / "model", tmp_path / "out", *files, "-n", 1).exit_code == 0
    best = distmf.load(folder / "model").recommend([3, 7], 1, among=[5, 6]).item_ids[:, 0].tolist()
    found = pq.read_table(tmp_path / "out").to_pydict()
    assert (found["user_id"], found["item_id"]) == ([3, 7], best)


def test_recommend__leaves_out_places_for_which_no_item_is_left(folder: Path, tmp_path: Path) -> None:
    assert (
        run("recommend", folder / "model", tmp_path / "o.parquet", "-n", 80, "--exclude", folder / "blocks").exit_code
        == 0
    )
    table = pq.read_table(tmp_path / "o.parquet")
    assert len(table) == 200 * 80 - 4000
    assert np.isfinite(table["score"].to_numpy()).all()


def test_demo__ends_near_the_noise_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = as_json(run("demo", "--json", "-q"))
    assert found["ratio"] < 1.02
    assert found["test_rmse"] == pytest.approx(found["ratio"] * found["noise_floor"])


def test_demo__shows_what_it_does() -> None:
    result = run("demo", "--seed", 1, "--threads", 1)
    for word in (
        "3,000,000 ratings",
        "distmf block",
        "distmf train",
        "distmf evaluate",
        "distmf recommend",
        "best possible",
    ):
        assert word in result.stdout
    assert result.stderr.count("train RMSE") == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere", "m"], "nowhere: no such file"),
        (["train", "{folder}/r.parquet", "{folder}"], "exists and is not only distmf model"),
        (["train", "{folder}/r.parquet", "m", "--user", "usr"], "no column 'usr'"),
        (["train", "{folder}/r.parquet", "m", "--memory-per-task", "1 KiB"], "memory_per_task is 1,024"),
        (["train", "{folder}/r.parquet", "m", "--grid", "500x2"], "grid is 500 × 2"),
        (["block", "{folder}/model", "b"], "ratings are needed, but this is of the kind 'distmf model'"),
        (["train", "{folder}/r.parquet", "m", "--user", "item_id"], "need one each"),
        (["train", "~nosuchuser/r", "m"], "~nosuchuser/r: "),
        (["train", "foo://bucket/r", "m"], "foo://bucket/r: "),
        (["train", "{folder}/r.parquet", "foo://m"], "foo://m: "),
        (["train", "{folder}/r.parquet", "{folder}/r.parquet/model"], "is not a folder"),
        (["train", "{folder}/blocks", "m", "--checkpoint", "m"], "one is in the other"),
        (["train", "{folder}/blocks", "m", "--checkpoint", "m/c"], "one is in the other"),
        (["train", "{folder}/blocks", "c/m", "--checkpoint", "c"], "one is in the other"),
        (["train", "{folder}/blocks", "{folder}/blocks/m"], "one is in the other"),
        (["evaluate", "{folder}/blocks", "{folder}/r.parquet"], "no distmf model here, but distmf blocks"),
        (["predict", "{folder}/model", "{folder}/none.parquet", "o"], "no such file"),
        (["predict", "{folder}/model", "{folder}/r.parquet", "{folder}"], "is a folder; choose the name of a file"),
        (["recommend", "{folder}/none", "o"], "model.json is missing"),
        (["recommend", "{folder}/model", "o", "--exclude", "{folder}/none"], "no such file"),
        (["inspect", "{folder}"], "there are no blocks, checkpoint, model or tuning in it"),
        (["inspect", "{folder}/none"], "it does not exist"),
    ],
)
def test_problems__end_with_1_and_a_message_without_a_traceback(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*(argument.format(folder=folder) for argument in arguments))
    assert result.exit_code == 1
    assert result.stderr.startswith("distmf: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'RATINGS_OR_BLOCKS'"),
        (["train", "a", "m", "--rank", "0"], "'--rank': 0 is not in the range 1<=x<=512"),
        (["train", "a", "m", "--holdout", "1"], "'--holdout': 1.0 is not in the range"),
        (["train", "a", "m", "--step-size", "fast"], "'--step-size': 'fast'"),
        (["train", "a", "m", "--step-size", "0"], "'--step-size': 0.0 is not in the range x>0"),
        (["train", "a", "m", "--grid", "4"], "'4' is not a grid; write for example 8x8"),
        (["train", "a", "m", "--memory-per-task", "much"], "'much' is not an amount of memory"),
        (["train", "{folder}/blocks", "m", "--holdout", "0.2"], "--holdout: only for raw ratings"),
        (["train", "{folder}/blocks", "m", "--resume"], "--resume needs --checkpoint"),
        (["train", "{folder}/blocks", "m", "--checkpoint-every", "2"], "--checkpoint-every needs --checkpoint"),
        (["train", "{folder}/blocks", "m", "--checkpoint", ""], "--checkpoint is ''"),
        (["train", "a", "m", "--reg", "nan"], "'--reg': nan is not a finite number"),
        (["train", "a", "m", "--tol", "inf"], "'--tol': inf is not a finite number"),
        (["train", "a", "m", "--holdout", "nan"], "'--holdout': nan is not a finite number"),
        (["train", "a", "m", "--step-size", "nan"], "'--step-size': nan is not a finite number"),
        (["train", "a", "m", "--seed", "99999999999999999999"], "'--seed': 99999999999999999999 is not in the range"),
        (["train", "a", "m", "--epochs", "99999999999"], "'--epochs': 99999999999 is not in the range"),
        (["train", "a", "m", "--epochs", "0"], "'--epochs': 0 is not in the range"),
        (["recommend", "a", "o", "-n", "0"], "'-n': 0 is not in the range"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_usage__ends_with_2(arguments: list[str], message: str, folder: Path) -> None:
    result = run(*(argument.format(folder=folder) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr


def test_help__says_what_every_option_is() -> None:
    for name, command in main.commands.items():
        text = run(name, "--help").stdout
        assert command.help is not None
        for parameter in command.params:
            if "--json" in parameter.opts or parameter.param_type_name == "option":
                assert parameter.help, (name, parameter.opts)  # type: ignore[attr-defined]
                assert parameter.opts[0] in text
    assert "distmf demo" in run("--help").stdout
    assert distmf.__version__ in run("--version").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt__while_training_saves_the_model_and_leaves_no_temporary_files(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    with start(
        "train", folder / "r.parquet", tmp_path / "m", "--epochs", 1_000_000, "--tol", 0, "--patience", 0, "--json"
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch  ") and "epoch      20/" in line:
                break
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    assert "distmf: interrupted; the model after epoch " in errors.splitlines()[-1]
    found = as_json(run("inspect", tmp_path / "m", "--json"))
    assert found["stopped"] == "interrupted"
    assert found["epochs"] >= 15  # those that were logged, but for a generation under way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("epoch", [None, 20])
def test_interrupt__of_a_terminal_reaches_its_workers_as_well(
    epoch: int | None, folder: Path, tmp_path: Path, no_leaks: Path
) -> None:
    training = [
        "train",
        folder / "blocks",
        tmp_path / "m",
        "--epochs",
        1_000_000,
        "--tol",
        0,
        "--patience",
        0,
        "--workers",
        2,
    ]
    with start(*training, start_new_session=True) as process:
        assert process.stderr is not None
        if epoch is None:
            while not list(no_leaks.rglob("distmf-workers*")):
                time.sleep(0.01)
            time.sleep(1.0)  # the workers are starting
        else:
            wait_for(process, f"epoch      {epoch}/")
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    message = "nothing was written" if epoch is None else "the model after epoch "
    others = [line for line in errors.splitlines() if not line.startswith(("epoch", "dashboard: "))]
    assert others == [errors.splitlines()[-1]]
    assert f"distmf: interrupted; {message}" in errors


def test_interrupt__while_blocking_leaves_nothing(tmp_path: Path, no_leaks: Path) -> None:
    n = 3_000_000
    rng = np.random.default_rng(0)
    ids = pa.array(rng.integers(0, 2**40, n))
    source = write(
        tmp_path / "r.parquet", {"user_id": ids, "item_id": ids, "rating": rng.random(n)}, row_group_size=50_000
    )
    with start("train", source, tmp_path / "m", "--threads", 1) as process:
        deadline = time.monotonic() + 60
        while not list(no_leaks.rglob("*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "distmf: interrupted; nothing was written" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_output__to_a_closed_pipe_is_no_traceback(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "distmf", "inspect", str(folder / "model")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr


def test_output__to_a_terminal_that_knows_only_ascii(folder: Path) -> None:
    command = [sys.executable, "-m", "distmf", "inspect", str(folder / "blocks")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "4 ? 4 blocks" in done.stdout


def test_interrupt__while_compiling_ends_it(folder: Path, tmp_path: Path) -> None:
    # The time runs from the end of the imports, however long they take.
    code = """if True:
        import os, signal, sys, threading
        from distmf.cli import main
        threading.Timer(float(sys.argv[1]), os.kill, [os.getpid(), signal.SIGINT]).start()
        main(sys.argv[2:])"""
    training = [
        "train",
        folder / "blocks",
        tmp_path / "m",
        "--rank",
        "512",
        "--epochs",
        "1000000",
        "--tol",
        "0",
        "--patience",
        "0",
    ]
    env = {**os.environ, "XDG_CACHE_HOME": "/dev/null"}  # where no machine code is kept
    for delay in ("0.1", "0.3", "0.5"):
        command = [sys.executable, "-c", code, delay, *training]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 130, done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_train__takes_losses_bounds_weights_and_pairs(folder: Path, tmp_path: Path) -> None:
    table = TABLE.append_column("w", pa.array(np.full(len(TABLE), 2.0)))
    source = write(tmp_path / "w.parquet", table)
    options = "--rank", 4, "--epochs", 3, "--loss", "huber", "--bounds", 0.5, 5.5, "--reg", "0.1,0.05", "--weight", "w"
    found = as_json(run("train", source, tmp_path / "m", *options, "--bias-reg", 0.01, "--l1-reg", "0.001,0", "--json"))
    assert (found["measure"], found["train_rmse"]) == ("Huber loss", None)
    assert 0 < found["train_error"] < 2
    mf = distmf.load(tmp_path / "m")
    assert (mf.loss, mf.bounds, mf.reg, mf.l1_reg) == ("huber", (0.5, 5.5), (0.1, 0.05), (0.001, 0.0))
    assert 0.2 < as_json(run("evaluate", tmp_path / "m", source, "--json"))["rmse"] < 0.6
    inspected = as_json(run("inspect", tmp_path / "m", "--json"))
    assert inspected["train_error"] == found["train_error"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--loss", "logistic"), 1, "two values, as 0 and 1, or -1 and 1; here are 5 of them: 1, 2, 3"),
        (("--loss", "log"), 2, "is not one of"),
        (("--bounds", 2, 4), 1, "bounds are 2 and 4, but there are ratings from 1 to 5"),
        (("--bounds", 4, 2), 2, "two numbers, the lower one first"),
        (("--reg", "1,2,3"), 2, "more than two numbers"),
        (("--reg", "1,x"), 2, "'x' is not a valid FLOAT[,FLOAT]|auto"),
        (("--l1-reg", "auto"), 2, "'auto' is not a valid FLOAT[,FLOAT]"),
        (("--nonnegative", "--posterior-samples", 2), 2, "leave out nonnegative (--nonnegative) or posterior_samples"),
    ],
)
def test_train__refuses_losses_in_words(
    options: tuple[Any, ...], code: int, message: str, folder: Path, tmp_path: Path
) -> None:
    done = run("train", folder / "blocks", tmp_path / "m", "--rank", 4, *options)
    assert (done.exit_code, "Traceback" in done.output) == (code, False)
    assert message in done.output


def test_fold_in__and_start_add_users(folder: Path, tmp_path: Path) -> None:
    new = TABLE.slice(0, 50).set_column(0, "user_id", pa.array(np.repeat(np.arange(10_000, 10_010), 5)))
    source = write(tmp_path / "new.parquet", new)
    found = as_json(run("fold-in", folder / "model", source, tmp_path / "folded", "--json"))
    assert (found["n_users"], found["n_new"]) == (210, 10)
    assert as_json(run("evaluate", tmp_path / "folded", source, "--json"))["n_unseen"] == 0
    found = as_json(run("train", source, tmp_path / "more", "--start", folder / "model", "--epochs", 2, "--json"))
    assert found["epochs"] == 2
    assert as_json(run("inspect", tmp_path / "more", "--json"))["n_users"] == 210
    done = run("train", source, tmp_path / "other", "--start", folder / "model", "--rank", 5)
    assert done.exit_code == 2
    assert "rank is 5, but 8 in the model to start from" in done.output
    done = run("fold-in", folder / "model", folder / "blocks", tmp_path / "x", "--user", "u")
    assert done.exit_code == 2
    assert "user can only be given with raw ratings" in done.output
