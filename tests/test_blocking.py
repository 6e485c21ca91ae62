"""Blocks hold just the ratings, wherever they came from, and appear whole or not at all."""

import itertools
import json
import logging
import pkgutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from distmf import MatrixFactorization, block_ratings, blocks, merging, open_blocks
from distmf.blocks import PARTS, Blocks, Part
from distmf.errors import GraphLostError, MemoryBudgetError, RatingsError, StoreError
from distmf.grid import BlockKey, Shape
from distmf.lock import driver_lock
from distmf.memory import SMALLEST_PORTION, Portions
from distmf.store import Folder
from distmf.threads import ThreadEngine
from tests.helpers import files, random_ratings, write

Triple = tuple[Any, Any, float]


def triples(found: Blocks, part: Part) -> list[Triple]:
    """Return raw ids and rating of every rating in one part of all blocks."""
    users, items = (found.ids(side)["id"].to_pylist() for side in ("user", "item"))
    ratings: list[Triple] = []
    for key in found.entries:
        rows, cols = found.numbers(key, part)
        block = found.read(key, part)
        values = block.encoding.decode(block.values)
        ratings += [
            (users[row], items[col], value) for row, col, value in zip(rows, cols, values.tolist(), strict=True)
        ]
    return ratings


def as_triples(table: pa.Table) -> list[Triple]:
    return list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "rating")), strict=True))


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 5), (7, 2), None])
def test_block_ratings__holds_just_the_ratings(tmp_path: Path, grid: tuple[int, int] | None, coded: bool) -> None:
    table = random_ratings(5000, 700, 300, coded=coded)
    source = write(tmp_path / "r.parquet", table, row_group_size=700)
    found = block_ratings(source, tmp_path / "blocks", grid=grid, holdout=0.2)
    train, held_out = triples(found, "train"), triples(found, "holdout")
    assert Counter(train + held_out) == Counter(as_triples(table))
    assert found.n_ratings == len(train)
    assert found.n_holdout == len(held_out)
    assert found.shape == (grid or (4, 4))
    assert found.moments.mean == pytest.approx(np.mean([rating for *_, rating in train]), rel=1e-12)
    assert found.moments.std == pytest.approx(np.std([rating for *_, rating in train]), rel=1e-9)
    assert found.rating_range == (min(r for *_, r in as_triples(table)), max(r for *_, r in as_triples(table)))
    assert bool(found.layout.encoding.table) == coded
    for side, position in (("user", 0), ("item", 1)):
        counts = dict(zip(*found.ids(side).to_pydict().values(), strict=True))  # type: ignore[arg-type]
        assert {name: n for name, n in counts.items() if n} == Counter(rating[position] for rating in train)


def test_block_ratings__balances_the_blocks_of_skewed_ratings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users, items = (np.minimum(rng.pareto(0.8, 40_000) * 10, 999).astype(int) for _ in range(2))
    source = write(tmp_path / "r.parquet", {"user_id": users, "item_id": items, "rating": rng.random(40_000)})
    found = block_ratings(source, tmp_path / "blocks", grid=(4, 4))
    sizes = [entry.n_train for entry in found.entries.values()]
    heaviest = np.bincount(users).max() + np.bincount(items).max()  # a line cannot be cut
    assert max(sizes) < 1.3 * np.mean(sizes) + heaviest


@pytest.mark.parametrize("duplicates", ["keep", "mean"])
def test_block_ratings__does_not_depend_on_order_or_files_or_threads(tmp_path: Path, duplicates: Any) -> None:
    table = random_ratings(6000, 500, 200)
    table = pa.concat_tables([table, table.slice(0, 300).set_column(2, "rating", pa.array([4.5] * 300, pa.float32()))])
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    write(tmp_path / "one.parquet", table)
    (tmp_path / "many").mkdir()
    for n in range(5):
        write(tmp_path / "many" / f"{n}.parquet", shuffled.slice(n * 1300, 1300), row_group_size=100 + 70 * n)
    found = []
    for name, source, threads in (("a", "one.parquet", 1), ("b", "one.parquet", 3), ("c", "many", 2)):
        options: dict[str, Any] = {"holdout": 0.1, "duplicates": duplicates, "threads": threads, "seed": 7}
        block_ratings(tmp_path / source, tmp_path / name, **options)
        found.append(files(tmp_path / name))
    assert found[0] == found[1] == found[2]
    block_ratings(tmp_path / "one.parquet", tmp_path / "d", holdout=0.1, duplicates=duplicates, seed=8)
    assert files(tmp_path / "d") != found[0]


