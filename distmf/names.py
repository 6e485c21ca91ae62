"""Ids that are strings, on their way from the second pass over ratings to the tables of ids.

The first pass knows strings by their hashes only. It says in which span of the input each comes up first, and the
scattering of that span writes it down: once, wherever it runs, and whatever was done before.

    names/00012-users.arrow    number, id; again and again a record batch for each range of numbers
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.compiled import compiled
from distmf.engine import Engine, run_in_order
from distmf.errors import RatingsError
from distmf.ids import Numbers, fingerprint
from distmf.store import Folder

NAMES = "names"
MAX_RANGES = 1024
SCHEMA = pa.schema({"number": pa.uint64(), "id": pa.large_string()})


def count_ranges(n_ids: int, n_at_once: int) -> int:
    """Return into how many ranges numbers are cut, for so many strings to be put in order at once."""
    return min(MAX_RANGES, -(-n_ids // n_at_once))


class Names:
    """Writes down the strings of one side that come up first in one span.

    Parameters
    ----------
    out : pa.ipc.RecordBatchFileWriter
        Where to.
    spans : uint8, shape (n_ids,)
        The span that each id comes up in first.
    span : int
        This one.
    n_ranges : int
        Of numbers.
    enough : int
        Strings that may wait to be written.
    """

    def __init__(self, out: Any, spans: npt.NDArray[np.uint8], span: int, n_ranges: int, enough: int) -> None:
        self._out, self._spans, self._span, self._enough = out, spans, np.uint8(span), enough
        self._edges = _edges(len(spans), n_ranges)
        self._seen = np.zeros(len(spans) // 8 + 1, dtype=np.uint8)
        self._waiting: list[tuple[npt.NDArray[Any], pa.Array]] = []

    def add(self, numbers: npt.NDArray[np.unsignedinteger[Any]], ids: pa.Array) -> None:
        """Take what is new of the ids of some ratings."""
        picked = np.empty(len(numbers), dtype=np.int32)
        picked = picked[: _pick(numbers, self._spans, self._span, self._seen, picked)]
        self._waiting.append((numbers[picked], ids.take(pa.array(picked))))
        if sum(len(some) for some, _ in self._waiting) > self._enough:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        numbers, ids = zip(*self._waiting, strict=True)
        self._waiting = []
        ordered, names = _in_order(np.concatenate(numbers), pa.concat_arrays(ids))
        for begin, end in itertools.pairwise(np.searchsorted(ordered, self._edges).tolist()):
            columns = [ordered[begin:end].astype(np.uint64), names[begin:end]]
            self._out.write_batch(pa.record_batch(columns, schema=SCHEMA))


@compiled()
def _pick(numbers, spans, span, seen, picked):
    """Find the first rating of each id of a span; return how many there are, and in `picked` which."""
    n, one, mask = 0, np.uint8(1), np.uint64(7)
    for t in range(len(numbers)):
        number = np.uint64(numbers[t])
        if spans[number] == span:
            byte, bit = number >> np.uint64(3), one << np.uint8(number & mask)
            if not seen[byte] & bit:
                seen[byte] |= bit
                picked[n] = t
                n += 1
    return n


@contextlib.contextmanager
def names_of_span(
    folder: Folder, side: str, spans: npt.NDArray[np.uint8], span: int, n_ranges: int, enough: int
) -> Iterator[Names]:
    """Yield what writes down the strings of a side and a span; the file is there at the end."""
    with folder.new_batches(_file(span, side), SCHEMA) as out:
        names = Names(out, spans, span, n_ranges, enough)
        yield names
        names.flush()


def collect_names(
    engine: Engine, folder: Folder, side: str, n_spans: int, n_ids: int, n_ranges: int
) -> Iterator[pa.Array]:
    """Yield the strings of a side in the order of their numbers, a range at a time.

    Raises
    ------
    RatingsError
        If some did not come up again.
    """
    files = [_file(span, side) for span in range(n_spans)]
    ranges = enumerate(itertools.pairwise(_edges(n_ids, n_ranges).tolist()))
    calls = [(_collect_range, folder, files, n, n_ranges, *edges) for n, edges in ranges]
    yield from run_in_order(engine, f"collect-{side}", calls)


def _collect_range(folder: Folder, files: Sequence[str], n: int, n_ranges: int, begin: int, end: int) -> pa.Array:
    batches = []
    for name in files:
        with folder.batches(name) as reader:
            batches += [reader.get_batch(m) for m in range(n, reader.num_record_batches, n_ranges)]
    table = pa.Table.from_batches(batches, SCHEMA)
    numbers, names = _in_order(table["number"].to_numpy(), table["id"].combine_chunks())
    if not np.array_equal(numbers, np.arange(begin, end)):
        raise RatingsError("the ratings changed while they were blocked: an id did not come up again; try again")
    return names


def checked(ids: Iterable[pa.Array], counts: Numbers, salt: np.uint64, expected: int) -> Iterator[pa.Array]:
    """Yield ids, part by part, and compare their fingerprint with that of the ratings.

    Raises
    ------
    RatingsError
        If it is not the same: two ids were taken for one.
    """
    found, begin = 0, 0
    for part in ids:
        found += fingerprint(part, counts[begin : begin + len(part)], salt)
        begin += len(part)
        yield part
    if found % 2**64 != expected:
        raise RatingsError("two of the ids have the same 64-bit hash; choose another seed (--seed)")


def _edges(n_ids: int, n_ranges: int) -> Numbers:
    return np.arange(n_ranges + 1) * n_ids // n_ranges


def _in_order(numbers: npt.NDArray[Any], names: pa.Array) -> tuple[npt.NDArray[Any], pa.Array]:
    order = np.argsort(numbers)
    return numbers[order], names.take(pa.array(order))


def _file(span: int, side: str) -> str:
    return f"{NAMES}/{span:05d}-{side}.arrow"
