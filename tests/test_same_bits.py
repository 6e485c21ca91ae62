"""The same model, bit for bit: for any order and files of the ratings, any number of threads, either Dask scheduler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.threaded
import numpy as np
import pyarrow as pa
import pytest

from distmf import MatrixFactorization, block_ratings, graph
from distmf.kernel import FactorBlock
from tests.helpers import files, random_ratings, write

TABLE = random_ratings(30_000, 1000, 400)


def train(source: Path, model: Path, threads: int) -> dict[str, bytes]:
    """Train from raw ratings with the defaults and return the bytes of the saved model."""
    MatrixFactorization(20, epochs=6).fit(source, threads=threads, holdout=0.1, grid=(4, 4)).save(model)
    return files(model)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    return train(write(folder / "r.parquet", TABLE), folder / "model", threads=1)


def test_same_bits__for_shuffled_ratings_in_other_files(tmp_path: Path, expected: dict[str, bytes]) -> None:
    order = np.random.default_rng(5).permutation(len(TABLE))
    shuffled = TABLE.take(pa.array(order))
    (tmp_path / "r").mkdir()
    for n, begin in enumerate(range(0, len(TABLE), 7001)):
        write(tmp_path / "r" / f"{n}.parquet", shuffled.slice(begin, 7001), row_group_size=911 + 100 * n)
    assert train(tmp_path / "r", tmp_path / "model", threads=2) == expected


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits__for_any_number_of_threads(threads: int, tmp_path: Path, expected: dict[str, bytes]) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    assert train(source, tmp_path / "model", threads) == expected


@pytest.mark.parametrize("get", [dask.get, dask.threaded.get], ids=["dask.get", "dask.threaded.get"])
def test_same_bits__on_either_scheduler(
    get: Callable[..., Any], tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def run(graph: Any, keys: Any, **options: Any) -> Any:
        used.append(get)
        return get(graph, keys)

    source = write(tmp_path / "r.parquet", TABLE)
    monkeypatch.setattr("distmf.engine.dask.threaded.get", run)
    assert train(source, tmp_path / "model", threads=2) == expected
    assert used


def test_same_bits__for_blocks_on_disk_and_raw_ratings(tmp_path: Path, expected: dict[str, bytes]) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    block_ratings(source, tmp_path / "blocks", holdout=0.1, grid=(4, 4))
    for ratings in (tmp_path / "blocks", str(tmp_path / "blocks")):
        MatrixFactorization(20, epochs=6).fit(ratings).save(tmp_path / "model")
        assert files(tmp_path / "model") == expected


def test_same_bits__not_for_another_seed(tmp_path: Path, expected: dict[str, bytes]) -> None:
    source = write(tmp_path / "r.parquet", TABLE)
    MatrixFactorization(20, epochs=6, seed=1).fit(source, holdout=0.1, grid=(4, 4)).save(tmp_path / "model")
    assert files(tmp_path / "model")["users.parquet"] != expected["users.parquet"]


def test_visit__is_pure(tmp_path: Path) -> None:
    blocks = block_ratings(write(tmp_path / "r.parquet", TABLE), tmp_path / "b", grid=(2, 2), holdout=0.1)
    mf = MatrixFactorization(5)
    training = mf._training(blocks)
    state = graph.first_state(training)
    block = next(iter(blocks.entries))
    row, column = graph.load_rows(state.rows[block.row], training), graph.load_column(state.cols[block.col], training)
    arguments = row, column, state.step, training, block, 3, True

    def arrays(side: FactorBlock) -> list[np.ndarray[Any, Any]]:
        return [array.copy() for array in side]

    before = arrays(row.rows), arrays(column.side)
    first, again = (graph.visit(*arguments) for _ in range(2))
    assert first.column is not None
    assert again.column is not None
    assert first.column.cost == again.column.cost
    for one, two in ((first.rows, again.rows), (first.column.side, again.column.side)):
        for left, right in zip(one, two, strict=True):
            np.testing.assert_array_equal(left, right)
            assert not left.flags.writeable
    for old, side in zip(before, (row.rows, column.side), strict=True):
        for left, right in zip(old, side, strict=True):
            np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first.rows.biases, before[0][1])
