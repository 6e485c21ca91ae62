"""Splits and choices of benchmarks/quality.py: nothing is chosen by what it tests on."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

RATINGS = pa.table(
    {
        "user_id": np.arange(1_000, dtype=np.int32),
        "item_id": np.arange(1_000, dtype=np.int32) % 50,
        "rating": np.arange(1_000, dtype=np.float32),
    }
)


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # scripts replace the first
    return importlib.import_module("benchmarks.quality")


def ids(ratings: pa.Table) -> set[int]:
    return set(ratings["user_id"].to_pylist())


def test_folds__test_each_rating_once(quality: Any) -> None:
    folds = list(quality.folds(RATINGS, 5))
    assert [len(test) for _, test in folds] == [200] * 5
    assert set.union(*(ids(test) for _, test in folds)) == ids(RATINGS)
    assert all(ids(train) == ids(RATINGS) - ids(test) for train, test in folds)


def test_shares__differ_by_seed(quality: Any) -> None:
    shares = list(quality.shares(RATINGS, 0.1, 3))
    assert all(50 < len(test) < 150 and ids(train) == ids(RATINGS) - ids(test) for train, test in shares)
    assert len({frozenset(ids(test)) for _, test in shares}) == 3


def test_compare__chooses_without_the_test_part(quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, set[int], set[int]]] = []

    def train(split: Path, settings: dict[str, float], seed: int, threads: int) -> Any:
        seen.append((settings["reg"], *(ids(pq.read_table(split / part)) for part in ("train", "test"))))
        return quality.Run(abs(settings["reg"] - 2), 0.0)

    monkeypatch.setitem(quality.TRAIN, "libmf", train)
    monkeypatch.setitem(quality.SETTINGS, "libmf", quality.grid(reg=(1, 2, 3)))
    parts = list(quality.folds(RATINGS, 2))
    splits = [quality.write_split(tmp_path / str(fold), *part) for fold, part in enumerate(parts)]
    found = quality.compare(quality.Data("made", "2 folds", 1_000, splits), ["libmf"], {}, 1)
    assert found["libmf"].settings == {"reg": 2}
    for reg, (trained, tested) in zip((1, 2, 3), (one[1:] for one in seen[:3]), strict=True):
        assert (reg, trained | tested) == (seen[reg - 1][0], ids(parts[0][0]))
        assert not trained & tested
    assert seen[3:] == [(2, ids(train), ids(test)) for train, test in parts]
