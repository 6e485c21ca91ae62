"""Training on worker processes through everything that happens to them: the same bits, and nothing lost."""

import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Worker, WorkerPlugin

import distmf
from distmf import MatrixFactorization, block_ratings, checkpoint, factors, trainer
from distmf.cluster import SETTINGS
from distmf.errors import ClusterError, ParameterError, StoreError
from distmf.store import Folder
from tests.clusters import at_epoch, cluster, kill, worker_pids
from tests.helpers import blocks_in, files, saved

EPOCHS = 15


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> distmf.Blocks:
    return blocks_in(tmp_path_factory.mktemp("blocks"), 40_000, 1000, 400)


@pytest.fixture(scope="module")
def expected(blocks: distmf.Blocks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return saved(model().fit(blocks), tmp_path_factory.mktemp("expected"))


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with cluster(2, tmp_path_factory.mktemp("workers")) as client:
        yield client


def model() -> MatrixFactorization:
    return MatrixFactorization(16, epochs=EPOCHS, tol=0)


def beside(blocks: distmf.Blocks) -> list[str]:
    return sorted(path.name for path in Path(blocks.path).parent.iterdir())


def n_tasks(client: Client) -> int:
    for _ in range(50):
        n: int = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        if n == 0:
            break
        time.sleep(0.1)
    return n


def test_fit__gives_the_same_bits_and_leaves_nothing_behind(
    client: Client, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert saved(model().fit(blocks, client=client), tmp_path) == expected
    assert beside(blocks) == ["b", "r.parquet"]
    assert n_tasks(client) == 0


def test_fit__on_blocks_beside_which_nothing_can_be_written_says_what_to_give(
    client: Client, blocks: distmf.Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any) -> None:
        raise StoreError("b.training cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "free_folder", read_only)
        patch.setattr(Folder, "delete", read_only)
        with pytest.raises(StoreError, match=r"cannot be written; .*\(--checkpoint\)"):
            model().fit(blocks, client=client)


def kept() -> tuple[int, int]:
    """Return how many files of factors and bytes of ratings this process keeps."""
    return len(factors._kept), distmf.blocks._cache._bytes


@pytest.mark.parametrize("interrupted", [False, True])
def test_fit__lets_workers_let_go_of_what_they_kept(interrupted: bool, client: Client, blocks: distmf.Blocks) -> None:
    if interrupted:

        def interrupt() -> None:
            raise KeyboardInterrupt

        with at_epoch(4, interrupt), pytest.raises(KeyboardInterrupt):
            model().fit(blocks, client=client)
    else:
        model().fit(blocks, client=client)
    assert set(client.run(kept).values()) == {(0, 0)}


def test_fit__ends_on_workers_when_what_comes_does_not_count(
    client: Client, blocks: distmf.Blocks, tmp_path: Path
) -> None:
    def train(name: str, **where: Any) -> dict[str, bytes]:
        mf = MatrixFactorization(16, epochs=300, target_cost=0.2).fit(blocks, **where)
        n_epochs.append(len(mf.history_))
        mf.save(tmp_path / name)
        return files(tmp_path / name)

    n_epochs: list[int] = []
    assert train("cluster", client=client, checkpoint=tmp_path / "c") == train("local")
    assert n_epochs[0] < 5
    n_executed = sum(client.run(lambda dask_worker: dask_worker.state.executed_count).values())
    assert n_executed < 10 * 2 * len(blocks.entries)  # of a generation of 20 epochs
    assert n_tasks(client) == 0
    manifest = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
    states = [state[name] for state in manifest["states"] for name in ("state", "before")]
    named = {Path(file).parent.name for state in states for file, *_ in state["rows"] or ()}
    assert {path.name for path in (tmp_path / "c" / "factors").iterdir()} == named


@pytest.mark.parametrize("n_killed", [1, 2])
def test_fit__goes_on_when_workers_are_killed(
    n_killed: int, client: Client, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path
) -> None:
    pids = worker_pids(client)[:n_killed]
    with at_epoch(7, lambda: [kill(pid) for pid in pids]) as done:
        mf = model().fit(blocks, client=client)
    assert done
    assert saved(mf, tmp_path) == expected
    assert not set(pids) & set(worker_pids(client))


def test_fit__gives_up_on_a_block_that_kills_every_worker(
    blocks: distmf.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "distributed.scheduler.allowed-failures", 1)
    (tmp_path / "workers").mkdir()
    with cluster(2, tmp_path / "workers") as client:
        client.register_plugin(AtBlocks(die, (2, 3)))
        with pytest.raises(
            ClusterError, match=r"^(.* or )?block \(2, 3\) in epoch 1( or .*)? ran on 2 workers that died"
        ):
            model().fit(blocks, client=client)
        assert n_tasks(client) == 0
    assert beside(blocks) == ["b", "r.parquet"]


class AtBlocks(WorkerPlugin):
    """Does something on every worker before a block is read: with the one at `where`, or with all."""

    def __init__(self, act: Callable[[], Any], where: tuple[int, int] | None = None) -> None:
        self.act, self.where = act, where

    def setup(self, worker: Worker) -> None:
        from distmf import blocks

        original, act, where = blocks.Blocks.read, self.act, self.where

        def read(self: distmf.Blocks, key: Any, part: Any) -> Any:
            if where is None or tuple(key) == where:
                act()
            return original(self, key, part)

        blocks.Blocks.read = read  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def rest() -> None:
    time.sleep(0.005)


@pytest.fixture
def one_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the workers often, and keep all epochs in one generation, so that nothing else ends it."""
    monkeypatch.setattr("distmf.cluster.LOOK_SECONDS", 0.1)
    monkeypatch.setattr(trainer, "EPOCHS_PER_GENERATION", 1000)


@pytest.mark.usefixtures("one_generation")
def test_fit__uses_a_worker_that_joins_late(blocks: distmf.Blocks, tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    mf, local = (MatrixFactorization(4, epochs=30, tol=0) for _ in range(2))
    with cluster(1, tmp_path / "workers") as client:
        client.register_plugin(AtBlocks(rest))
        assert client.cluster is not None
        with at_epoch(3, lambda: client.cluster.scale(2)) as done:
            mf.fit(blocks, client=client)
        assert done
        executed = client.run(lambda dask_worker: dask_worker.state.executed_count)
    mf.save(tmp_path / "c")
    local.fit(blocks).save(tmp_path / "l")
    assert files(tmp_path / "c") == files(tmp_path / "l")
    assert len(executed) == 2
    assert min(executed.values()) > 4 * 30


@pytest.mark.usefixtures("one_generation")
def test_fit__goes_on_from_the_last_state_when_a_worker_is_lost(
    client: Client, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.register_plugin(AtBlocks(rest))
    pid = worker_pids(client)[0]
    with at_epoch(12, lambda: kill(pid)) as done:
        mf = model().fit(blocks, client=client)
    assert done
    assert saved(mf, tmp_path) == expected
    assert re.search(r"workers have joined or left the cluster; going on after epoch 1[0-4]$", caplog.text, re.M)


def test_fit__goes_on_when_a_worker_retires(
    client: Client, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path
) -> None:
    address = next(iter(client.nthreads()))
    with at_epoch(7, lambda: client.retire_workers([address])) as done:
        mf = model().fit(blocks, client=client)
    assert done
    assert address not in client.nthreads()
    assert saved(mf, tmp_path) == expected


def test_fit__goes_on_when_a_worker_is_paused(
    client: Client,
    blocks: distmf.Blocks,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distmf.cluster.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("distmf.cluster.PAUSED_SECONDS", 1.0)
    address = next(iter(client.nthreads()))

    def pause() -> None:
        # As if its memory were full: it takes no more tasks, and those that it was given stay with it.
        client.run(lambda dask_worker: setattr(dask_worker.memory_manager, "memory_limit", 1), workers=[address])
        while client.scheduler_info(n_workers=-1)["workers"][address]["status"] != "paused":
            time.sleep(0.01)

    with at_epoch(7, pause) as done:
        mf = model().fit(blocks, client=client)
    assert done
    assert saved(mf, tmp_path) == expected
    assert client.scheduler_info(n_workers=-1)["workers"][address]["status"] == "paused"


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_fit__names_a_block_file_that_is_damaged_on_the_way_and_loses_nothing_else(
    damage: str, client: Client, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(blocks.path, tmp_path / "b")
    copy = distmf.open_blocks(tmp_path / "b")
    file = tmp_path / "b" / "rows" / "00002.bin"
    whole = file.read_bytes()

    def harm() -> None:
        file.unlink()
        if damage != "missing":
            file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else whole[:-9] + b"x" + whole[-8:])
        for pid in worker_pids(client):  # what they had in their caches is gone with them
            kill(pid)

    with at_epoch(7, harm) as done, pytest.raises(StoreError, match=r"rows/00002\.bin"):
        model().fit(copy, client=client, checkpoint=tmp_path / "c")
    assert done
    file.write_bytes(whole)
    mf = model().fit(copy, client=client, checkpoint=tmp_path / "c", resume=True)
    assert saved(mf, tmp_path) == expected


def test_fit__on_one_cluster_twice_at_once(
    client: Client, blocks: distmf.Blocks, expected: dict[str, bytes], tmp_path: Path
) -> None:
    foreign = client.submit(lambda x: x + 1, 1, key="of-somebody-else")
    models = [model(), MatrixFactorization(8, epochs=5)]
    threads = [threading.Thread(target=mf.fit, args=[blocks], kwargs={"client": client}) for mf in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert saved(models[0], tmp_path) == expected
    assert len(models[1].history_) == 5
    assert foreign.result() == 2
    del foreign
    assert n_tasks(client) == 0
    assert beside(blocks) == ["b", "r.parquet"]


def test_fit__keeps_the_scheduler_small_over_200_epochs(client: Client, blocks: distmf.Blocks) -> None:
    assert client.cluster is not None
    scheduler = client.cluster.scheduler
    seen: list[tuple[int, int, int]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("epoch"):
                seen.append((len(scheduler.tasks), len(scheduler.task_groups), len(scheduler.task_prefixes)))

    handler, logger = Handler(), logging.getLogger("distmf.trainer")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        MatrixFactorization(4, epochs=200, tol=0, patience=0).fit(blocks, client=client)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert len(seen) == 200
    # Of a generation of epochs of 4 × 4 blocks, with columns, saves and sums.
    most = [max(column) for column in zip(*seen, strict=True)]
    assert most[0] < 2 * trainer.EPOCHS_PER_GENERATION * (2 * 16 + 16)
    assert most[1] < 40
    assert most[2] < 40
    assert n_tasks(client) == 0


def test_fit__warns_when_the_grid_is_too_coarse(
    client: Client, blocks: distmf.Blocks, caplog: pytest.LogCaptureFixture
) -> None:
    MatrixFactorization(2, epochs=1).fit(blocks, client=client)
    assert "the grid" not in caplog.text  # 4 × 4 is enough for two
    coarse = block_ratings(Path(blocks.path).parent / "r.parquet", Path(blocks.path).parent / "coarse", grid=(4, 2))
    MatrixFactorization(2, epochs=1).fit(coarse, client=client)
    assert "the grid of 4 × 2 blocks keeps the 2 threads of the cluster busy with waits in between" in caplog.text
    assert "block again with a grid of at least 4 × 4 (--grid), or use 1 workers of one thread" in caplog.text
    shutil.rmtree(coarse.path)


def test_fit__takes_a_client_or_threads(client: Client, blocks: distmf.Blocks) -> None:
    with pytest.raises(ValueError, match="threads is 2, but the client's workers have threads of their own"):
        model().fit(blocks, client=client, threads=2)
    with pytest.raises(ValueError, match="a matrix is trained on in threads of this process"):
        model().fit([[1, 2], [3, 4]], client=client)  # type: ignore[arg-type]
    with Client(client.scheduler.address, set_as_default=False) as other:
        pass
    with pytest.raises(ParameterError, match="client is closed; connect again"):
        model().fit(blocks, client=other)
