"""What a report is told of a training: kept beside the model, which does not depend on it."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distmf
from distmf import Blocks, MatrixFactorization, block_ratings, evaluate, residuals
from distmf.errors import StoreError
from distmf.grid import BlockKey
from distmf.run import Run
from distmf.schedule import strata
from tests.clusters import cluster
from tests.helpers import blocks_in, files, random_ratings, write


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    folder = tmp_path_factory.mktemp("run")
    return blocks_in(folder, 6000, 200, 150)


def run_of(mf: MatrixFactorization) -> Run:
    assert mf.model_.run is not None
    return mf.model_.run


def check_timetable(run: Run, blocks: Blocks, epoch: int, seed: int) -> None:
    """Every block once, in the order of the schedule for its row and its column, no two at once that share one."""
    subepoch = {key: n for n, keys in enumerate(strata(blocks.shape, epoch, seed)) for key in keys}
    assert {BlockKey(visit["row"], visit["col"]): visit["subepoch"] for visit in run.visits} == subepoch
    assert len(run.visits) == len(subepoch)
    assert run.visits[0]["begin"] == 0
    for line, n in (("row", blocks.shape.rows), ("col", blocks.shape.cols)):
        for number in range(n):
            for before, after in itertools.pairwise(visit for visit in run.visits if visit[line] == number):
                assert before["subepoch"] < after["subepoch"]
                assert before["end"] <= after["begin"] + 1e-3  # two clocks


@pytest.mark.parametrize("options", [{}, {"loss": "huber"}, {"bounds": (0, 6)}, {"posterior_samples": 2}])
def test_run__has_the_errors_of_the_model(options: dict[str, Any], blocks: Blocks) -> None:
    mf = MatrixFactorization(4, epochs=6, **options).fit(blocks)
    run, found = run_of(mf), evaluate(mf, blocks)
    assert run.residuals is not None
    assert (run.residuals.n, run.residuals.n) == (found["n"], blocks.n_holdout)
    assert run.residuals.rmse == pytest.approx(found["rmse"], rel=1e-5)
    for ours, expected in ((run.residuals.by_user, "by_user_count"), (run.residuals.by_item, "by_item_count")):
        there: list[residuals.Bucket] = found[expected]  # type: ignore[literal-required]
        assert [bucket["n"] for bucket in residuals.buckets(ours)] == [bucket["n"] for bucket in there]
    assert run.residuals.by_rating[:, 0].sum() == run.residuals.by_error.sum() == found["n"]
    assert run.counts == [[blocks.entries[BlockKey(i, j)].n_train for j in range(4)] for i in range(4)]
    check_timetable(run, blocks, len(mf.history_) - 1, 0)


def test_run__takes_a_sample_of_many_ratings(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmf.run.SAMPLED", 100)
    sampled = run_of(MatrixFactorization(4, epochs=2).fit(blocks)).residuals
    assert sampled is not None
    assert 40 <= sampled.n <= 200


def test_run__is_of_the_ratings_trained_on_where_none_are_held_out(tmp_path: Path) -> None:
    blocks = block_ratings(write(tmp_path / "r.parquet", random_ratings(3000, 100, 80)), tmp_path / "b")
    mf = MatrixFactorization(4, epochs=3).fit(blocks)
    found = run_of(mf).residuals
    assert found is not None
    assert found.n == blocks.n_ratings
    assert found.rmse == pytest.approx(mf.history_.train_rmse, rel=0.01)  # predictions are clipped here only


def test_run__is_kept_beside_a_model_that_does_not_depend_on_it(blocks: Blocks, tmp_path: Path) -> None:
    for name in ("a", "b"):
        MatrixFactorization(4, epochs=3).fit(blocks).save(tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "a/run.json").read_bytes() != (tmp_path / "b/run.json").read_bytes()
    loaded = distmf.load(tmp_path / "a")
    assert run_of(loaded).to_json() == json.loads((tmp_path / "a/run.json").read_text())
    loaded.save(tmp_path / "c")
    assert (tmp_path / "c/run.json").read_bytes() == (tmp_path / "a/run.json").read_bytes()
    (tmp_path / "b/run.json").write_text("{}")
    with pytest.raises(StoreError, match=r"run\.json is damaged; remove it: only reports need it"):
        distmf.load(tmp_path / "b")
    (tmp_path / "b/run.json").unlink()
    assert distmf.load(tmp_path / "b").model_.run is None


def test_run__on_a_cluster_names_processes(blocks: Blocks, tmp_path: Path) -> None:
    with cluster(2, tmp_path) as client:
        run = run_of(MatrixFactorization(4, epochs=3, tol=0).fit(blocks, client=client))
        n_workers = len(client.scheduler_info()["workers"])
    assert run.is_cluster
    assert len({visit["process"] for visit in run.visits}) <= n_workers
    check_timetable(run, blocks, 2, 0)


def test_run__says_how_fast(blocks: Blocks) -> None:
    mf = MatrixFactorization(4, epochs=3, tol=0).fit(blocks, threads=1)
    run = run_of(mf)
    assert (run.n_threads, run.is_cluster) == (1, False)
    assert run.ratings_per_second == mf.history_.ratings_per_second
    assert run.utilizations == [epoch.utilization for epoch in mf.history_]
    assert len({(visit["process"], visit["thread"]) for visit in run.visits}) >= 1
    assert run.blocks["path"] == blocks.path
    assert np.sum(run.counts) == run.blocks["ratings"]
