"""What lists of the best items are worth: against plain loops, and against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import distmf
from distmf import MatrixFactorization, block_ratings, evaluate_ranking
from distmf.errors import ParameterError, RatingsError
from tests.helpers import random_ratings, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranking")
    table = random_ratings(3000, 80, 60)
    write(folder / "train.parquet", table.slice(0, 2000))
    columns = table.slice(2000).to_pydict()
    more = {"user_id": [3, 3, 999], "item_id": [777, 778, 5], "rating": [5.0, 5.0, 5.0]}  # items and a user not seen
    write(folder / "test.parquet", {name: [*column, *more[name]] for name, column in columns.items()})
    blocks = block_ratings(folder / "train.parquet", folder / "b", grid=(2, 2), holdout=0.2)
    MatrixFactorization(4, epochs=5).fit(blocks).save(folder / "m")
    return folder


def by_hand(mf: MatrixFactorization, liked: dict[int, set[int]], n: int, **options: Any) -> dict[str, float]:
    """Return the metrics, computed user by user as their definitions read."""
    rows, listed = [], set()
    for user, items in liked.items():
        best = [item for item, score in zip(*mf.recommend(user, n, **options), strict=True) if np.isfinite(score)]
        listed |= set(best)
        hits = [item in items for item in best]
        ideal = sum(1 / np.log2(1 + k) for k in range(1, min(len(items), n) + 1))
        rows.append(
            {
                "precision": sum(hits) / n,
                "recall": sum(hits) / len(items),
                "ndcg": sum(hit / np.log2(1 + k) for k, hit in enumerate(hits, 1)) / ideal,
                "map": sum(hit * sum(hits[:k]) / k for k, hit in enumerate(hits, 1)) / min(len(items), n),
                "mrr": next((1 / k for k, hit in enumerate(hits, 1) if hit), 0.0),
                "hit_rate": float(any(hits)),
            }
        )
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"n_users": len(rows), **means, "coverage": len(listed) / len(mf.item_ids_)}


@pytest.mark.parametrize("n", [1, 5, 10, 100])
@pytest.mark.parametrize("relevant", [None, 4.0])
@pytest.mark.parametrize("excluded", [True, False])
def test_evaluate_ranking__is_what_the_definitions_say(
    n: int, relevant: float | None, excluded: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmf.ranking.USERS_AT_ONCE", 17)
    mf, options = distmf.load(folder / "m"), {"exclude": folder / "b"} if excluded else {}
    liked: dict[int, set[int]] = {}
    columns = pq.read_table(folder / "test.parquet").to_pydict()
    for user, item, rating in zip(columns["user_id"], columns["item_id"], columns["rating"], strict=True):
        if user in mf.user_ids_ and (relevant is None or rating >= relevant):
            liked.setdefault(user, set()).add(item)
    found = evaluate_ranking(mf, folder / "test.parquet", n, relevant=relevant, **options)  # type: ignore[arg-type]
    assert found == pytest.approx(by_hand(mf, liked, n, **options), abs=1e-12)


def test_evaluate_ranking__of_blocks_lists_what_they_hold_out(folder: Path) -> None:
    """And of anything else leaves that out as well: it was rated."""
    mf, blocks = distmf.load(folder / "m"), distmf.open_blocks(folder / "b")
    of_blocks = evaluate_ranking(mf, blocks, 60)
    assert of_blocks == evaluate_ranking(mf, folder / "b", 60, exclude=blocks)
    assert of_blocks["recall"] == 1
    assert evaluate_ranking(mf, folder / "train.parquet", 60, exclude=blocks)["hit_rate"] == 0
    test = folder / "test.parquet"
    by_blocks = evaluate_ranking(mf, test, exclude=blocks)
    assert by_blocks == evaluate_ranking(mf, test, exclude=folder / "train.parquet")


def test_ndcg__is_that_of_scikit_learn(folder: Path, tmp_path: Path) -> None:
    """Where all liked items were trained on, and nothing is excluded."""
    metrics = pytest.importorskip("sklearn.metrics", reason="no sklearn: pip install '.[frames]'")
    mf = distmf.load(folder / "m")
    rng = np.random.default_rng(0)
    is_liked = rng.random((len(mf.user_ids_), len(mf.item_ids_))) < 0.2
    users, items = np.nonzero(is_liked)
    columns = {"user_id": mf.user_ids_[users], "item_id": mf.item_ids_[items], "rating": np.ones(len(users))}
    found = evaluate_ranking(mf, write(tmp_path / "t.parquet", columns), 10)
    has_any = is_liked.any(axis=1)
    scores = mf.reconstruct(clip=False)
    assert found["ndcg"] == pytest.approx(metrics.ndcg_score(is_liked[has_any], scores[has_any], k=10), abs=1e-6)


def test_evaluate_ranking__refuses(folder: Path) -> None:
    mf = distmf.load(folder / "m")
    with pytest.raises(ParameterError, match="n is 0"):
        evaluate_ranking(mf, folder / "test.parquet", 0)
    with pytest.raises(RatingsError, match="no user that was trained on has a rating from 9 on"):
        evaluate_ranking(mf, folder / "test.parquet", relevant=9)