@pytest.mark.parametrize("step", [None, "scattering._scatter_span", "blocking.write_ids", "merging._merge_row_block"])
def test_block_ratings__writes_strings_down_wherever_they_come_up(
    step: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = random_ratings(3000, 400, 90)
    names = pa.array([f"user {n}" * (n % 5) + str(n) for n in table["user_id"].to_pylist()])
    table = table.set_column(0, "user_id", names)
    expected = block_ratings(write(tmp_path / "one.parquet", table), tmp_path / "expected", grid=(3, 2), holdout=0.3)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    source = write(tmp_path / "many.parquet", shuffled, row_group_size=150)
    monkeypatch.setattr("distmf.blocking.SMALLEST_SPAN", 100)
    monkeypatch.setattr("distmf.blocking.Portions.within", lambda *args: Portions(40, 60, 100, string=20))
    if step is not None:  # killed in the middle, and begun again
        original, calls = pkgutil.resolve_name(f"distmf.{step}"), []

        def fail(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise OSError("the disk is gone")
            return original(*args)

        monkeypatch.setattr(f"distmf.{step}", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            block_ratings(source, tmp_path / "b", grid=(3, 2), holdout=0.3, threads=2)
    found = block_ratings(source, tmp_path / "b", grid=(3, 2), holdout=0.3, threads=2)
    assert files(Path(found.path)) == files(Path(expected.path))
    assert Counter(triples(found, "train") + triples(found, "holdout")) == Counter(as_triples(table))


def test_block_ratings__holds_out_a_share_by_user_and_item(tmp_path: Path) -> None:
    table = random_ratings(20_000, 400, 200)
    source = write(tmp_path / "r.parquet", table)
    held_out = [
        {rating[:2] for rating in triples(block_ratings(source, tmp_path / "b", holdout=share, seed=seed), "holdout")}
        for seed, share in ((0, 0.1), (0, 0.3), (1, 0.1))
    ]
    # 5 standard deviations of a binomial distribution
    assert len(held_out[0]) == pytest.approx(2000, abs=5 * np.sqrt(20_000 * 0.1 * 0.9))
    assert held_out[0] < held_out[1]  # a larger share holds out more, not others
    assert len(held_out[0] & held_out[2]) == pytest.approx(200, abs=5 * np.sqrt(200))
    half = write(tmp_path / "half.parquet", table.slice(0, 10_000))
    again = {rating[:2] for rating in triples(block_ratings(half, tmp_path / "b", holdout=0.1), "holdout")}
    assert again == held_out[0] & {rating[:2] for rating in as_triples(table.slice(0, 10_000))}


def test_block_ratings__knows_strings(tmp_path: Path) -> None:
    table = random_ratings(2000, 100, 50)
    names = pa.array([f"user-{n}" if n else "" for n in table["user_id"].to_pylist()])
    table = table.set_column(0, "user_id", names.dictionary_encode())
    found = block_ratings(write(tmp_path / "r.parquet", table, row_group_size=300), tmp_path / "b", grid=(2, 2))
    assert Counter(triples(found, "train")) == Counter(as_triples(table))


def test_block_ratings__duplicates(tmp_path: Path) -> None:
    data = {"user_id": [1, 2, 1, 1, 2], "item_id": [1, 1, 1, 1, 2], "rating": [1.0, 2.0, 5.0, 4.5, 3.0]}
    source = write(tmp_path / "r.parquet", data)
    kept = block_ratings(source, tmp_path / "keep", grid=(1, 1))
    assert sorted(triples(kept, "train")) == [(1, 1, 1.0), (1, 1, 4.5), (1, 1, 5.0), (2, 1, 2.0), (2, 2, 3.0)]
    mean = block_ratings(source, tmp_path / "mean", grid=(1, 1), duplicates="mean")
    assert sorted(triples(mean, "train")) == [(1, 1, 3.5), (2, 1, 2.0), (2, 2, 3.0)]
    assert kept.settings["n_duplicates"] == mean.settings["n_duplicates"] == 2
    with pytest.raises(
        RatingsError, match=r"ratings that repeat a \(user, item\) pair: 2, for example user 1 and item 1"
    ):
        block_ratings(source, tmp_path / "error", grid=(1, 1), duplicates="error")
    assert not (tmp_path / "error").exists()
    distinct = write(tmp_path / "distinct.parquet", {name: values[3:] for name, values in data.items()})
    assert block_ratings(distinct, tmp_path / "error", duplicates="error").settings["n_duplicates"] == 0


def test_block_ratings__says_what_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {"user_id": [1, 1, 2], "item_id": [1, 1, 2], "rating": [1.0, 2.0, 3.0]}
    with caplog.at_level(logging.INFO, "distmf"):
        block_ratings(write(tmp_path / "r.parquet", data), tmp_path / "b", grid=(1, 1))
    expected = "3 ratings to train on and 0 held out, by 2 users of 2 items; 1 repeat a pair (duplicates: keep)"
    assert expected in caplog.text


def test_block_ratings__counts_what_training_sees_after_means(tmp_path: Path) -> None:
    data = {"user_id": [1, 1, 2], "item_id": [1, 1, 2], "rating": [1.0, 2.0, 3.0]}
    found = block_ratings(write(tmp_path / "r.parquet", data), tmp_path / "b", grid=(1, 1), duplicates="mean")
    assert found.n_ratings == 2
    assert found.moments.mean == 2.25


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"holdout": 1.0}, ValueError, "holdout is 1.0"),
        ({"holdout": -0.1}, ValueError, "holdout is -0.1"),
        ({"holdout": float("nan")}, ValueError, "holdout is nan"),
        ({"duplicates": "drop"}, ValueError, "duplicates is 'drop'; it can be 'keep', 'mean' or 'error'"),
        ({"memory_per_task": "lots"}, ValueError, "memory_per_task is 'lots', which is not an amount of memory"),
        ({"memory_per_task": 1000}, MemoryBudgetError, "memory_per_task is 1,000"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"grid": (50, 2)}, RatingsError, "grid is 50 × 2, but there are 20 users and 10 items"),
        ({"grid": (0, 2)}, ValueError, r"grid is \(0, 2\); it is two numbers from 1 to 1,024"),
        ({"grid": (70_000, 2)}, ValueError, r"grid is \(70000, 2\)"),
        ({"rank": 0}, ValueError, "rank is 0"),
        ({"seed": -1}, ValueError, "seed is -1;"),
        ({"seed": 1.5}, ValueError, "seed is 1.5;"),
        ({"user": "usr"}, RatingsError, "no column 'usr'"),
    ],
)
def test_block_ratings__refuses_bad_options(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(100, 20, 10))
    with pytest.raises(error, match=message):
        block_ratings(source, tmp_path / "b", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_block_ratings__takes_paths_that_go_up_and_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(100, 20, 10))
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    block_ratings("../r.parquet", "below/../../b")
    assert block_ratings(source, tmp_path / "c").n_ratings == open_blocks("../b").n_ratings
    assert files(tmp_path / "b") == files(tmp_path / "c")


