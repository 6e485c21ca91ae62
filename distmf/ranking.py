"""A model and ratings that it has not seen -> how good its lists of the best items are."""

import logging
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.blocks import Blocks, is_blocks, open_blocks
from distmf.errors import ParameterError, RatingsError
from distmf.factorization import MatrixFactorization
from distmf.heldout import HeldOut, Numbers, open_heldout
from distmf.model import RatedReader
from distmf.pairs import in_threads
from distmf.progress import Progress
from distmf.sides import as_ids

logger = logging.getLogger(__name__)

USERS_AT_ONCE = 1 << 14


class Ranking(TypedDict):
    """Means over users of what their lists are worth; see `evaluate_ranking`."""

    n_users: int
    precision: float
    recall: float
    ndcg: float
    map: float
    mrr: float
    hit_rate: float
    coverage: float


def evaluate_ranking(
    mf: MatrixFactorization,
    source: Any,
    n: int = 10,
    *,
    relevant: float | None = None,
    exclude: Blocks | str | Path | None = None,
    among: Any = None,
    without: Any = None,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
) -> Ranking:
    """Compare the `n` best items of users with those that they liked, as ratings tell that the model has not seen.

    Parameters
    ----------
    mf : MatrixFactorization
        A trained model.
    source : Blocks, str, Path, table or matrix
        Ratings, as for `block_ratings`; or blocks, of which those held out are taken.
    n : int
        Length of the lists.
    relevant : float, optional
        Ratings from which on an item is one that the user liked; by default all that are rated.
    exclude : Blocks, str or Path, optional
        Blocks whose ratings to train on are left out, for these cannot be in `source` too; by default, if `source` is
        blocks, these.
    among, without : array-like, optional
        As in `MatrixFactorization.recommend`.
    user, item, rating : str, optional
        Names of the columns; by default those that can be nothing else, as user_id, userId or user.

    Returns
    -------
    dict
        Means over the `n_users` users that were trained on and have a liked item, L of them in all:
        `precision`, hits / n; `recall`, hits / L; `ndcg`, Σ 1/log2(1 + rank) of the hits over that of a perfect list;
        `map`, the sum of the precisions at the hits over min(L, n); `mrr`, 1 / rank of the first hit; `hit_rate`, the
        share of lists with a hit. `coverage` is the share of the items that are in a list at all.

    Raises
    ------
    NotFittedError
        Before training.
    ParameterError
        If `n` is below 1.
    RatingsError
        If the ratings do not hold what they should, or nobody liked anything.

    References
    ----------
    .. [1] K. Järvelin, J. Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", ACM TOIS 2002: NDCG.
    """
    model = mf.model_
    if n < 1:
        raise ParameterError(f"n is {n}; it can be from 1")
    with open_heldout(model, source, {"user": user, "item": item, "rating": rating}) as heldout:
        users, items = _liked(heldout, relevant)
    if not len(users):
        raise RatingsError(f"{source}: no user that was trained on has a rating from {relevant} on")
    if exclude is None and is_blocks(source):
        exclude = source
    reader = None if exclude is None else RatedReader(open_blocks(exclude), model.items.map, ("train",))
    places, among_all = np.unique(users), model.items_among(among, without)
    n_items, progress = len(model.items.ids), Progress(logger, "ranking", len(places), "users")
    sums, listed = np.zeros(6), np.zeros(n_items, dtype=np.bool_)
    for begin in range(0, len(places), USERS_AT_ONCE):
        some = places[begin : begin + USERS_AT_ONCE]
        best = model.recommend(model.users.ids.take(pa.array(some)), n, reader, "mean", among_all)
        found = model.items.map.numbers(as_ids(best.item_ids.ravel(), model.items.ids.type, "item"))
        found = np.where(np.isfinite(best.scores), found.reshape(best.scores.shape), -1)
        first, last = np.searchsorted(users, [some[0], some[-1] + 1])
        sums += _sums(some, found, users[first:last], items[first:last], n)
        listed[found[found >= 0]] = True
        progress.advance(len(some))
    means = (sums / len(places)).tolist()
    return {
        "n_users": len(places),
        "precision": means[0],
        "recall": means[1],
        "ndcg": means[2],
        "map": means[3],
        "mrr": means[4],
        "hit_rate": means[5],
        "coverage": float(np.count_nonzero(listed) / len(among_all)),
    }


def _liked(heldout: HeldOut, relevant: float | None) -> tuple[Numbers, Numbers]:
    """Return the places of users that were trained on, ascending, and of the items that they liked, each pair once.

    An item that was not trained on is one that nobody can be recommended: each has a number of its own below 0.
    """
    unseen: dict[Any, int] = {}

    def of_part(part: Any) -> list[tuple[Numbers, Numbers, pa.Array]]:
        found = []
        for batch in heldout.read(part):
            is_liked = batch.rows >= 0 if relevant is None else (batch.rows >= 0) & (batch.ratings >= relevant)
            others = batch.unseen_items.filter(pa.array(is_liked[batch.cols < 0]))
            found.append((batch.rows[is_liked], batch.cols[is_liked], others))
        return found

    all_users, all_items = [], []
    for batches in in_threads(of_part, heldout.parts):
        for users, items, others in batches:
            items[items < 0] = [-1 - unseen.setdefault(other, len(unseen)) for other in others.to_pylist()]
            all_users.append(users)
            all_items.append(items)
    pairs = np.unique(np.stack([np.concatenate(all_users), np.concatenate(all_items)]), axis=1)
    return pairs[0], pairs[1]


def _sums(some: Numbers, found: Numbers, users: Numbers, items: Numbers, n: int) -> npt.NDArray[np.float64]:
    """Return sums over some users of the worth of their lists, given what each of them liked."""
    rows = np.searchsorted(some, users)
    n_liked = np.bincount(rows, minlength=len(some))
    width = int(max(found.max(), items.max())) + 1
    is_known = items >= 0
    liked = rows[is_known] * width + items[is_known]
    hits = np.isin(np.arange(len(some))[:, None] * width + found, liked) & (found >= 0)
    ranks = np.arange(1, found.shape[1] + 1)
    gains = 1 / np.log2(1 + np.arange(1, n + 1))
    ideal = np.cumsum(gains)[np.minimum(n_liked, n) - 1]
    first = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0)
    precisions = np.cumsum(hits, axis=1) / ranks
    return np.array(
        [
            hits.sum() / n,
            (hits.sum(axis=1) / n_liked).sum(),
            ((hits * gains[: found.shape[1]]).sum(axis=1) / ideal).sum(),
            ((precisions * hits).sum(axis=1) / np.minimum(n_liked, n)).sum(),
            first.sum(),
            np.count_nonzero(hits.any(axis=1)),
        ]
    )
