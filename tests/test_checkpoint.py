"""Interrupted and resumed, on any engine: the same bits as without interruption; nothing else is taken up."""

import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import distmf
from distmf import MatrixFactorization, block_ratings, checkpoint, store, trainer
from distmf.describe import describe
from distmf.errors import StoreError
from tests.clusters import at_epoch, cluster, start, wait_for
from tests.helpers import blocks_in, files, random_ratings, saved, write

OPTIONS = {"rank": 12, "epochs": 14, "tol": 0, "patience": 0}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> distmf.Blocks:
    return blocks_in(tmp_path_factory.mktemp("blocks"), 20_000, 600, 300)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with cluster(2, tmp_path_factory.mktemp("workers")) as client:
        yield client


class Killed(BaseException):
    """As if the process ended here."""


def kill() -> None:
    raise Killed


def interrupted(options: dict[str, Any], blocks: distmf.Blocks, folder: Path, epoch: int, **where: Any) -> None:
    """Train until an epoch has passed, and end there."""
    with at_epoch(epoch, kill) as done, pytest.raises(Killed):
        MatrixFactorization(**options).fit(blocks, checkpoint=folder, **where)
    assert done


ENGINES = ["threads", "cluster"]


@pytest.mark.parametrize("epoch", [1, 6, 14])
@pytest.mark.parametrize(("first", "then"), [*itertools.product(ENGINES, ENGINES)])
def test_resume__ends_with_the_same_bits_on_any_engine(
    first: str, then: str, epoch: int, client: Client, blocks: distmf.Blocks, tmp_path: Path
) -> None:
    expected = saved(MatrixFactorization(**OPTIONS).fit(blocks), tmp_path)
    where: dict[str, Any] = {"threads": {"threads": 2}, "cluster": {"client": client}}
    interrupted(OPTIONS, blocks, tmp_path / "c", epoch, **where[first])
    states = json.loads((tmp_path / "c" / "checkpoint.json").read_text())["states"]
    assert all(state["state"]["epoch"] <= epoch for state in states)
    mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True, **where[then])
    assert saved(mf, tmp_path) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"target_cost": 0.35, "epochs": 200, "tol": 0},
        {"step_size": 3.0, "epochs": 12, "tol": 0},  # rolls back
        {"step_size": 1e4, "epochs": 8, "tol": 0},  # rolls back to the start
        {"step_size": 0.05, "step_decay": 0.7, "tol": 1e-4, "epochs": 60},  # converges
        {"epochs": 9},
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_resume__ends_with_the_same_bits_wherever_it_was_interrupted(
    options: dict[str, Any], every: int, blocks: distmf.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"rank": 8, **options}
    mf = MatrixFactorization(**options).fit(blocks)
    expected = saved(mf, tmp_path)
    original, n_accepted = trainer.Trainer.accept, itertools.count()

    def accept(self: trainer.Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if next(n_accepted) % 2 == 0:
            raise Killed

    monkeypatch.setattr(trainer.Trainer, "accept", accept)
    for _ in range(200):
        again = MatrixFactorization(**options)
        try:
            again.fit(blocks, checkpoint=tmp_path / "c", checkpoint_every=every, resume=True)
            break
        except Killed:
            pass
    assert next(n_accepted) > 0  # so it was interrupted, and more than once in most cases
    assert again.history_.stopped == mf.history_.stopped
    assert again.history_.rollbacks == mf.history_.rollbacks
    assert saved(again, tmp_path) == expected


def test_resume__of_a_training_that_has_ended_gives_its_model(blocks: distmf.Blocks, tmp_path: Path) -> None:
    mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c")
    expected = saved(mf, tmp_path)
    with at_epoch(1, kill) as done:  # no epoch is done again
        mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    assert not done
    assert saved(mf, tmp_path) == expected


def test_resume__goes_on_with_more_epochs(blocks: distmf.Blocks, tmp_path: Path) -> None:
    options = {**OPTIONS, "step_size": 0.03}  # without a line to zero, it is the same as more epochs from the start
    MatrixFactorization(**options).fit(blocks, checkpoint=tmp_path / "c")
    more = {**options, "epochs": 20}
    mf = MatrixFactorization(**more).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    assert saved(mf, tmp_path) == saved(MatrixFactorization(**more).fit(blocks), tmp_path)
    with pytest.raises(StoreError, match="epochs was 20 there and is 14 here"):
        MatrixFactorization(**options).fit(blocks, checkpoint=tmp_path / "c", resume=True)


def test_resume__with_auto_steps_goes_on_along_a_longer_line(blocks: distmf.Blocks, tmp_path: Path) -> None:
    MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c")
    more = {**OPTIONS, "epochs": 28}
    mf = MatrixFactorization(**more).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    steps = [epoch.step_size for epoch in mf.history_]
    assert len(steps) == 28
    assert steps[14] > steps[13]
    assert steps[-1] < steps[14]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"rank": 13}, "rank was 12 there and is 13 here"),
        ({"reg": 0.07}, "reg was 'auto' there and is 0.07 here"),
        ({"bias_reg": 0.0}, "bias_reg was"),
        ({"seed": 1}, "seed was 0 there and is 1 here"),
        ({"step_size": 0.1}, "step_size was 'auto' there and is 0.1 here"),
        ({"step_decay": 0.9}, "step_decay was"),
        ({"tol": 0.1}, "tol was"),
        ({"target_cost": 0.1}, "target_cost was None there and is 0.1 here"),
        ({"epochs": 13}, "epochs was 14 there and is 13 here"),
    ],
)
def test_resume__refuses_other_hyperparameters(
    changed: dict[str, Any], name: str, blocks: distmf.Blocks, tmp_path: Path
) -> None:
    interrupted(OPTIONS, blocks, tmp_path / "c", 3)
    before = files(tmp_path / "c")
    with pytest.raises(StoreError, match=f"is the checkpoint of another training: {name}"):
        MatrixFactorization(**{**OPTIONS, **changed}).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    assert files(tmp_path / "c") == before