def test_block_ratings__says_when_all_is_held_out(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", {"user_id": [1], "item_id": [1], "rating": [1.0]})
    with pytest.raises(RatingsError, match="holdout is 0.99999, so all ratings are held out; lower it"):
        block_ratings(source, tmp_path / "b", holdout=0.99999)


def test_block_ratings__leaves_other_folders_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(100, 20, 10))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("precious")
    for target in (precious, precious / "thesis.txt"):
        with pytest.raises(StoreError, match="exists and is not only distmf blocks"):
            block_ratings(source, target)
    assert files(precious) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    ("step", "n_calls"),
    [("counting._count_span", 10), ("scattering._scatter_span", 10), ("merging._merge_row_block", 4)],
)
def test_block_ratings__goes_on_where_it_was_interrupted(
    step: str, n_calls: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmf.blocking.SMALLEST_SPAN", 100)
    source = write(tmp_path / "r.parquet", random_ratings(1000, 50, 20), row_group_size=100)
    expected = files(Path(block_ratings(source, tmp_path / "expected", seed=2, holdout=0.1).path))
    old = files(Path(block_ratings(source, tmp_path / "b", seed=1).path))
    original, calls = pkgutil.resolve_name(f"distmf.{step}"), []

    def fail(*args: Any) -> Any:
        if len(calls) == 3:
            raise error
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(f"distmf.{step}", fail)
    with pytest.raises(error):
        block_ratings(source, tmp_path / "b", seed=2, holdout=0.1, threads=1)
    assert files(tmp_path / "b") == old
    monkeypatch.setattr(f"distmf.{step}", lambda *args: calls.append(args) or original(*args))
    assert files(Path(block_ratings(source, tmp_path / "b", seed=2, holdout=0.1).path)) == expected
    assert len(calls) == n_calls
    assert not list(tmp_path.glob("*.job"))


@pytest.mark.parametrize("step", ["counting._count_span", "scattering._scatter_span", "merging._merge_row_block"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_block_ratings__goes_on_with_another_number_of_threads(
    step: str, before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads share the memory, so what each takes at once, and the grid, depend on how many there are.
    monkeypatch.setattr("distmf.blocking.SMALLEST_SPAN", 100)
    monkeypatch.setattr("distmf.blocking.choose_shape", lambda *args: Shape(2 * args[-1], 2))
    portions = [Portions(100 // threads, 60 // threads, 200 // threads) for threads in (before, after)]
    source = write(tmp_path / "r.parquet", random_ratings(1000, 50, 20), row_group_size=100)
    original, calls = pkgutil.resolve_name(f"distmf.{step}"), []

    def fail(*args: Any) -> Any:
        if len(calls) == 1:
            raise OSError("the disk is gone")
        calls.append(args)
        return original(*args)

    monkeypatch.setattr("distmf.blocking.Portions.within", lambda *args: portions[0])
    expected = files(Path(block_ratings(source, tmp_path / "expected", threads=before).path))
    monkeypatch.setattr(f"distmf.{step}", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        block_ratings(source, tmp_path / "b", threads=before)
    monkeypatch.setattr(f"distmf.{step}", original)
    monkeypatch.setattr("distmf.blocking.Portions.within", lambda *args: portions[1])
    blocks = block_ratings(source, tmp_path / "b", threads=after)
    if "counting" in step:  # when the grid was not chosen yet
        assert blocks.shape == (2 * after, 2)
        expected = files(Path(block_ratings(source, tmp_path / "expected", threads=after).path))
    assert files(Path(blocks.path)) == expected


@pytest.mark.parametrize("kind", ["integers", "far integers", "strings"])
@pytest.mark.parametrize("counts", [SMALLEST_PORTION, 1 << 21])
def test_block_ratings__takes_little_space_beside_the_blocks(
    kind: str, counts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, n = np.random.default_rng(0), 1_000_000
    names = pa.array(np.arange(60_000) if kind == "integers" else rng.integers(0, 2**63, 60_000))
    if kind == "strings":
        names = pa.array([rng.bytes(8).hex() for _ in range(60_000)])
    users, items = (names.take(pa.array(rng.integers(0, size, n))) for size in (60_000, 6_000))
    columns = {"user_id": users, "item_id": items, "rating": rng.choice([1.0, 2.0, 3.0, 4.5], n)}
    source = write(tmp_path / "r.parquet", columns, row_group_size=40_000)
    monkeypatch.setattr("distmf.blocking.SMALLEST_SPAN", 1000)
    monkeypatch.setattr("distmf.blocking.Portions.within", lambda *args: Portions(20_000, counts, 20_000))
    sizes = []

    def measured(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            found = function(*args)
            sizes.append(sum(path.stat().st_size for path in tmp_path.glob("b.job/**/*") if path.is_file()))
            return found

        return wrapped

    steps = "counting._count_span", "blocking.write_numbers", "scattering._scatter_span", "merging._merge_row_block"
    for step in *steps, "blocking.write_ids":
        monkeypatch.setattr(f"distmf.{step}", measured(pkgutil.resolve_name(f"distmf.{step}")))
    blocks = block_ratings(source, tmp_path / "b", threads=1)
    result = sum(len(data) for data in files(Path(blocks.path)).values())
    assert max(sizes) - result < 1.5 * result
    assert len(sizes) > 20


def test_block_ratings__begins_anew_when_the_ratings_or_the_options_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(1000, 50, 20), row_group_size=100)
    caplog.set_level(logging.WARNING, "distmf")
    original, fails = merging._merge_row_block, [True]

    def fail(*args: Any) -> Any:
        if fails:
            raise OSError("the disk is gone")
        return original(*args)

    monkeypatch.setattr("distmf.merging._merge_row_block", fail)
    for table, options in ((random_ratings(1000, 50, 20), {"seed": 1}), (random_ratings(900, 50, 20, seed=3), {})):
        fails.append(True)
        with pytest.raises(OSError, match="the disk is gone"):
            block_ratings(source, tmp_path / "b", threads=1)
        source = write(tmp_path / "r.parquet", table, row_group_size=100)
        fails.clear()
        found = files(Path(block_ratings(source, tmp_path / "b", **options).path))
        assert found == files(Path(block_ratings(source, tmp_path / "expected", **options).path))
    for what in "ratings, seed", "ratings":
        assert f"is begun anew: what was done of it is for another choice of {what}\n" in caplog.text


def test_block_ratings__leaves_nothing_of_ratings_that_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", {"user_id": [1, None], "item_id": [1, 2], "rating": [1.0, 2.0]})
    with pytest.raises(RatingsError, match="1 null id;"):
        block_ratings(source, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_block_ratings__is_for_one_process_at_a_time(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(1000, 50, 20))
    folder = Folder.at(tmp_path / "b.job")
    with driver_lock(folder), pytest.raises(StoreError, match=r"b\.job is in use: process \d+ on"):
        block_ratings(source, tmp_path / "b")


def test_block_ratings__writes_to_urls(tmp_path: Path) -> None:
    table = random_ratings(1000, 50, 20)
    source = write(tmp_path / "r.parquet", table)
    try:
        for _ in range(2):  # the second time it replaces
            found = block_ratings(source, "memory://out/blocks", holdout=0.1)
        assert found.path == "memory:///out/blocks"
        assert Counter(triples(found, "train") + triples(found, "holdout")) == Counter(as_triples(table))
    finally:
        fsspec.filesystem("memory").rm("/out", recursive=True)


def test_read__refuses_damaged_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_cache", blocks.ByteCache(0))
    source = write(tmp_path / "r.parquet", random_ratings(5000, 300, 100))
    found = block_ratings(source, tmp_path / "b", grid=(2, 2))
    file = tmp_path / "b" / "rows" / "00001.bin"
    data = file.read_bytes()
    entry = found.entries[BlockKey(1, 1)]
    flipped = bytearray(data)
    flipped[entry.offset + entry.length // 2] ^= 1
    file.write_bytes(flipped)
    found.read(BlockKey(1, 0), "train")
    with pytest.raises(StoreError, match=r"b: block \(1, 1\) in rows/00001.bin does not match its checksum"):
        found.read(BlockKey(1, 1), "train")
    file.write_bytes(data[:-10])
    with pytest.raises(StoreError, match=r"rows/00001.bin is truncated: [\d,]+ bytes expected, [\d,]+ found"):
        found.read(BlockKey(1, 1), "train")
    file.unlink()
    with pytest.raises(StoreError, match=r"b: the file rows/00001.bin is missing"):
        found.read(BlockKey(1, 1), "train")


def test_fit__takes_a_folder_with_some_manifest_for_ratings(tmp_path: Path) -> None:
    folder = tmp_path / "ratings"
    folder.mkdir()
    write(folder / "r.parquet", random_ratings(100, 20, 10))
    (folder / "manifest.json").write_text('{"name": "of something else"}')
    with pytest.raises(RatingsError, match="manifest.json is not a Parquet file"):
        MatrixFactorization(2).fit(folder)
    assert MatrixFactorization(2).fit(str(folder / "*.parquet")).history_.stopped == "epochs"


def test_open_blocks__refuses_other_versions_and_damage(tmp_path: Path) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(100, 20, 10))
    path = tmp_path / "b"
    block_ratings(source, path)
    manifest = json.loads((path / "manifest.json").read_text())
    for change, message in (
        ({"version": 99}, "is of 'distmf blocks', format version 99; 'distmf blocks', version 4 is needed"),
        ({"kind": "browser extension"}, "is of 'browser extension'"),
        ({"row_cuts": [0, 5]}, "manifest.json is damaged: its checksum does not match"),
        ({"blocks": []}, "manifest.json is damaged: its checksum does not match"),
    ):
        (path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(StoreError, match=message):
            open_blocks(path)
    for text in ("[1]", "7", "null", json.dumps(manifest)[:100]):
        (path / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match="manifest.json is damaged"):
            open_blocks(path)
    (path / "manifest.json").write_text(json.dumps(manifest)[:100])
    with pytest.raises(StoreError, match="manifest.json is damaged"):
        open_blocks(path)
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="manifest.json is missing"):
        open_blocks(path)


def test_read__keeps_blocks_in_a_bounded_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(5000, 300, 100))
    found = block_ratings(source, tmp_path / "b", grid=(2, 2))
    largest = max(entry.length for entry in found.entries.values())
    cache: blocks.ByteCache[Any] = blocks.ByteCache(2 * largest)
    monkeypatch.setattr(blocks, "_cache", cache)
    for key, part in itertools.product(found.entries, PARTS):
        assert not found.read(key, part).rows.flags.writeable
        assert cache._bytes <= 2 * largest
    (tmp_path / "b" / "rows" / "00001.bin").unlink()
    assert len(found.read(BlockKey(1, 1), "train").values) == found.entries[BlockKey(1, 1)].n_train  # the last one read


def test_block__goes_on_when_graphs_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "r.parquet", random_ratings(5_000, 300, 100))
    expected = block_ratings(source, tmp_path / "expected", grid=(2, 3))
    run, lost = ThreadEngine.run, []

    def lose_every_other(self: ThreadEngine, graph: Any, keys: Any, on_done: Any = None) -> Any:
        found = run(self, graph, keys, on_done)
        lost.append(len(lost) % 2 == 0)
        if lost[-1]:
            raise GraphLostError("lost")
        return found

    monkeypatch.setattr(ThreadEngine, "run", lose_every_other)
    blocks = block_ratings(source, tmp_path / "b", grid=(2, 3))
    assert lost == [True, False] * 5  # count, merge the counts of users, of items, scatter, merge
    assert files(Path(blocks.path)) == files(Path(expected.path))
    monkeypatch.setattr("distmf.engine.MAX_LOSSES", 1)
    with pytest.raises(GraphLostError):
        block_ratings(source, tmp_path / "b2", grid=(2, 3))
