"""The same model, bit for bit: the heart of the project.

For any order and files of the ratings, any number of threads, on every Dask scheduler, on processes of which one is
killed, by a driver that is killed and resumed, on a disk and on an object store.
"""

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.threaded
import numpy as np
import pyarrow as pa
import pytest

from distmf import MatrixFactorization, block_ratings, graph, tasks
from distmf.engine import Engine, Graph
from distmf.filesystem import url_to_fs
from distmf.kernel import FactorBlock
from distmf.training import training_of
from tests.clusters import at_epoch, cluster, start, wait_for, worker_pids
from tests.clusters import kill as end
from tests.helpers import files, random_ratings, write

TABLE = random_ratings(30_000, 1000, 400)


# Six epochs: of SGD, or of two chains of draws from the posterior, of which the second has not begun in the third.
KINDS = {"sgd": {"epochs": 6}, "posterior": {"epochs": 3, "posterior_samples": 2}}


def train(source: Path, model: Path, threads: int, kind: dict[str, int]) -> dict[str, bytes]:
    """Train from raw ratings and return the bytes of the saved model."""
    MatrixFactorization(20, **kind).fit(source, threads=threads, holdout=0.1, grid=(4, 4)).save(model)
    return files(model)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, int]:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, kind: dict[str, int]) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    return train(write(folder / "r.parquet", TABLE), folder / "model", 1, kind)


def test_same_bits__for_shuffled_ratings_in_other_files(
    tmp_path: Path, kind: dict[str, int], expected: dict[str, bytes]
) -> None:
    order = np.random.default_rng(5).permutation(len(TABLE))
    shuffled = TABLE.take(pa.array(order))
    (tmp_path / "r").mkdir()
    for n, begin in enumerate(range(0, len(TABLE), 7001)):
        write(tmp_path / "r" / f"{n}.parquet", shuffled.slice(begin, 7001), row_group_size=911 + 100 * n)
    assert train(tmp_path / "r", tmp_path / "model", 2, kind) == expected


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits__for_any_number_of_threads(
    threads: int, tmp_path: Path, kind: dict[str, int], expected: dict[str, bytes]
) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    assert train(source, tmp_path / "model", threads, kind) == expected