@pytest.mark.parametrize(
    ("ratings", "options", "name"),
    [
        ((20_000, 600, 299), {}, "items was 300 there and is 299 here"),
        ((20_000, 600, 300), {"grid": (4, 5)}, r"grid was \[4, 4\] there and is \[4, 5\] here"),
        ((20_000, 600, 300), {"holdout": 0.2}, "ratings was"),
        ((20_000, 600, 300), {"seed": 3}, "ratings was"),
    ],
)
def test_resume__refuses_other_blocks(
    ratings: tuple[int, ...], options: dict[str, Any], name: str, blocks: distmf.Blocks, tmp_path: Path
) -> None:
    interrupted(OPTIONS, blocks, tmp_path / "c", 3)
    source = write(tmp_path / "r.parquet", random_ratings(*ratings))
    others = block_ratings(source, tmp_path / "b", **{"grid": (4, 4), "holdout": 0.1, **options})
    with pytest.raises(StoreError, match=f"is the checkpoint of another training: {name}"):
        MatrixFactorization(**OPTIONS).fit(others, checkpoint=tmp_path / "c", resume=True)


def test_resume__refuses_other_ratings_of_the_same_pairs(blocks: distmf.Blocks, tmp_path: Path) -> None:
    interrupted(OPTIONS, blocks, tmp_path / "c", 3)
    table = random_ratings(20_000, 600, 300)
    values = table["rating"].to_numpy().copy()
    values[77] = 6 - values[77] if values[77] != 3 else 4
    source = write(tmp_path / "r.parquet", table.set_column(2, "rating", [values]))
    others = block_ratings(source, tmp_path / "b", grid=(4, 4), holdout=0.1)
    with pytest.raises(StoreError, match="is the checkpoint of another training: checksum of the ratings was"):
        MatrixFactorization(**OPTIONS).fit(others, checkpoint=tmp_path / "c", resume=True)


