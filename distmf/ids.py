"""Raw ids, their hashes, and how often each occurs.

Every id has a 64-bit hash that depends on a salt and on nothing else. Integers are hashed by a bijection, so their
hashes are as good as the ids themselves; strings that hash alike are found by their fingerprints.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.compiled import compiled

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

MAX_SPREAD = 4  # of integers that lie close together: the range over their number

_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_INVERSES = np.uint64(0x96DE1B173F119089), np.uint64(0x319642B2D24D8EC3)


def mix(x: Hashes) -> Hashes:
    """Return the finaliser of splitmix64 of every element: a bijection of 64-bit integers that looks random.

    References
    ----------
    .. [1] G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


def unmix(x: Hashes) -> Hashes:
    """Return the inverse of `mix`."""
    x = (x ^ (x >> np.uint64(31)) ^ (x >> np.uint64(62))) * _INVERSES[1]
    x = (x ^ (x >> np.uint64(27)) ^ (x >> np.uint64(54))) * _INVERSES[0]
    return np.asarray(x ^ (x >> np.uint64(30)) ^ (x >> np.uint64(60)))


def salt(seed: int, purpose: str) -> np.uint64:
    """Return the salt of one purpose (`"user"`, `"item"`, …) under a seed."""
    words = np.frombuffer(purpose.encode().ljust(8, b"\0")[:8], dtype=np.uint64)
    return np.uint64(mix(mix(np.array([seed], dtype=np.int64).view(np.uint64)) ^ words)[0])


def hash_ids(ids: pa.Array, salt: np.uint64) -> Hashes:
    """Return the hash of every id.

    Parameters
    ----------
    ids : pa.Array, shape (n,)
        Integers or `large_string`, without nulls.
    salt : np.uint64
        From `salt`; different salts give independent hashes.

    Returns
    -------
    uint64, shape (n,)
    """
    if pa.types.is_integer(ids.type):
        hashes = np.empty(len(ids), dtype=np.uint64)
        _hash_integers(as_integers(ids).view(np.uint64), salt, hashes)
        return hashes
    _, offsets, data = ids.buffers()
    offsets = np.frombuffer(offsets, dtype=np.int64, count=len(ids) + 1, offset=8 * ids.offset)
    return np.asarray(_hash_strings(offsets, np.frombuffer(data or b"", dtype=np.uint8), salt))