@pytest.mark.parametrize("get", [dask.get, dask.threaded.get], ids=["dask.get", "dask.threaded.get"])
def test_same_bits__on_either_scheduler(
    get: Callable[..., Any],
    tmp_path: Path,
    kind: dict[str, int],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []

    def run(self: Engine, graph: Graph, keys: Any, on_done: Any = None, *others: Any) -> Any:
        used.append(get)
        values = get(graph.tasks, list(keys))
        for key, value in zip(keys, values, strict=True):
            if on_done:
                on_done(key, value)
        return values

    source = write(tmp_path / "r.parquet", TABLE)
    monkeypatch.setattr("distmf.threads.ThreadEngine.run", run)
    assert train(source, tmp_path / "model", 2, kind) == expected
    assert used


@pytest.mark.parametrize("kill", [False, True])
def test_same_bits__on_two_processes(
    kill: bool,
    tmp_path: Path,
    kind: dict[str, int],
    expected: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    with cluster(2, tmp_path_factory.mktemp("workers")) as client:
        blocks = block_ratings(source, tmp_path / "blocks", holdout=0.1, grid=(4, 4), client=client)
        pids = worker_pids(client)
        with at_epoch(3, lambda: end(pids[1]) if kill else None) as done:
            MatrixFactorization(20, **kind).fit(blocks, client=client).save(tmp_path / "model")
        assert done
        assert (pids[1] in worker_pids(client)) is not kill
    assert files(tmp_path / "model") == expected


@pytest.mark.parametrize("seed", range(3))
def test_same_bits__when_the_driver_is_killed_at_a_random_moment_and_resumed(
    seed: int, tmp_path: Path, kind: dict[str, int], expected: dict[str, bytes]
) -> None:
    blocks = block_ratings(write(tmp_path / "r.parquet", TABLE), tmp_path / "blocks", holdout=0.1, grid=(4, 4))
    rng = np.random.default_rng(seed)
    options = [text for name, value in kind.items() for text in (f"--{name.replace('_', '-')}", value)]
    command = ["train", blocks.path, tmp_path / "model", "--rank", 20, *options, "--checkpoint", tmp_path / "c"]
    for epoch in sorted(rng.choice(range(1, 5), 2, replace=False)):
        process = start(*map(str, [*command, "--resume", "--workers", 2]))
        wait_for(process, f"epoch {epoch}/6")
        time.sleep(rng.uniform(0, 0.03))
        end(process.pid)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had ended before it could be killed"
    process = start(*map(str, [*command, "--resume", "--threads", 2]))
    assert process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert files(tmp_path / "model") == expected
    with cluster(1, Path(tempfile.gettempdir())):  # the next one removes what killed ones left
        pass


@pytest.mark.parametrize("on_cluster", [False, True])
def test_same_bits__on_s3(
    on_cluster: bool,
    s3: str,
    tmp_path: Path,
    kind: dict[str, int],
    expected: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(cluster(2, tmp_path_factory.mktemp("workers"))) if on_cluster else None
        blocks = block_ratings(source, f"{s3}/blocks", holdout=0.1, grid=(4, 4), client=client)
        with at_epoch(4, interrupt) as done, pytest.raises(KeyboardInterrupt):
            MatrixFactorization(20, **kind).fit(blocks, checkpoint=f"{s3}/c", client=client)
        assert done
        mf = MatrixFactorization(20, **kind).fit(blocks, checkpoint=f"{s3}/c", resume=True, client=client)
        mf.save(f"{s3}/model")
    fs, path = url_to_fs(f"{s3}/model")
    fs.get(path, str(tmp_path / "model"), recursive=True)
    assert files(tmp_path / "model") == expected
    assert sorted(name.rpartition("/")[2] for name in fs.ls(path.rpartition("/")[0])) == ["blocks", "c", "model"]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_same_bits__for_blocks_on_disk_and_raw_ratings(
    tmp_path: Path, kind: dict[str, int], expected: dict[str, bytes]
) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    block_ratings(source, tmp_path / "blocks", holdout=0.1, grid=(4, 4))
    for ratings in (tmp_path / "blocks", str(tmp_path / "blocks")):
        MatrixFactorization(20, **kind).fit(ratings).save(tmp_path / "model")
        assert files(tmp_path / "model") == expected


def test_same_bits__not_for_another_seed(tmp_path: Path, kind: dict[str, int], expected: dict[str, bytes]) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    MatrixFactorization(20, **kind, seed=1).fit(source, holdout=0.1, grid=(4, 4)).save(tmp_path / "model")
    assert files(tmp_path / "model")["users.parquet"] != expected["users.parquet"]


def test_visit__is_pure(tmp_path: Path, kind: dict[str, int]) -> None:
    blocks = block_ratings(write(tmp_path / "r.parquet", TABLE), tmp_path / "b", grid=(2, 2), holdout=0.1)
    mf = MatrixFactorization(5, **kind)
    training = training_of(mf.hyperparameters, blocks)
    state = graph.first_state(training)
    block = next(iter(blocks.entries))
    row, column = tasks.load_rows(state.rows[block.row], training), tasks.load_column(state.cols[block.col], training)
    arguments = row, column, state.step, training, block, 3, True, (True, True), None

    def arrays(side: FactorBlock) -> list[np.ndarray[Any, Any]]:
        return [array.copy() for array in side.arrays()]

    before = arrays(row.rows), arrays(column.side)
    first, again = (tasks.visit(*arguments) for _ in range(2))
    assert first.column is not None
    assert again.column is not None
    assert first.column.cost[:2] == again.column.cost[:2]
    np.testing.assert_equal(first.column.cost.spread, again.column.cost.spread)
    for one, two in ((first.rows, again.rows), (first.column.side, again.column.side)):
        for left, right in zip(one.arrays(), two.arrays(), strict=True):
            np.testing.assert_array_equal(left, right)
            assert not left.flags.writeable
    for old, side in zip(before, (row.rows, column.side), strict=True):
        for left, right in zip(old, side.arrays(), strict=True):
            np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first.rows.biases, before[0][1])
