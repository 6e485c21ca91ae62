"""A model and ratings that it has not seen -> how good its lists of the best items are."""

import functools
import numbers
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.arguments import check_whole, names_checked
from distmf.blocking import blocks_to_exclude
from distmf.blocks import PARTS, Blocks, Part, is_blocks
from distmf.engines import open_engine
from distmf.errors import ParameterError, RatingsError
from distmf.factorization import MatrixFactorization
from distmf.heldout import Numbers, Places, known_items, on_engine, open_heldout, places_of, read
from distmf.loading import model_of
from distmf.model import Catalogue, Model, RatedReader
from distmf.ratings import Ratings
from distmf.sides import as_ids

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


@names_checked
def evaluate_ranking(
    mf: MatrixFactorization | str | Path,
    source: Any,
    n: int = 10,
    *,
    relevant: float | None = None,
    exclude: Any = None,
    among: Any = None,
    without: Any = None,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    client: Any = None,
    threads: int | None = None,
) -> Ranking:
    """Compare the `n` best items of users with those that they liked, as ratings tell that the model has not seen.

    Parameters
    ----------
    mf : MatrixFactorization, str or Path
        A trained model, or the folder or URL of one.
    source : Blocks, str, Path, table or matrix
        Ratings, as for `block_ratings`; or blocks, of which those held out are taken.
    n : int
        Length of the lists.
    relevant : float, optional
        Ratings from which on an item is one that the user liked; by default all that are rated.
    exclude : Blocks, str, Path, table or matrix, optional
        Ratings that are left out of the lists, as in `MatrixFactorization.recommend`: what was rated there cannot be in
        `source` too. By default, if `source` is blocks, what these do not hold out.
    among, without : array-like, optional
        As in `MatrixFactorization.recommend`.
    user, item, rating : str, optional
        Names of the columns; by default those that can be nothing else, as user_id, userId or user.
    client, threads
        Where to run, as in `evaluate`.

    Returns
    -------
    dict
        Means over the `n_users` users that were trained on and have a liked item, L of them in all:
        `precision`, hits / n; `recall`, hits / L; `ndcg`, Σ 1/log2(1 + rank) of the hits over that of a perfect list;
        `map`, the sum of the precisions at the hits over min(L, n); `mrr`, 1 / rank of the first hit; `hit_rate`, the
        share of lists with a hit. `coverage` is the share of the items that may be in a list (trained on, and allowed)
        that are in one.

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
    check_whole("n", n)
    if relevant is not None and not isinstance(relevant, numbers.Real):
        raise ParameterError(f"relevant is {relevant!r}; it is a number, as 4 for ratings from 4 on")
    model, names = model_of(mf, client), {"user": user, "item": item, "rating": rating}
    items_among = known_items(model).items_among(among, without)
    if exclude is None and is_blocks(source):
        exclude = source
    with open_engine(client, threads) as engine, blocks_to_exclude(exclude) as blocks:
        with open_heldout(source, names, client) as heldout:
            calls = [(heldout.source, part, relevant) for part in heldout.parts]
            prepare = partial(places_of, heldout.source)
            found = on_engine(engine, model, "reading", prepare, _liked, calls, heldout.sizes)
        users, items = _pairs(batch for batches in found for batch in batches)
        if not len(users):
            least = "" if relevant is None else f" from {relevant:g} on; lower relevant (--relevant)"
            raise RatingsError(f"nothing to judge lists by: no user that was trained on has a rating{least}")
        places = np.unique(users)
        chunks = np.split(places, range(USERS_AT_ONCE, len(places), USERS_AT_ONCE))
        ends = [np.searchsorted(users, [some[0], some[-1] + 1]) for some in chunks]
        lists: list[tuple[Any, ...]] = [
            (n, some, users[first:last], items[first:last]) for some, (first, last) in zip(chunks, ends, strict=True)
        ]
        is_of_source = isinstance(heldout.source, Blocks) and blocks is not None and heldout.source.path == blocks.path
        prepare_search = partial(_search, blocks, ("train",) if is_of_source else PARTS, items_among)
        judged = on_engine(
            engine, model, "ranking", prepare_search, _judged, lists, [len(some) for some in chunks], "users"
        )
    sums = sum(part for part, _ in judged)
    listed = functools.reduce(np.union1d, (places for _, places in judged))
    means = (sums / len(places)).tolist()
    return {
        "n_users": len(places),
        "precision": means[0],
        "recall": means[1],
        "ndcg": means[2],
        "map": means[3],
        "mrr": means[4],
        "hit_rate": means[5],
        "coverage": float(len(listed) / len(items_among)),
    }


def _liked(
    model: Model, blocks: Places | None, source: Ratings | Blocks, part: Any, relevant: float | None
) -> list[tuple[Numbers, Numbers, pa.Array]]:
    """Return places of users that were trained on and of items that they liked, and the ids of items at -1."""
    found = []
    for batch in read(model, blocks, source, part):
        is_liked = batch.rows >= 0 if relevant is None else (batch.rows >= 0) & (batch.ratings >= relevant)
        others = batch.unseen_items.filter(pa.array(is_liked[batch.cols < 0]))
        found.append((batch.rows[is_liked], batch.cols[is_liked], others))
    return found


def _pairs(batches: Iterable[tuple[Numbers, Numbers, pa.Array]]) -> tuple[Numbers, Numbers]:
    """Return the places of users, ascending, and of the items that they liked, each pair once.

    An item that was not trained on is one that nobody can be recommended: each has a number of its own below 0.
    """
    unseen: dict[Any, int] = {}
    all_users, all_items = [], []
    for users, places, others in batches:
        items = places.copy()
        items[items < 0] = [-1 - unseen.setdefault(other, len(unseen)) for other in others.to_pylist()]
        all_users.append(users)
        all_items.append(items)
    pairs = np.unique(np.stack([np.concatenate(all_users), np.concatenate(all_items)]), axis=1)
    return pairs[0], pairs[1]


class _Search(NamedTuple):
    """What lists are made with: what is left out of them, and the items that may be in them."""

    reader: RatedReader | None
    items: Catalogue


def _search(blocks: Blocks | None, parts: Sequence[Part], among: Numbers, model: Model) -> _Search:
    reader = None if blocks is None else RatedReader(blocks, model.items.map, parts)
    return _Search(reader, model.catalogue(among))


def _judged(
    model: Model, search: _Search, n: int, some: Numbers, users: Numbers, items: Numbers
) -> tuple[npt.NDArray[np.float64], Numbers]:
    """Return sums over some users of the worth of their lists, given what each of them liked; and what is in them."""
    best = model.recommend(model.users.ids.take(pa.array(some)), n, search.reader, "mean", search.items)
    found = model.items.map.numbers(as_ids(best.item_ids.ravel(), model.items.ids.type, "item"))
    found = np.where(np.isfinite(best.scores), found.reshape(best.scores.shape), -1)
    return _sums(some, found, users, items, n), np.unique(found[found >= 0])


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