@compiled()
def _mix(x):
    """Do what `mix` does, in compiled code."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled()
def _hash_integers(numbers, salt, hashes):
    for n in range(len(hashes)):
        hashes[n] = _mix(numbers[n] ^ salt)


@compiled()
def _hash_strings(offsets, data, salt):
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    for n in range(len(hashes)):
        begin, end = offsets[n], offsets[n + 1]
        x = salt
        for word_begin in range(begin, end, 8):
            word = np.uint64(0)
            for byte in range(min(8, end - word_begin)):
                word |= np.uint64(data[word_begin + byte]) << np.uint64(8 * byte)
            x = _mix(x ^ word)
        # The length last, as zeros fill the last word: what is XORed twice may cancel.
        hashes[n] = _mix(x ^ np.uint64(end - begin))
    return hashes


def integers_of(hashes: Hashes, salt: np.uint64) -> Numbers:
    """Return the integer ids that have these hashes; those from 2⁶³ on become negative."""
    return (unmix(hashes) ^ salt).view(np.int64)


def fingerprint(ids: pa.Array, counts: npt.NDArray[Any], salt: np.uint64) -> int:
    """Return the sum, modulo 2⁶⁴, of the hashes of ids, each as often as it counts.

    It is the same for all ratings as for the ids and their counts, unless two ids were taken for one.
    """
    return int(np.sum(hash_ids(ids, salt) * counts.astype(np.uint64), dtype=np.uint64))


def as_integers(ids: pa.Array) -> Numbers:
    """Return integer ids as int64; those from 2⁶³ on become negative."""
    return np.asarray(ids.to_numpy(zero_copy_only=False).astype(np.int64, copy=False))


class Ids:
    """Some ids, and what follows from them, which is computed when it is asked for, and then kept.

    Parameters
    ----------
    array : pa.Array, shape (n,)
        Integers or `large_string`, without nulls.
    salt : np.uint64
        Of the hashes.
    """

    def __init__(self, array: pa.Array, salt: np.uint64) -> None:
        self.array, self.salt = array, salt

    def __len__(self) -> int:
        return len(self.array)

    @property
    def are_integers(self) -> bool:
        """Whether they are no strings."""
        return bool(pa.types.is_integer(self.array.type))

    @functools.cached_property
    def integers(self) -> Numbers:
        """They themselves, as `as_integers` gives them."""
        return as_integers(self.array)

    @functools.cached_property
    def hashes(self) -> Hashes:
        """The hash of each; to be left as they are."""
        return hash_ids(self.array, self.salt)


class CloseCounts:
    """Counts integers that lie close together: from some `low` on, in an array.

    Parameters
    ----------
    low, size : int
        Those from low to low + size - 1 can be counted; 5 bytes each, once they have come up.
    """

    def __init__(self, low: int, size: int) -> None:
        self._low = low
        self._counts, self._seen = np.zeros(size, dtype=np.uint32), np.zeros(size, dtype=np.bool_)
        self.n = 0

    def add(self, ids: Numbers, is_train: npt.NDArray[np.bool_]) -> bool:
        """Count the ids of some ratings, if all of them can be counted; return whether they can."""
        if int(ids.min()) < self._low or int(ids.max()) - self._low >= len(self._counts):
            return False
        self.n += _add_close(ids, np.int64(self._low), is_train, self._counts, self._seen)
        return True

    def take(self, salt: np.uint64) -> "IdCounts":
        """Return the counts, by hash."""
        offsets = np.flatnonzero(self._seen)
        hashes = hash_ids(pa.array(offsets + self._low), salt)
        order = np.argsort(hashes)
        return IdCounts(hashes[order], self._counts[offsets[order]].astype(np.int64))


@compiled()
def _add_close(ids, low, is_train, counts, seen):
    """Count ids, and return how many of them had not come up before."""
    new = 0
    for t in range(len(ids)):
        place = np.uint64(ids[t] - low)
        new += not seen[place]
        seen[place] = True
        counts[place] += is_train[t]
    return new


class IdCounts(NamedTuple):
    """Distinct ids of a part of the input, by ascending hash.

    Attributes
    ----------
    hashes : uint64, shape (n,)
        Strictly ascending.
    counts : int64, shape (n,)
        Ratings to train on; 0 for an id that is only held out.
    """

    hashes: Hashes
    counts: Numbers

    @classmethod
    def of(cls, ids: Ids, is_train: npt.NDArray[np.bool_]) -> Self:
        """Count the ids of one batch."""
        distinct, counts = np.unique(ids.hashes, return_counts=True)
        if not is_train.all():
            some, n_some = np.unique(ids.hashes[is_train], return_counts=True)
            counts[:] = 0
            counts[np.searchsorted(distinct, some)] = n_some
        return cls(distinct, counts)

    @classmethod
    def of_range(cls, ids: Numbers, n: int, salt: np.uint64) -> Self:
        """Count ids from 0 to n - 1, those that do not occur included; all are to train on."""
        hashes = hash_ids(pa.array(np.arange(n)), salt)
        order = np.argsort(hashes)
        return cls(hashes[order], np.bincount(ids, minlength=n)[order])

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """Add the counts of several parts; the result does not depend on their order."""
        hashes = np.concatenate([part.hashes for part in parts])
        order = np.argsort(hashes, kind="stable")  # runs that are sorted already: a merge
        hashes = hashes[order]
        firsts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
        counts = np.concatenate([part.counts for part in parts])[order]
        counts = np.add.reduceat(counts, firsts) if len(hashes) else counts
        return cls(hashes[firsts], counts)

    def sources(self, parts: Sequence[Self]) -> npt.NDArray[np.uint8]:
        """Return the first of up to 256 parts that each id comes from, if this is what they are merged to."""
        sources = np.zeros(len(self.hashes), dtype=np.uint8)
        for n, part in reversed(list(enumerate(parts))):
            sources[np.searchsorted(self.hashes, part.hashes)] = n
        return sources
