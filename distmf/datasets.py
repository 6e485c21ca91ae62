"""Arguments of a planted matrix → Parquet ratings of any size, and the truth they were drawn from. Knows no model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.errors import ParameterError, StoreError

_Ids = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]

_MEAN = 3.5
_BIAS_STD = 0.35
_DOT_STD = 0.6  # of p·q, at any rank
_SHIFT = 50  # number k by activity weighs (k + 50)^(-3/4) among users, by popularity 1 / (k + 50) among items
_PARTITION_RATINGS = 1_000_000
_CACHED_RATINGS = 16_384  # true ratings are computed this many at a time: their factors stay in the L2 cache

_USERS, _ITEMS, _LAYOUT, _CHUNKS = range(4)  # what a random stream is for: it starts from [seed, purpose, …]


@dataclass(frozen=True, slots=True)
class Planted:
    """The truth behind planted ratings: `rating = mean + b_u + b_i + p_u · q_i + noise`.

    Holds no arrays. Biases and factors are a pure function of the seed, `rank` and the id, so an instance built from
    the arguments of `planted_ratings` knows the truth behind its files. Methods take ids from 0 upwards.

    Parameters
    ----------
    n_ratings, n_users, n_items : int
        Ratings, and users and items they may come from; at least 1, and `n_ratings <= n_users * n_items`.
    rank : int
        Length of the planted factors, at least 1. The spread of the ratings does not depend on it.
    noise : float
        Standard deviation of the normal noise, in rating units, finite and at least 0.
    seed : int
        Seed of everything random, at least 0.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    """

    n_ratings: int
    n_users: int
    n_items: int
    rank: int = 10
    noise: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_ratings", 1), ("n_users", 1), ("n_items", 1), ("rank", 1), ("noise", 0), ("seed", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:  # so that NaN is refused as well
                raise ParameterError(f"{name} is {value}; it must be finite and at least {least}")
        if self.n_ratings > self.n_users * self.n_items:
            raise ParameterError(
                f"n_ratings is {self.n_ratings:,} but {self.n_users:,} users × {self.n_items:,} items "
                f"have only {self.n_users * self.n_items:,} pairs; ask for at most so many"
            )

    @property
    def mean(self) -> float:
        """The constant that all true ratings share. The mean of the ratings is near it, not equal."""
        return _MEAN

    @property
    def noise_floor(self) -> float:
        """The RMSE against fresh ratings that no model can beat, in rating units."""
        return self.noise

    def user_biases(self, ids: _Ids) -> _Floats:
        """Return the biases `b_u` of users, shape (n,)."""
        return self._biases_and_factors(_USERS, ids)[0]

    def item_biases(self, ids: _Ids) -> _Floats:
        """Return the biases `b_i` of items, shape (n,)."""
        return self._biases_and_factors(_ITEMS, ids)[0]

    def user_factors(self, ids: _Ids) -> _Floats:
        """Return the factors `p_u` of users, shape (n, rank)."""
        return self._biases_and_factors(_USERS, ids)[1]

    def item_factors(self, ids: _Ids) -> _Floats:
        """Return the factors `q_i` of items, shape (n, rank)."""
        return self._biases_and_factors(_ITEMS, ids)[1]

    def true_ratings(self, user_ids: _Ids, item_ids: _Ids) -> _Floats:
        """Return the ratings without their noise.

        Parameters
        ----------
        user_ids, item_ids : ndarray of int64, shape (n,)
            One pair per rating; any pair, rated or not.

        Returns
        -------
        ndarray of float32, shape (n,)
        """
        ratings = np.empty(len(user_ids), np.float32)
        for start in range(0, len(ratings), _CACHED_RATINGS):
            part = slice(start, start + _CACHED_RATINGS)
            b_u, p_u = self._biases_and_factors(_USERS, user_ids[part])
            b_i, q_i = self._biases_and_factors(_ITEMS, item_ids[part])
            ratings[part] = np.einsum("nf,nf->n", p_u, q_i) + b_u + b_i + np.float32(_MEAN)
        return ratings

    def _biases_and_factors(self, side: int, ids: _Ids) -> tuple[_Floats, _Floats]:
        """Return the biases, (n,), and the factors, (n, rank): uniform around 0, each with its standard deviation."""
        n_words = -(-(1 + self.rank) // 4)
        positions = np.asarray(ids, np.int64)[:, None] * n_words + np.arange(n_words)
        start = np.random.default_rng([self.seed, side]).integers(2**63, dtype=np.uint64)
        factor_std = math.sqrt(_DOT_STD / math.sqrt(self.rank))
        values = _splitmix64(start, positions.astype(np.uint64)).view(np.int16).astype(np.float32)
        values += np.float32(0.5)  # centres the 65,536 levels, which have a standard deviation of 2^16 / √12
        values *= np.float32(factor_std * math.sqrt(12) / 2**16)  # all of it: twice as fast as the two parts
        return np.float32(_BIAS_STD / factor_std) * values[:, 0], values[:, 1 : 1 + self.rank]


def planted_ratings(
    path: str | Path,
    n_ratings: int,
    n_users: int,
    n_items: int,
    *,
    rank: int = 10,
    noise: float = 0.7,
    seed: int = 0,
) -> Planted:
    """Write a folder of Parquet ratings drawn from a planted model, and return that model.

    No pair occurs twice, and the numbers of ratings per user and per item follow power laws. Every partition holds a
    sample of the users in random order. Ratings are neither clipped nor rounded, so the noise floor is exact. The
    values depend on the arguments only. Memory does not grow with `n_ratings`; it is about 50 bytes per user and
    item while the degrees are laid out and then about 150 MB. The folder appears complete or not at all.

    Parameters
    ----------
    path : str or Path
        Local folder to create; it may exist if it is empty. It gets `part-00000.parquet` and so on with the columns
        `user_id` (int64, 0 to n_users - 1), `item_id` (int64, 0 to n_items - 1) and `rating` (float32), about a
        million ratings in each.
    n_ratings, n_users, n_items : int
        Exact number of ratings, and the users and items they may come from. Every user has a rating if
        `n_ratings >= n_users`; an item may have none.
    rank : int
        Length of the planted factors.
    noise : float
        Standard deviation of the normal noise, in rating units.
    seed : int
        Seed of everything random.

    Returns
    -------
    Planted
        The truth, with the noise floor.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    StoreError
        If `path` exists and is not an empty folder.

    References
    ----------
    P. S. Efraimidis and P. G. Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters
    97, 2006, for users who rate a large share of the items.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     planted = planted_ratings(folder, n_ratings=1_000, n_users=100, n_items=50)
    >>> planted.noise_floor
    0.7
    """
    planted = Planted(n_ratings, n_users, n_items, rank, noise, seed)
    if "://" in str(path):
        raise StoreError(f"{path} is a URL; planted ratings are written to a local folder")
    folder = Path(path).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not an empty folder; remove it or choose another path")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        complete = Path(temporary) / folder.name  # a folder of its own, as the temporary one is closed to other users
        complete.mkdir()
        for number, table in enumerate(_partitions(planted)):
            pq.write_table(table, complete / f"part-{number:05d}.parquet", use_dictionary=False)
        complete.rename(folder)
    return planted


def _partitions(planted: Planted) -> Iterator[pa.Table]:
    """Yield the ratings in partitions; each chunk of every n-th user makes one, or several if it is large."""
    layout_rng = np.random.default_rng([planted.seed, _LAYOUT])
    degrees = _user_degrees(planted.n_ratings, planted.n_users, planted.n_items)
    layout_rng.shuffle(degrees)
    item_at_rank = layout_rng.permutation(planted.n_items)
    n_chunks = min(-(-planted.n_ratings // _PARTITION_RATINGS), planted.n_users)
    for chunk in range(n_chunks):
        rng = np.random.default_rng([planted.seed, _CHUNKS, chunk])
        pairs = _draw_pairs(rng, degrees[chunk::n_chunks], planted.n_items)
        rng.shuffle(pairs)
        for part in np.array_split(pairs, max(1, round(len(pairs) / _PARTITION_RATINGS))):
            users, ranks = np.divmod(part, planted.n_items)
            users = users * n_chunks + chunk
            items = item_at_rank[ranks]
            ratings = planted.true_ratings(users, items)
            ratings += np.float32(planted.noise) * rng.standard_normal(len(ratings), np.float32)
            yield pa.table({"user_id": users, "item_id": items, "rating": ratings})


def _user_degrees(n_ratings: int, n_users: int, n_items: int) -> _Ids:
    """Return the ratings per user, largest first: a power law within what is possible that sums up to `n_ratings`."""
    weights = np.arange(_SHIFT, _SHIFT + n_users, dtype=np.float64) ** -0.75
    least = int(n_ratings >= n_users)
    too_small, too_large = 0.0, n_items / weights[-1]
    while True:
        scale = (too_small + too_large) / 2
        degrees: _Ids = np.clip(weights * scale, least, n_items).astype(np.int64)
        missing = n_ratings - int(degrees.sum())
        n_full = np.count_nonzero(degrees == n_items)
        if 0 <= missing <= n_users - n_full:  # reached, as close scales differ by at most 1 in each degree
            degrees[n_full : n_full + missing] += 1
            return degrees
        too_small, too_large = (scale, too_large) if missing > 0 else (too_small, scale)


def _draw_pairs(rng: np.random.Generator, degrees: _Ids, n_items: int) -> _Ids:
    """Return `user * n_items + popularity rank` of distinct pairs, `degrees[user]` for each user."""
    is_heavy = degrees > n_items // 8
    light, heavy = np.flatnonzero(~is_heavy), np.flatnonzero(is_heavy)
    return np.concatenate(
        [
            _draw_light(rng, np.repeat(light * n_items, degrees[light]), n_items),
            *_draw_heavy(rng, heavy * n_items, degrees[heavy], n_items),
        ]
    )


def _draw_light(rng: np.random.Generator, bases: _Ids, n_items: int) -> _Ids:
    """Return distinct pairs, drawing again what was drawn before; quick while users rate few of the items."""
    pairs = np.sort(bases + _draw_ranks(rng, len(bases), n_items))
    while True:
        is_repeated = np.zeros(len(pairs), np.bool_)
        np.equal(pairs[1:], pairs[:-1], out=is_repeated[1:])
        if not is_repeated.any():
            return pairs
        repeated = pairs[is_repeated]
        redrawn = np.sort(repeated - repeated % n_items + _draw_ranks(rng, len(repeated), n_items))
        pairs = np.concatenate([pairs[~is_repeated], redrawn])
        pairs.sort(kind="stable")  # merges the two sorted runs


def _draw_ranks(rng: np.random.Generator, n: int, n_items: int) -> _Ids:
    """Return popularity ranks with density 1 / (rank + shift), whose integral is a logarithm."""
    logarithms = rng.uniform(math.log(_SHIFT), math.log(_SHIFT + n_items), n)
    ranks = (np.exp(logarithms) - _SHIFT).astype(np.int64)
    return np.clip(ranks, 0, n_items - 1, out=ranks)  # against rounding


def _draw_heavy(rng: np.random.Generator, bases: _Ids, degrees: _Ids, n_items: int) -> Iterator[_Ids]:
    """Yield distinct pairs: the first arrivals of items that arrive at rates equal to their weights."""
    mean_arrivals = 1 / np.diff(np.log(np.arange(_SHIFT, _SHIFT + n_items + 1)))
    at_once = max(1, _PARTITION_RATINGS // n_items)
    for start in range(0, len(bases), at_once):
        part = slice(start, start + at_once)
        arrivals = mean_arrivals * rng.standard_exponential((len(bases[part]), n_items))
        order = np.argsort(arrivals, axis=1)
        yield (bases[part, None] + order)[np.arange(n_items) < degrees[part, None]]


def _splitmix64(start: np.uint64, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the numbers at some positions of the splitmix64 stream (Steele, Lea and Flood, OOPSLA 2014)."""
    z = positions * np.uint64(0x9E3779B97F4A7C15) + start
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