def test_resume__takes_the_same_blocks_elsewhere(blocks: distmf.Blocks, tmp_path: Path) -> None:
    interrupted(OPTIONS, blocks, tmp_path / "c", 3)
    shutil.copytree(blocks.path, tmp_path / "b")
    mf = MatrixFactorization(**OPTIONS).fit(tmp_path / "b", checkpoint=tmp_path / "c", resume=True)
    assert saved(mf, tmp_path) == saved(MatrixFactorization(**OPTIONS).fit(blocks), tmp_path)


def test_checkpoint__is_not_overwritten_without_resume(blocks: distmf.Blocks, tmp_path: Path) -> None:
    interrupted(OPTIONS, blocks, tmp_path / "c", 3)
    before = files(tmp_path / "c")
    message = r"holds the checkpoint of a training that has done \d+ epochs?; go on from it"
    with pytest.raises(StoreError, match=message):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c")
    assert files(tmp_path / "c") == before
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        MatrixFactorization(**OPTIONS).fit(blocks, resume=True)
    with pytest.raises(ValueError, match="checkpoint is ''; give a folder or a URL"):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint="")
    with pytest.raises(ValueError, match="checkpoint_every needs a checkpoint"):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint_every=2)
    for inside in blocks.path, f"{blocks.path}/c":
        with pytest.raises(StoreError, match="are the same folder, or one is in the other"):
            MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=inside)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="exists and is not only distmf checkpoint"):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "precious")


def test_checkpoint__is_of_one_driver(blocks: distmf.Blocks, tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        assert describe(tmp_path / "c")[0]["driver"].startswith(f"process {os.getpid()} on")
        process = start("train", blocks.path, tmp_path / "m2", "--checkpoint", tmp_path / "c", "--resume")
        refused.append(process.communicate(timeout=60)[1])
        assert process.returncode == 1

    with at_epoch(3, second):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c")
    assert f"is in use: process {os.getpid()} on" in refused[0]
    assert refused[0].count("\n") == 1
    assert not (tmp_path / "m2").exists()


def take_over(folder: Path) -> None:
    """Do what a driver on another machine does when nothing was heard of this one for long."""
    (folder / "driver.json").unlink()


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoint__of_another_driver_by_now_is_left_alone(
    engine: str, client: Client, blocks: distmf.Blocks, tmp_path: Path
) -> None:
    there: dict[str, bytes] = {}

    def another() -> None:
        take_over(tmp_path / "c")
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True)
        there.update(files(tmp_path / "c"))

    where: dict[str, Any] = {"threads": {"threads": 2}, "cluster": {"client": client}}
    with at_epoch(3, another), pytest.raises(StoreError, match="another driver may have begun; this one ends"):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", **where[engine])
    after = files(tmp_path / "c")
    assert {name: after.get(name) for name in there} == there
    mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    assert saved(mf, tmp_path) == saved(MatrixFactorization(**OPTIONS).fit(blocks), tmp_path)


def test_checkpoint__whose_files_another_driver_removed_says_so(tmp_path: Path) -> None:
    def lose() -> None:
        with checkpoint.open_checkpoint(store.Folder.at(tmp_path / "c"), {}, resume=False):
            take_over(tmp_path / "c")
            raise StoreError("the file factors/000018/rows-00000.bin is missing")

    with pytest.raises(StoreError, match="another driver may have begun; this one ends"):
        lose()


