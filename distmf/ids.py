"""Raw ids <-> row and column numbers.

Every id has a 64-bit hash that depends on a salt and on nothing else. Sorting the distinct hashes numbers the ids: that
is a random permutation that does not depend on the order of the input, and looking a number up is a search in a sorted
array of evenly spread values. Integers are hashed by a bijection, so their hashes are as good as the ids themselves;
strings that hash alike are found when the ids are counted.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.errors import RatingsError

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

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
        numbers: Hashes = ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
        return mix(numbers ^ salt)
    _, offsets, data = ids.buffers()
    offsets = np.frombuffer(offsets, dtype=np.int64, count=len(ids) + 1, offset=8 * ids.offset)
    return np.asarray(_hash_strings(offsets, np.frombuffer(data or b"", dtype=np.uint8), salt))


@nb.njit(nogil=True)
def _hash_strings(offsets, data, salt):
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    for n in range(len(hashes)):
        begin, end = offsets[n], offsets[n + 1]
        x = salt ^ np.uint64(end - begin)
        for word_begin in range(begin, end, 8):
            word = np.uint64(0)
            for byte in range(min(8, end - word_begin)):
                word |= np.uint64(data[word_begin + byte]) << np.uint64(8 * byte)
            x ^= word
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
        hashes[n] = x
    return hashes


class IdCounts(NamedTuple):
    """Distinct ids of a part of the input, by ascending hash.

    Attributes
    ----------
    hashes : uint64, shape (n,)
        Strictly ascending.
    counts : int64, shape (n,)
        Ratings to train on; 0 for an id that is only held out.
    ids : pa.Array or None, shape (n,)
        The ids, if they cannot be computed from the hashes.
    """

    hashes: Hashes
    counts: Numbers
    ids: pa.Array | None

    @classmethod
    def of(cls, ids: pa.Array, hashes: Hashes, is_train: npt.NDArray[np.bool_], salt: np.uint64) -> Self:
        """Count the ids of one batch, given their hashes under `salt`."""
        distinct, counts = _tally(hashes, is_train)
        order = np.argsort(distinct)
        if pa.types.is_integer(ids.type):
            return cls(distinct[order], counts[order], None)
        names = ids.unique()
        name_hashes = hash_ids(names, salt)
        name_order = np.argsort(name_hashes)
        names = names.take(pa.array(name_order))
        _refuse_collisions(name_hashes[name_order], names)
        return cls(distinct[order], counts[order], names)

    @classmethod
    def of_range(cls, ids: Numbers, n: int, salt: np.uint64) -> Self:
        """Count ids from 0 to n - 1, those that do not occur included; all are to train on."""
        hashes = hash_ids(pa.array(np.arange(n)), salt)
        order = np.argsort(hashes)
        return cls(hashes[order], np.bincount(ids, minlength=n)[order], None)

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """Add the counts of several parts; the result does not depend on their order."""
        hashes = np.concatenate([part.hashes for part in parts])
        order = np.argsort(hashes, kind="stable")  # runs that are sorted already: a merge
        hashes = hashes[order]
        is_first = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
        counts = np.concatenate([part.counts for part in parts])[order]
        counts = np.add.reduceat(counts, np.flatnonzero(is_first)) if len(hashes) else counts
        ids = None
        if parts[0].ids is not None:
            ids = pa.concat_arrays([part.ids for part in parts]).take(pa.array(order))
            _refuse_collisions(hashes, ids)
            ids = ids.filter(pa.array(is_first))
        return cls(hashes[is_first], counts, ids)


@nb.njit(nogil=True)
def _tally(hashes, is_train):
    """Return the distinct hashes, in no order, and the ratings to train on of each: a hash table, linear probing."""
    bits, n = 12, 0
    slots, counts = np.zeros(1 << bits, dtype=np.uint64), np.full(1 << bits, -1, dtype=np.int64)
    for t in range(len(hashes)):
        slot = hashes[t] >> np.uint64(64 - bits)
        while counts[slot] >= 0 and slots[slot] != hashes[t]:
            slot = (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)
        if counts[slot] < 0:
            slots[slot], counts[slot] = hashes[t], 0
            n += 1
        counts[slot] += is_train[t]
        if 2 * n > len(slots):
            old_slots, old_counts = slots, counts
            bits += 2
            slots, counts = np.zeros(1 << bits, dtype=np.uint64), np.full(1 << bits, -1, dtype=np.int64)
            for old in range(len(old_slots)):
                if old_counts[old] >= 0:
                    slot = old_slots[old] >> np.uint64(64 - bits)
                    while counts[slot] >= 0:
                        slot = (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)
                    slots[slot], counts[slot] = old_slots[old], old_counts[old]
    used = counts >= 0
    return slots[used], counts[used]


def _refuse_collisions(hashes: Hashes, ids: pa.Array) -> None:
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(same):
        left, right = ids.take(pa.array(same)), ids.take(pa.array(same + 1))
        for a, b in zip(left, right, strict=True):
            if a != b:
                raise RatingsError(
                    f"the ids {a.as_py()!r} and {b.as_py()!r} have the same 64-bit hash; choose another seed"
                )


class IdMap:
    """Numbers of ids: the position of an id's hash among all hashes in ascending order.

    Parameters
    ----------
    ids : pa.Array, shape (n,)
        Distinct ids; `number` n is the n-th of them if they are in the order of their hashes.
    salt : np.uint64
        Of the hashes.
    """

    def __init__(self, ids: pa.Array, salt: np.uint64) -> None:
        self.ids, self.salt = ids, salt
        hashes = hash_ids(ids, salt)
        self._order = None if np.all(hashes[1:] > hashes[:-1]) else np.argsort(hashes)
        self._hashes = hashes if self._order is None else hashes[self._order]
        bits = max(1, len(ids)).bit_length()
        self._starts = np.searchsorted(self._hashes >> np.uint64(64 - bits), np.arange(2**bits + 1, dtype=np.uint64))

    @classmethod
    def of_counts(cls, counts: IdCounts, id_type: pa.DataType, salt: np.uint64) -> Self:
        """Return the numbering of the ids that were counted."""
        if counts.ids is not None:
            return cls(counts.ids, salt)
        numbers = (unmix(counts.hashes) ^ salt).view(np.int64)
        return cls(pa.array(numbers.astype(id_type.to_pandas_dtype())), salt)

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self, ids: pa.Array) -> Numbers:
        """Return the position in `self.ids` of each id, -1 for ids that are not there; int64, shape (len(ids),)."""
        if pa.types.is_integer(ids.type) != pa.types.is_integer(self.ids.type):
            return np.full(len(ids), -1, dtype=np.int64)
        numbers = self.numbers_of_hashes(hash_ids(ids, self.salt))
        if pa.types.is_uint64(ids.type) != pa.types.is_uint64(self.ids.type):
            # As 64 bits, a negative number and one above 2**63 look the same; neither is an id of the other type.
            numbers[ids.to_numpy(zero_copy_only=False).astype(np.int64) < 0] = -1
        return numbers

    def numbers_of_hashes(self, hashes: Hashes) -> Numbers:
        """Return the same, given the hashes of the ids."""
        found = _search(self._hashes, self._starts, hashes)
        return found if self._order is None else np.where(found < 0, -1, self._order[found])


@nb.njit(nogil=True)
def _search(ascending, starts, hashes):
    """Return where each hash stands in `ascending`, -1 if nowhere; `starts` gives the first by its leading bits."""
    shift = np.uint64(64)
    buckets = len(starts) - 1
    while buckets > 1:
        buckets >>= 1
        shift -= np.uint64(1)
    found = np.empty(len(hashes), dtype=np.int64)
    for t in range(len(hashes)):
        bucket = hashes[t] >> shift
        position = starts[bucket]
        while position < starts[bucket + np.uint64(1)] and ascending[position] < hashes[t]:
            position += 1
        is_there = position < len(ascending) and ascending[position] == hashes[t]
        found[t] = position if is_there else -1
    return found
