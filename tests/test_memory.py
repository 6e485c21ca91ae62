"""What blocking and training take in fresh processes stays under the plan; what does not fit is refused at once."""

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

import distmf
from distmf import MatrixFactorization, block_ratings, datasets, memory, open_blocks
from distmf.errors import MemoryBudgetError
from distmf.grid import Shape
from distmf.memory import Portions, Sizes, blocking_bytes, finer_shapes, plan_memory, training_bytes, training_fits
from distmf.process import memory_limit
from distmf.sizes import parse_bytes
from tests.helpers import random_ratings, write

SIZES = Sizes.expected(10**7, 10**6, 32, Shape(64, 8), 10**9, 5 * 10**9)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give 2 million ratings of many users, so that factors take more than Python does."""
    folder = tmp_path_factory.mktemp("planted") / "r"
    datasets.planted_ratings(folder, 2_000_000, 300_000, 3_000)
    return folder


@pytest.fixture(scope="module")
def named_ratings(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the same ratings, by users and of items whose ids are strings of 36 characters."""
    folder = tmp_path_factory.mktemp("named")
    for path in ratings.iterdir():
        table = pq.read_table(path)
        for n, name in enumerate(("user_id", "item_id")):
            hashes = pc.multiply(table[name], 0x9E3779B97F4A7C15 >> 32)  # so that they look like those of a database
            table = table.set_column(n, name, pc.utf8_lpad(hashes.cast(pa.string()), 36, "0"))
        pq.write_table(table, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def weighted_ratings(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the same ratings with weights."""
    folder, rng = tmp_path_factory.mktemp("weighted"), np.random.default_rng(0)
    for path in ratings.iterdir():
        table = pq.read_table(path)
        weights = rng.gamma(1, 1, len(table)).astype(np.float32)
        pq.write_table(table.append_column("w", pa.array(weights)), folder / path.name)
    return folder


@pytest.fixture(scope="module")
def many_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give as many ratings by a million users, nearly each of whose ids comes up about twice: 36 characters as well."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for part in range(2):
        columns: dict[str, Any] = {"rating": rng.integers(1, 6, 1_000_000).astype(np.float32)}
        for name, size in (("user_id", 1_000_000), ("item_id", 200_000)):
            numbers = rng.integers(0, size, 1_000_000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            columns[name] = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 36, "0")
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
    return folder


def peak_of(*arguments: Any) -> int:
    """Run distmf in a fresh process, and return the most memory that was its own."""
    peak = 0
    command = [sys.executable, "-m", "distmf", *map(str, arguments)]
    env = {**os.environ, "XDG_CACHE_HOME": "/dev/null"}  # where nothing can be kept: to compile takes memory too
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                try:
                    lines = status.read_text().splitlines()
                except OSError:  # it has ended just now
                    break
                peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
                time.sleep(0.005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, errors = process.communicate(timeout=300)
        watcher.join()
    assert process.returncode == 0, errors.decode()
    return peak


@pytest.mark.parametrize(
    ("kind", "threads", "limit"),
    [
        ("ratings", 1, "220 MiB"),
        ("ratings", 2, "270 MiB"),
        ("ratings", 2, "2 GiB"),
        ("named_ratings", 1, "220 MiB"),
        ("named_ratings", 2, "270 MiB"),
        ("named_ratings", 2, "2 GiB"),
        ("many_names", 1, "250 MiB"),
        ("many_names", 2, "300 MiB"),
        ("weighted_ratings", 1, "220 MiB"),
        ("weighted_ratings", 2, "2 GiB"),
    ],
)
def test_blocking__stays_under_the_plan(
    kind: str, threads: int, limit: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ratings, string = request.getfixturevalue(kind), 36 + 8 if "names" in kind or "named" in kind else 0
    is_weighted = kind == "weighted_ratings"
    options = ["--threads", threads, "--memory", limit, "--rank", 8, *(["--weight", "w"] if is_weighted else [])]
    peak = peak_of("block", ratings, tmp_path / "b", *options)
    blocks, n_bytes = open_blocks(tmp_path / "b"), parse_bytes(limit)
    largest = max(entry.n_train for entry in blocks.entries.values())
    planned = 0
    for n_ids in 0, blocks.n_users + blocks.n_items:
        portions = Portions(string=string, is_weighted=is_weighted).within(n_bytes, threads, 2_000_000, n_ids)
        planned = max(planned, blocking_bytes(portions, n_ids, largest, threads).total)
    assert 0.25 * planned < peak < planned <= n_bytes


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_blocking__of_text_stays_under_the_limit(suffix: str, ratings: Path, tmp_path: Path) -> None:
    """It is made Parquet a part at a time."""
    table = pq.read_table(ratings)
    with pa.output_stream(tmp_path / f"r{suffix}", compression="gzip" if suffix.endswith(".gz") else None) as file:
        csv.write_csv(table, file)
    del table
    peak = peak_of("block", tmp_path / f"r{suffix}", tmp_path / "b", "--threads", 1, "--memory", "220 MiB", "--rank", 8)
    assert peak < parse_bytes("220 MiB")
    assert open_blocks(tmp_path / "b").n_ratings == 2_000_000


@pytest.mark.parametrize(
    ("rank", "grid", "limit", "on_disk", "samples"),
    [
        (64, "4x4", "2 GiB", False, 0),
        (64, "4x4", "440 MiB", False, 0),
        (64, "4x32", "2 GiB", False, 0),
        (64, "1x9", "2 GiB", False, 0),
        (64, "32x4", "300 MiB", True, 0),
        (128, "32x4", "380 MiB", True, 0),
        (64, "32x4", "500 MiB", True, 3),
        (64, "4x4", "3 GiB", False, 3),
        (32, "8x4", "3 GiB", False, 6),
    ],
)
def test_training__stays_under_the_plan(
    ratings: Path, tmp_path: Path, rank: int, grid: str, limit: str, on_disk: bool, samples: int
) -> None:
    shape = Shape(*map(int, grid.split("x")))
    blocks = block_ratings(ratings, tmp_path / "b", grid=shape)
    plan = plan_memory(Sizes.of(blocks, rank, samples), 2, parse_bytes(limit))
    assert plan.rows_on_disk == on_disk
    options = ["--rank", rank, "--epochs", 3, "--tol", 0, "--threads", 2, "--memory", limit]
    options += ["--posterior-samples", samples]
    peak = peak_of("train", tmp_path / "b", tmp_path / "m", *options)
    assert 0.5 * plan.needs.total < peak < plan.needs.total <= parse_bytes(limit)


@pytest.mark.parametrize(("grid", "limit", "on_disk"), [("4x4", "2 GiB", False), ("32x4", "550 MiB", True)])
def test_training__from_a_model_stays_under_the_plan(
    ratings: Path, tmp_path: Path, grid: str, limit: str, on_disk: bool
) -> None:
    blocks = block_ratings(ratings, tmp_path / "b", grid=Shape(*map(int, grid.split("x"))))
    distmf.MatrixFactorization(64, epochs=1).fit(blocks).save(tmp_path / "m")
    start = distmf.load(tmp_path / "m").model_.n_bytes
    assert start > 4 * 64 * (blocks.n_users + blocks.n_items)
    plan = plan_memory(Sizes.of(blocks, 64)._replace(start=start), 2, parse_bytes(limit))
    assert plan.rows_on_disk == on_disk
    options = ["--start", tmp_path / "m", "--epochs", 3, "--tol", 0, "--threads", 2, "--memory", limit]
    peak = peak_of("train", tmp_path / "b", tmp_path / "n", *options)
    assert 0.5 * plan.needs.total < peak < plan.needs.total <= parse_bytes(limit)


def test_sizes__count_strings(ratings: Path, named_ratings: Path, tmp_path: Path) -> None:
    sizes = []
    for name, source in (("i", ratings), ("s", named_ratings)):
        sizes.append(Sizes.of(block_ratings(source, tmp_path / name, grid=(4, 4)), 64))
    n_ids = sizes[0].n_users + sizes[0].n_items
    assert sizes[0].string_bytes == 0
    assert 40 * n_ids < sizes[1].string_bytes < 56 * n_ids
    assert sizes[1].on(Shape(8, 4)).string_bytes == sizes[1].string_bytes
    some = sizes[1]._replace(string_bytes=0)
    models = [training_bytes(size, 2, 0, rows_on_disk=True).model for size in (some, sizes[1])]
    assert models[1] - models[0] == 3 * sizes[1].string_bytes
    with pytest.raises(MemoryBudgetError, match=r"at least \d+\.\d MiB \(.*\), but it may use 250\.0 MiB"):
        Portions(string=108).within(parse_bytes("250 MiB"), 2)


def test_training_bytes__counts_every_term() -> None:
    sizes = Sizes(1009, 211, 61, Shape(7, 3), 151, 73, 10_007, 150_001, 30_011)
    line = 4 * 65  # rank 61 is padded to 64 floats, with a bias
    pair = line * (151 + 73)
    needs = training_bytes(sizes, 2, 1 << 40, rows_on_disk=False)
    assert (needs.rows, needs.columns) == (2 * line * 1009, 2 * line * 211)
    assert needs.copies == 2 * pair + line * (1009 + 211) // 2
    assert needs.cache == 150_001
    assert needs.reading == 4 * 10_007 + 150_001 // 4
    assert needs.model == 2 * line * (1009 + 211) + memory.ID_BYTES * 1009
    parts = needs.rows + needs.columns + needs.copies + needs.reading + needs.cache
    assert needs.total == needs.libraries + max(parts, needs.model)
    on_disk = training_bytes(sizes._replace(shape=Shape(70, 3), row_lines=15), 2, 0, rows_on_disk=True)
    assert (on_disk.rows, on_disk.columns, on_disk.cache) == ((2 * 3 + 2) * line * 15, line * 211, 0)
    assert training_bytes(sizes, 9, 0, rows_on_disk=False).reading == 2 * 3 * 10_007  # no more tasks than columns


def test_plan_memory__prefers_all_in_memory_then_rows_on_disk_then_refuses() -> None:
    plans = [plan_memory(SIZES, 2, parse_bytes(limit)) for limit in ("16 GiB", "4 GiB", "1.5 GiB")]
    assert [plan.rows_on_disk for plan in plans] == [False, False, True]
    assert [plan.needs.cache == 5 * 10**9 for plan in plans] == [True, False, False]
    for plan in plans:
        assert plan.needs.total <= plan.limit
    coarse = SIZES.on(Shape(8, 8))
    with pytest.raises(
        MemoryBudgetError,
        match=r"rank 32 on 8 × 8 blocks needs .* GiB, or .* with the user factors on disk \(rows 1\.[45] GiB, .*\), "
        r"but it may use 1\.5 GiB; block again with --grid 64x8, or allow more",
    ):
        plan_memory(coarse, 2, parse_bytes("1.5 GiB"))
    with pytest.raises(MemoryBudgetError, match=r"block again with --grid \d+x8, take --rank 16, or allow more"):
        plan_memory(coarse, 2, parse_bytes("2.2 GiB"))
    finer = [shape for shape in finer_shapes(coarse.shape, 10**7) if training_fits(coarse.on(shape), 2, 3 << 29)]
    assert finer[0] == (64, 8)
    with pytest.raises(MemoryBudgetError, match=r"but it may use 200\.0 MiB; allow more \(--memory\)"):
        plan_memory(coarse, 2, parse_bytes("200 MiB"))


def test_portions__take_less_where_there_is_less() -> None:
    found = [Portions().within(parse_bytes(limit), 2) for limit in ("220 MiB", "400 MiB", "4 GiB")]
    for smaller, larger in itertools.pairwise(found):
        assert all(few < many for few, many in zip(smaller[:3], larger[:3], strict=True))
    assert found[-1] == Portions()
    for limit, portions in zip(("220 MiB", "400 MiB", "4 GiB"), found, strict=True):
        assert blocking_bytes(portions, 0, 0, 2).total <= parse_bytes(limit)
    assert Portions().within(parse_bytes("4 GiB"), 2, 1_000_000).kept == memory.KEPT_BYTES * 1_000_000
    some = Portions().within(parse_bytes("4 GiB"), 2, 10**9)
    assert 10**9 < some.kept < blocking_bytes(some, 0, 0, 2).total < parse_bytes("4 GiB")
    assert Portions().within(parse_bytes("400 MiB"), 2, 10**9).kept == 0
    with pytest.raises(
        MemoryBudgetError, match=r"blocking in 2 threads needs at least \d+\.\d MiB .*, but it may use 150\.0"
    ):
        Portions().within(parse_bytes("150 MiB"), 2)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("string", [0, 20, 108, 1000])
@pytest.mark.parametrize("n_ids", [0, 300_000])
def test_portions__fit(threads: int, string: int, n_ids: int) -> None:
    fitting = 0
    for limit in range(200 << 20, 8 << 30, 37 << 20):
        try:
            portions = Portions(string=string).within(limit, threads, 10**7, n_ids)
        except MemoryBudgetError:
            assert not fitting
            continue
        fitting += 1
        assert blocking_bytes(portions, n_ids, 0, threads).total <= limit
    assert fitting > 50


@pytest.mark.parametrize("grid", [(1, 1), (2, 1)])
def test_block__takes_the_amount_that_a_refusal_names(grid: tuple[int, int], ratings: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="to sort the largest") as refusal:
        block_ratings(ratings, tmp_path / "b", grid=grid, threads=1, memory="222 MiB")
    named = re.search(r"needs (\S+ \S+) to sort", str(refusal.value))
    assert named
    block_ratings(ratings, tmp_path / "b", grid=grid, threads=1, memory=named[1])


def test_block_and_fit__refuse_before_any_work(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(1000, 100, 50))
    with pytest.raises(MemoryBudgetError, match="but it may use 100.0 MiB"):
        block_ratings(source, tmp_path / "b", memory="100 MiB")
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    blocks = block_ratings(source, tmp_path / "b")
    mf = MatrixFactorization(8)
    with pytest.raises(MemoryBudgetError, match="but it may use 100.0 MiB"):
        mf.fit(blocks, memory="100 MiB", checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="memory is 'plenty', which is not an amount of memory"):
        mf.fit(blocks, memory="plenty")
    done = subprocess.run(
        [sys.executable, "-m", "distmf", "train", tmp_path / "b", tmp_path / "m", "--memory", "100MiB"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("distmf: training at rank 64 on 4 × 4 blocks needs ")
    assert done.stderr.count("\n") == 1


def test_memory_limit__is_that_of_the_innermost_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory_limit()
    for name, text, file in (
        ("v2", "0::/a/b\n", "memory.max"),
        ("v1", "3:cpu:/x\n4:memory:/a/b\n", "memory.limit_in_bytes"),
    ):
        proc, groups = tmp_path / name / "proc", tmp_path / name / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(text)
        mount = groups if name == "v2" else groups / "memory"
        (mount / "a" / "b").mkdir(parents=True)
        monkeypatch.setattr("distmf.process.PROC", proc)
        monkeypatch.setattr("distmf.process.CGROUPS", groups)
        assert memory_limit() >= machine
        (mount / "a" / file).write_text("1073741824\n")
        assert memory_limit() == 1 << 30
        (mount / "a" / "b" / file).write_text("max\n" if name == "v2" else "9223372036854771712\n")
        assert memory_limit() == 1 << 30
        (mount / "a" / "b" / file).write_text("536870912\n")
        assert memory_limit() == 1 << 29


def test_benchmark_out_of_core__runs_in_a_control_group(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.cgroup import limited
    finally:
        sys.path.pop(0)
    try:
        with limited(1 << 28):
            pass
    except OSError as err:
        pytest.skip(f"no control group with a memory limit can be made here: {err}")
    command = ["benchmarks/out_of_core.py", "--ratings", "2e7", "--memory", "256MiB", "--ranks", "16", "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--folder", tmp_path / "data"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    block, train = (line.split(" | ") for line in done.stdout.splitlines()[-2:])
    for line in (block, train):
        peak, own, largest, killed = line[3:7]
        assert float(peak.removesuffix(" MiB")) <= 256
        assert float(largest.removesuffix(" MiB")) <= float(own.removesuffix(" MiB")) + 1
        assert float(own.removesuffix(" MiB")) < 256
        assert killed == "0"
    assert "train RMSE 0.8" in train[-1]