def test_commit__keeps_the_states_before_until_the_new_one_is_named(
    blocks: distmf.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writes, write = [], checkpoint.Checkpoint._write

    def killed_in_the_sixth(self: checkpoint.Checkpoint, records: list[dict[str, Any]]) -> None:
        writes.append(len(records))
        if len(writes) == 6:
            raise Killed
        write(self, records)

    monkeypatch.setattr(checkpoint.Checkpoint, "_write", killed_in_the_sixth)
    monkeypatch.setattr(checkpoint.Checkpoint, "sweep", lambda self: None)
    with pytest.raises(Killed):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c")
    monkeypatch.undo()
    mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    assert "damaged" not in caplog.text
    assert saved(mf, tmp_path) == saved(MatrixFactorization(**OPTIONS).fit(blocks), tmp_path)


def test_checkpoint__keeps_two_states_and_no_more(blocks: distmf.Blocks, tmp_path: Path) -> None:
    MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c")
    names = sorted({name.split("/")[1] for name in files(tmp_path / "c") if name.startswith("factors/")})
    # The last two, and the one from which the older of them goes back by an epoch, should it have to.
    assert [name.partition("-")[0] for name in names] == ["000012", "000013", "000014"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["checkpoint.json", "factors"]


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
def test_resume__falls_back_to_the_state_before_if_a_file_is_damaged(
    how: str, blocks: distmf.Blocks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(OPTIONS, blocks, tmp_path / "c", 9)
    newest = json.loads((tmp_path / "c" / "checkpoint.json").read_text())["states"][-1]["state"]

    def damage(name: str) -> None:
        file = tmp_path / "c" / name
        data = file.read_bytes()
        file.unlink()
        if how != "missing":
            file.write_bytes(data[:-1] if how == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))

    damage(newest["cols"][2][0])
    mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True)
    assert f"the state after epoch {newest['epoch']} is damaged" in caplog.text
    assert newest["cols"][2][0] in caplog.text
    assert saved(mf, tmp_path) == saved(MatrixFactorization(**OPTIONS).fit(blocks), tmp_path)
    for state in json.loads((tmp_path / "c" / "checkpoint.json").read_text())["states"]:
        damage(state["state"]["rows"][0][0])
    with pytest.raises(StoreError, match="neither of the two states can be read"):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=tmp_path / "c", resume=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little space."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"only root can mount a small disk: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoint__survives_a_full_disk(
    engine: str, client: Client, blocks: distmf.Blocks, small_disk: Path, tmp_path: Path
) -> None:
    where = {"client": client} if engine == "cluster" else {}
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break

    with at_epoch(7, fill) as done, pytest.raises(StoreError, match=r"(?i)no space left on device"):
        MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=small_disk / "c", **where)
    assert done
    filler.unlink()
    mf = MatrixFactorization(**OPTIONS).fit(blocks, checkpoint=small_disk / "c", resume=True, **where)
    assert saved(mf, tmp_path) == saved(MatrixFactorization(**OPTIONS).fit(blocks), tmp_path)


LONG = ["--rank", "12", "--epochs", "400", "--tol", "0", "--patience", "0"]


@pytest.fixture(scope="module")
def expected(blocks: distmf.Blocks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return saved(
        MatrixFactorization(12, epochs=400, tol=0, patience=0).fit(blocks), tmp_path_factory.mktemp("expected")
    )


@pytest.mark.parametrize("where", [["--threads", "2"], ["--workers", "2"]], ids=["threads", "workers"])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_train__of_a_driver_that_was_ended_is_resumed(
    where: list[str],
    signal_number: signal.Signals,
    blocks: distmf.Blocks,
    expected: dict[str, bytes],
    tmp_path: Path,
) -> None:
    command = ["train", blocks.path, tmp_path / "m", *LONG, "--checkpoint", tmp_path / "c", "--resume"]
    process = start(*command, *where)
    wait_for(process, "epoch  20/400")
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    if signal_number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "m").exists()
    else:
        assert process.returncode == 130, errors
        n_epochs = len(distmf.load(tmp_path / "m").history_)
        # An epoch is told when it has passed, and kept when it is saved, which may be while the next one is trained.
        assert 18 <= n_epochs < 400
        assert f"interrupted; the model after epoch {n_epochs} is saved in" in errors
    done = start(*command, "--threads", "1", "--checkpoint-every", "50")
    assert "going on after epoch" in done.communicate(timeout=120)[1]
    assert done.returncode == 0
    assert files(tmp_path / "m") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "m"]
    with cluster(1, Path(tempfile.gettempdir())):  # the next one removes what a killed one left
        pass


def test_restore__needs_one_whole_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with checkpoint.open_checkpoint(store.Folder.at(tmp_path / "c"), {"rank": 1}, resume=True) as opened:
        assert opened.restore(None, lambda state: True) is None  # type: ignore[arg-type]
    assert caplog.records == [] or all(record.levelno < logging.WARNING for record in caplog.records)
