"""Raw ids <-> row and column numbers.

Sorting the distinct hashes of ids numbers the ids: that is a random permutation that does not depend on the order of
the input, and looking a number up is a search in a sorted array of evenly spread values.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.compiled import compiled
from distmf.ids import MAX_SPREAD, Hashes, Ids, Numbers, as_integers, hash_ids, integers_of


class Numbering(Protocol):
    """Ids -> their numbers: the positions of their hashes among all hashes in ascending order."""

    def __len__(self) -> int: ...

    def numbers(self, ids: Ids) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the number of each id, or the number of all ids if it has none; shape (len(ids),)."""
        ...


class HashNumbering:
    """Numbers of any ids, by their hashes.

    It takes 8 bytes an id, and 2 to 4 more (twice that for over 2³² ids) to begin the search at the right place.

    Parameters
    ----------
    hashes : uint64, shape (n,)
        Strictly ascending.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._hashes, bits = hashes, max(1, len(hashes).bit_length() - 1)
        self._shift, self._dtype = np.uint64(64 - bits), np.dtype(np.uint32 if len(hashes) < 2**32 else np.uint64)
        buckets = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.append(np.searchsorted(hashes, buckets), len(hashes)).astype(self._dtype)

    def __len__(self) -> int:
        return len(self._hashes)

    def numbers(self, ids: Ids) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the number of each id, or the number of all ids if it has none; shape (len(ids),)."""
        numbers = np.empty(len(ids), dtype=self._dtype)
        _find(self._hashes, self._starts, self._shift, ids.hashes, numbers)
        return numbers


@compiled()
def _find(hashes, starts, shift, wanted, numbers):
    """Find where each wanted hash stands among `hashes`."""
    one = np.uint64(1)
    for t in range(len(wanted)):
        bucket = wanted[t] >> shift
        place, end = np.uint64(starts[bucket]), np.uint64(starts[bucket + one])
        while place < end and hashes[place] < wanted[t]:
            place += one
        numbers[t] = place if place < end and hashes[place] == wanted[t] else np.uint64(len(hashes))


class CloseNumbering:
    """Numbers of integers that lie close together, in one look at a table.

    It takes 4 bytes for each integer from the smallest to the largest.

    Parameters
    ----------
    ids : int64, shape (n,)
        In the order of their numbers.
    """

    def __init__(self, ids: Numbers) -> None:
        self._low, self._n = ids.min(), len(ids)
        self._table = np.full(int(ids.max() - self._low) + 1, len(ids), dtype=np.uint32)
        self._table[ids - self._low] = np.arange(len(ids))

    def __len__(self) -> int:
        return self._n

    def numbers(self, ids: Ids) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the number of each id, or the number of all ids if it has none; shape (len(ids),)."""
        numbers = np.empty(len(ids), dtype=np.uint32)
        _look_up(self._table, self._low, np.uint32(self._n), ids.integers, numbers)
        return numbers


@compiled()
def _look_up(table, low, n, ids, numbers):
    """Look each id up in the table that begins at `low`; it has number n if it is not there."""
    for t in range(len(ids)):
        place = np.uint64(ids[t] - low)
        numbers[t] = table[place] if place < np.uint64(len(table)) else n


def number_ids(hashes: Hashes, id_type: pa.DataType, salt: np.uint64) -> Numbering:
    """Return the numbering of ids of a type, given their hashes in ascending order, and the salt of these."""
    if pa.types.is_integer(id_type) and _are_close(integers := integers_of(hashes, salt)):
        return CloseNumbering(integers)
    return HashNumbering(hashes)


def _are_close(integers: Numbers) -> bool:
    """Return whether a table of all integers from the smallest to the largest is small enough."""
    return len(integers) < 2**32 and int(integers.max()) - int(integers.min()) < MAX_SPREAD * len(integers)


class IdMap:
    """Numbers of ids, in any order.

    Parameters
    ----------
    ids : pa.Array, shape (n,)
        Distinct ids; number n is that of the n-th.
    salt : np.uint64
        Of the hashes.
    """

    def __init__(self, ids: pa.Array, salt: np.uint64) -> None:
        self.ids, self.salt = ids, salt
        self._numbering: Numbering
        if pa.types.is_integer(ids.type) and len(ids) and _are_close(integers := as_integers(ids)):
            self._numbering, order = CloseNumbering(integers), np.arange(len(ids))
        else:
            hashes = hash_ids(ids, salt)
            order = np.argsort(hashes)
            self._numbering = HashNumbering(hashes[order])
        self._numbers = np.append(order, -1)  # the last is that of unknown ids

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self, ids: pa.Array) -> Numbers:
        """Return the position in `self.ids` of each id, -1 for ids that are not there; int64, shape (len(ids),)."""
        if pa.types.is_integer(ids.type) != pa.types.is_integer(self.ids.type):
            return np.full(len(ids), -1, dtype=np.int64)
        numbers: Numbers = self._numbers[self._numbering.numbers(Ids(ids, self.salt))]
        if pa.types.is_uint64(ids.type) != pa.types.is_uint64(self.ids.type):
            # As 64 bits, a negative number and one above 2**63 look the same; neither is an id of the other type.
            numbers[as_integers(ids) < 0] = -1
        return numbers
